"""``genimg-fast compare``."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from genimg_fast._files import naming
from genimg_fast.cli.arguments import blaming
from genimg_fast.data.optional import optional_import
from genimg_fast.models.checkpoint import find_checkpoint
from genimg_fast.options import File, OptionError
from genimg_fast.training.pictures import printable
from genimg_fast.training.run import FEW_POINTS, flat_settings, read_rows

# Of the rows of statistics, what says nothing about learning.
_NO_CURVES = ("step", "images_per_s", "memory_mb", "data_wait")
_FIGURES = {
    "frechet_distance": "Fréchet distance (lower is better)",
    "kernel_distance": "kernel distance (lower is better)",
    "precision": "precision (higher is better)",
    "recall": "recall (higher is better)",
    "density": "density (higher is better)",
    "coverage": "coverage (higher is better)",
    "inception_score": "Inception score (higher is better)",
    "class_agreement": "share of the requested class (higher is better)",
    "class_variation": "variation within a class (1: that of real images)",
}
_COLUMNS, _MOST_SETTINGS, _LONGEST = 4, 40, 36


class _Run(NamedTuple):
    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    report: dict[str, Any]  # what eval.json holds
    picture: Any  # of samples, opened, if there is one
    caption: str


def compare(run: list[Path], *, out: File = Path("comparison.png")) -> int:
    """Compare runs: losses, what eval found, samples and settings, in one picture.

    Runs of different models have panels in common for what goes by one name. What eval found are the figures in
    the eval.json of each run; they compare for the same features, real images and numbers of images only. The
    settings that differ are printed, too.

    Args:
        run: Run folders, or checkpoints, two or more.
        out: Image file to write.

    Example:
        genimg-fast compare runs/00000-vae-digits runs/00001-vae-digits
        genimg-fast compare runs/*-cdcgan-digits --out norms.png
    """
    if len(run) < 2:
        raise OptionError("run", f"must be two runs or more, got {len(run)}")
    out = out if out.suffix else out.with_name(f"{out.name}.png")
    runs = []
    for path in run:
        with blaming("run"):
            runs.append(_read(path))
    if len({one.name for one in runs}) < len(runs):
        runs = [one._replace(name=str(path)) for one, path in zip(runs, run, strict=True)]
    differences = _differences(runs)
    for line in _table(runs, differences):
        print(line)
    with blaming("out"), naming(out):
        _draw(runs, differences, out)
    print(out)
    return 0


def _read(path: Path) -> _Run:
    folder = path if (path / "config.json").is_file() else find_checkpoint(path).parent
    found: dict[str, dict[str, Any]] = {}
    for name in ("config", "eval"):
        file = folder / f"{name}.json"
        try:
            found[name] = json.loads(file.read_bytes()) if file.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        if not isinstance(found[name], dict):
            raise ValueError(f"{file} is damaged: it holds no settings")
    pictures = [file for kind in ("png", "gif") for file in sorted(folder.glob(f"*-[0-9]*.{kind}"))]
    pictures.sort(key=lambda file: (file.name.startswith("samples"), file.stem.rpartition("-")[2].zfill(9)))
    rows, config = read_rows(folder), found["config"]
    if rows and "steps" in config:
        config["steps"] = rows[-1]["step"]  # config.json has those of the first training, before any resumption
    picture, caption = None, "no pictures"
    if pictures:
        picture, caption = _open_picture(pictures[-1]), pictures[-1].name
    return _Run(folder.name, config, rows, found["eval"], picture, caption)


def _open_picture(file: Path) -> Any:
    try:
        with optional_import("PIL.Image").open(file) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError) as error:  # what Pillow raises where a file is damaged
        raise ValueError(f"{file} is damaged: {error}") from error


def _differences(runs: Sequence[_Run]) -> dict[str, list[str]]:
    """Find the settings that differ: for each, what it is in each run."""
    flat = [flat_settings(run.config) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    values = {key: [_shown(settings[key]) if key in settings else "-" for settings in flat] for key in keys}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def _shown(value: Any) -> str:
    text = printable(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _table(runs: Sequence[_Run], differences: Mapping[str, Sequence[str]]) -> list[str]:
    if not differences:
        return ["no settings differ"]
    rows = [["", *(printable(run.name) for run in runs)], *([key, *row] for key, row in differences.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _draw(runs: Sequence[_Run], differences: Mapping[str, Sequence[str]], out: Path) -> None:
    """Draw curves, figures, samples and settings below each other."""
    curves = list(dict.fromkeys(
        name.removeprefix("val_") for run in runs for row in run.rows for name in row if name not in _NO_CURVES
    ))  # fmt: skip
    figures = [name for name in _FIGURES if any(name in run.report for run in runs)]
    pictures = any(run.picture for run in runs)
    shown = dict(list(differences.items())[:_MOST_SETTINGS])
    sections: list[tuple[Callable[..., None], Any, float]] = [  # what draws each, and its height in inches
        (_draw_curves, curves, 2.6 * -(-len(curves) // _COLUMNS)),
        (_draw_figures, figures, (0.9 + 0.25 * len(runs)) * -(-len(figures) // _COLUMNS) + 0.4),
        (_draw_pictures, pictures, min(5, 15 / len(runs)) + 0.4),
        (_draw_settings, shown, 0.24 * (len(shown) + 2)),
    ]
    drawn = [(draw, what, height) for draw, what, height in sections if what]
    heights = [0.35 * -(-len(runs) // 3) + 0.1, *(height for *_, height in drawn)]
    figure = optional_import("matplotlib.figure").Figure(figsize=(15, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    colours: list[Any] = [f"C{k}" for k in range(len(runs))]
    if len(runs) > 10:  # as many as there are by these names
        colours = [optional_import("matplotlib").colormaps["turbo"](k / (len(runs) - 1)) for k in range(len(runs))]
    lines = optional_import("matplotlib.lines")
    handles = [lines.Line2D([], [], color=colour, linewidth=3) for colour in colours]
    legend = parts[0].legend(handles, range(len(runs)), loc="center", ncols=3, frameon=False)
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set(text=printable(run.name), parse_math=False)
    for part, (draw, what, _) in zip(parts[1:], drawn, strict=True):
        draw(part, runs, colours, what)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a name in another alphabet
        figure.savefig(out, dpi=100)


def _axes(part: Any, number: int) -> list[Any]:
    """Make that many axes, row by row."""
    columns = min(number, _COLUMNS)
    grid = part.subplots(-(-number // columns), columns, squeeze=False).flatten().tolist()
    for axes in grid[number:]:
        axes.set_axis_off()
    return grid[:number]


def _draw_curves(part: Any, runs: Sequence[_Run], colours: Sequence[str], names: Sequence[str]) -> None:
    for axes, name in zip(_axes(part, len(names)), names, strict=True):
        held_out = False
        for run, colour in zip(runs, colours, strict=True):
            for key, style in ((name, "-"), (f"val_{name}", "--")):
                points = [(r["step"], r[key]) for r in run.rows if isinstance(r.get(key), (int, float))]
                if points:
                    marker = "." if len(points) < FEW_POINTS else ""
                    axes.plot(*zip(*points, strict=True), style, color=colour, linewidth=1, marker=marker)
                    held_out |= style == "--"
        axes.set_title(name + (" (dashed: of held-out data)" if held_out else ""), fontsize="medium")
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)


def _draw_figures(part: Any, runs: Sequence[_Run], colours: Sequence[str], names: Sequence[str]) -> None:
    alike = {(run.report.get("network"), run.report.get("images"), run.report.get("real_images"))
             for run in runs if run.report}  # fmt: skip
    title = "what eval found, with intervals of 95 %; a cross: other real images instead"
    if len(alike) > 1:
        title += "; of different features or numbers of images: these do not compare"
    elif networks := [network for network, *_ in alike if network]:
        title += f"; features of: {networks[0]}"
    part.suptitle(title, fontsize="medium")
    for axes, name in zip(_axes(part, len(names)), names, strict=True):
        for place, (run, colour) in enumerate(zip(runs, colours, strict=True)):
            value, best = run.report.get(name), run.report.get(f"{name}_real")
            if not run.report:
                where = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": "small"}
                axes.text(0.02, place, "not judged", color=colour, **where)
            if not isinstance(value, (int, float)):
                continue
            low, high = run.report.get("intervals", {}).get(name, [value, value])
            # A percentile may lie on the other side of the figure itself.
            error = [[max(value - low, 0)], [max(high - value, 0)]]
            axes.errorbar(value, place, xerr=error, fmt="o", color=colour, capsize=3)
            if isinstance(best, (int, float)):
                axes.plot(best, place, "x", color=colour)
        axes.set(title=_FIGURES[name], yticks=[], ylim=(len(runs) - 0.4, -0.6))
        axes.title.set_fontsize("medium")
        axes.grid(alpha=0.3)


def _draw_pictures(part: Any, runs: Sequence[_Run], colours: Sequence[str], _: bool) -> None:
    for axes, run, colour in zip(part.subplots(1, len(runs), squeeze=False)[0], runs, colours, strict=True):
        axes.set_axis_off()
        if run.picture is not None:
            axes.imshow(run.picture, interpolation="antialiased")
        axes.set_title(run.caption, fontsize="medium", color=colour, parse_math=False)


def _draw_settings(
    part: Any, runs: Sequence[_Run], colours: Sequence[str], differences: Mapping[str, Sequence[str]]
) -> None:
    axes = part.subplots()
    axes.set_axis_off()
    table = axes.table(
        [[key, *row] for key, row in differences.items()],
        colLabels=["settings that differ", *(printable(run.name) for run in runs)], loc="center", cellLoc="left",
        bbox=[0, 0, 1, 1], colWidths=[1.0] * (len(runs) + 1),
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("0.8")
        cell.get_text().set_parse_math(False)
        if row == 0 and column > 0:
            cell.get_text().set_color(colours[column - 1])
