"""Results for people: a table, Markdown, and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from genimg_fast.bench.case import REFERENCE
from genimg_fast.bench.results import Change, Result, Row
from genimg_fast.bench.statistics import Ratio, Verdict
from genimg_fast.data.optional import optional_import

COLUMNS = (
    "case",
    "pass",
    "ms",
    "x eager",
    "x strongest",
    "",
    "cold",
    "fresh",
    "of bound",
    "MB",
    "x eager",
    "error",
)
EXPLAINED = """\
x: the other's time over ours, above 1 ours is faster, with the interval of 95% over processes and rounds;
strongest: the fastest of all others; cold: x strongest with inputs in no cache; fresh: with new memory;
of bound: of the least time, and whether bytes, operations or calls take it at this machine's rates, just measured;
MB: memory at the peak;
error: largest against float64; no figure stands here that did not pass that comparison; ?: the run is unsound"""


def cells_of(row: Row, result: Result) -> list[str]:
    """Write a row of the table.

    Args:
        row: The row.
        result: What it is of.

    Returns:
        A text for each of :data:`COLUMNS`.
    """
    if not row.seconds.get("warm"):
        reason = row.skipped or row.wrong.get(row.judged) or "not measured"
        return [row.name, row.pass_, "-", *[""] * 8, reason]
    seconds, strongest = row.median(), row.strongest()
    eager, best = row.ratio(REFERENCE), row.ratio(strongest) if strongest else None
    bound = row.bound(result.ceilings)
    memory, error = row.memory.get(row.judged), row.errors.get(row.judged)
    theirs = row.memory.get(REFERENCE)
    others = []
    for state in ("cold", "fresh"):
        peer = row.strongest(state)
        ratio = row.ratio(peer, state) if peer else None
        others.append(f"{ratio.value:.2f}" if ratio else "-")
    return [
        row.name,
        row.pass_,
        f"{(seconds or 0) * 1e3:.3f}",
        str(eager) if eager else "-",
        f"{strongest} {best}" if best and strongest != REFERENCE else "eager" if best else "-",
        best.verdict + "?" * bool(result.unsound) if best else "-",
        *others,
        f"{bound.seconds / seconds:.0%} {bound.what}" if bound and seconds else "-",
        f"{memory[0] / 1e6:.1f}" if memory else "-",
        f"{theirs[0] / memory[0]:.1f}" if memory and theirs and memory[0] else "-",
        f"{error:.0e}" if error is not None else "-",
    ]


def notes_of(result: Result) -> list[str]:
    """List what there is to say beside the table: the slowest case, what was wrong, what a compiler costs."""
    rows = [row for row in result.rows if row.seconds.get("warm")]
    notes = []
    ratios = {
        (row.key, state): ratio
        for row in rows
        for state in row.seconds
        if (peer := row.strongest(state)) and (ratio := row.ratio(peer, state))
    }
    if ratios:
        processes, rounds = min(row.counts() for row in rows)
        notes.append(f"at least {processes} process{'es' * (processes > 1)} with {rounds} rounds each")
        warm = [ratio.verdict for (_, state), ratio in ratios.items() if state == "warm"]
        counts = {v: warm.count(v) for v in get_args(Verdict)}
        notes.append(
            f"warm, against the strongest of each: {', '.join(f'{n} {v}' for v, n in counts.items() if n)}"
        )
        slowest, state = min(ratios, key=lambda key: ratios[key].value)
        notes.append(f"slowest case: {ratios[slowest, state]} of the strongest, {state}, {slowest}")
    steps = [row for row in rows if row.images]
    for row in steps:
        rates = {name: row.images / (row.median(name) or 1) for name in [row.judged, *row.peers()]}
        notes.append(f"{row.name}: " + ", ".join(f"{name} {rate:.0f} images/s" for name, rate in rates.items()))
    waits = [row for row in rows if "compile" in row.first_call]
    if waits:
        longest = max(waits, key=lambda row: max(row.first_call["compile"]))
        pays = longest.pays_after("compile")
        words = f"pays after {pays:.0f} calls against {longest.judged}" if pays is not None else "never pays"
        notes.append(
            f"longest first call of compile: {max(longest.first_call['compile']):.1f} s, which {words} "
            f"({longest.key})"
        )
    for row in result.rows:
        notes += [f"WRONG, no figure: {row.key}: {words}" for words in row.wrong.values()]
    notes += [f"UNSOUND: {words}" for words in result.unsound]
    return notes


def head_of(result: Result) -> list[str]:
    """Say what was measured where, and what the machine reaches."""
    limits, quiet = result.ceilings, result.quiet
    copies = ", ".join(f"{rate / 1e9:.0f} at {size >> 20} MiB" for size, rate in limits.copy.items())
    return [
        f"{result.when}  commit {result.commit}  {'  '.join(f'{k} {v}' for k, v in result.machine.items())}",
        f"this machine copies, GB/s read and written: {copies}; matrix products, GFLOP/s: float32 "
        f"{limits.float32 / 1e9:.0f}, bfloat16 {limits.bfloat16 / 1e9:.0f}",
        f"meanwhile others had {quiet['others']:.0%} of the processors and the hypervisor {quiet['stolen']:.0%}; "
        f"load {quiet['load']:.1f}" + (f"; {quiet['megahertz']:.0f} MHz" if quiet["megahertz"] else ""),
    ]


def table(result: Result) -> str:
    """Write a result as a table for a terminal.

    Args:
        result: The result.

    Returns:
        Several lines.
    """
    rows = [list(COLUMNS), *(cells_of(row, result) for row in result.rows)]
    return "\n".join([*head_of(result), "", *_aligned(rows), "", EXPLAINED, "", *notes_of(result)])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    whole = [row for row in rows if len(row) == len(COLUMNS) and row[2] != "-"]
    widths = [max(len(row[i]) for row in whole) for i in range(len(COLUMNS))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for row in rows:
        cells = [
            c.ljust(w) if i in (0, 1, 3, 4, 5) else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(
            "  ".join(cells).rstrip()
            if row in whole
            else f"{row[0].ljust(widths[0])}  {row[1].ljust(widths[1])}  {row[-1]}"
        )
    lines.insert(1, "-" * max(len(line) for line in lines[:1]))
    return lines


def markdown(result: Result) -> str:
    """Write a result as Markdown.

    Args:
        result: The result.

    Returns:
        A table with the head of the run in front and its notes behind.
    """
    lines = [f"{line}  " for line in head_of(result)]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * 2 + "--:|" + "---|" * 3 + "--:|" * 6]
    lines += ["| " + " | ".join(cells_of(row, result)) + " |" for row in result.rows]
    return "\n".join([*lines, "", EXPLAINED, "", *(f"* {note}" for note in notes_of(result))])


def changes_table(changes: Sequence[Change], alone: Sequence[str]) -> str:
    """Write what changed between two results.

    Args:
        changes: By row.
        alone: Rows that one result alone has.

    Returns:
        Several lines.
    """
    width = max((len(change.key) for change in changes), default=0)
    lines = [f"{c.key.ljust(width)}  {c.ratio.verdict.ljust(11)}  {c.ratio}  {c.beside}" for c in changes]
    lines += [f"{key}: in one of both alone" for key in alone]
    return "\n".join(lines)


def check_picture(path: Path) -> None:
    """Raise a ValueError unless a picture can be written there."""
    if path.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise ValueError(f"must end in .svg, .png or .pdf, got {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"must be in a folder that exists, which {path.parent} does not")


def draw(result: Result, path: Path) -> None:
    """Draw bars of speed-up, and the roofline.

    Args:
        result: The result.
        path: File to write: SVG, PNG or PDF, by its ending.

    Raises:
        ValueError: If there is no row with figures.
    """
    figure_module = optional_import("matplotlib.figure")
    rows = [row for row in result.rows if row.peers()]
    if not rows:
        raise ValueError("must have rows with figures to draw")
    bounded = [row for row in rows if row.moved and row.operations]
    height = 1.6 + 0.30 * len(rows)
    figure = figure_module.Figure(figsize=(15 if bounded else 9, max(4.5, height)), layout="constrained")
    axes = figure.subplots(1, 2 if bounded else 1, squeeze=False, width_ratios=[1.35, 1] if bounded else [1])[0]
    _draw_bars(axes[0], rows)
    if bounded:
        _draw_roofline(axes[1], bounded, result)
    threads = result.machine["threads"]
    where = (
        f"{result.machine['device']}, {threads} thread{'s' * (threads != '1')}, torch {result.machine['torch']}"
    )
    figure.suptitle(
        f"genimg_fast {result.commit} on {where}" + (" - UNSOUND" if result.unsound else ""), fontsize=11
    )
    figure.savefig(path, dpi=110)


_COLOURS = {"eager": "#7f8c9b", "inplace": "#a3b18a", "compile": "#e09f3e", "diffusers": "#9a6fb0"}


def _draw_bars(axes: Any, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(peer for row in rows for peer in row.peers()))
    thickness = 0.8 / len(names)
    largest = 1.0
    for k, peer in enumerate(names):
        first = next(row for row in rows if peer in row.peers())
        for i, row in enumerate(rows):
            ratio: Ratio | None = row.ratio(peer)
            if ratio is None:
                continue
            at = i + (k - (len(names) - 1) / 2) * thickness
            ends = [[ratio.value - ratio.low], [ratio.high - ratio.value]]
            axes.barh(
                at, ratio.value, thickness * 0.9, color=_COLOURS.get(peer), xerr=ends, ecolor="#333333",
                error_kw={"elinewidth": 0.8}, label=peer if row is first else None,
            )  # fmt: skip
            largest = max(largest, ratio.high)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.key for row in rows], fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlim(0, largest * 1.05)
    judged = " or ".join(dict.fromkeys(row.judged for row in rows))
    axes.set_xlabel(f"time of the other / time of {judged}: right of 1, {judged} is faster")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right", title="the other", title_fontsize=8)


def _draw_roofline(axes: Any, rows: Sequence[Row], result: Result) -> None:
    np = optional_import("numpy")
    limits = result.ceilings
    copy, peak = max(limits.copy.values()), max(limits.float32, limits.bfloat16)
    intensities = [row.operations / row.moved for row in rows]
    low, high = min(*intensities, 0.5) / 2, max(*intensities, peak / copy) * 4
    x = np.geomspace(low, high, 100)
    slowest = limits.copy[max(limits.copy)]
    axes.loglog(
        x, np.minimum(x * slowest, limits.float32) / 1e9, color="black", linewidth=1.2, label="float32, memory"
    )
    if copy > slowest * 1.2:
        axes.loglog(
            x,
            np.minimum(x * copy, limits.float32) / 1e9,
            color="black",
            linewidth=0.8,
            linestyle="--",
            label="float32, caches",
        )
    axes.loglog(
        x,
        np.minimum(x * slowest, peak) / 1e9,
        color="grey",
        linewidth=0.8,
        linestyle=":",
        label="bfloat16, memory",
    )
    for name, colour, marker in ((None, "#1f6f8b", "o"), (REFERENCE, _COLOURS["eager"], "x")):
        points = [(r.operations / r.moved, r.operations / s / 1e9) for r in rows if (s := r.median(name))]
        axes.scatter(
            *zip(*points, strict=True), color=colour, marker=marker, s=26, label=name or "genimg_fast", zorder=3
        )
    axes.xaxis.set_minor_formatter(optional_import("matplotlib.ticker").NullFormatter())
    axes.set_xlabel("operations for each byte that has to move")
    axes.set_ylabel("GFLOP/s, of the operations that are needed")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="lower right")
