"""Results for people: a table, Markdown, and pictures."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from genimg_fast.bench.case import REFERENCE
from genimg_fast.bench.results import Change, Result, Row
from genimg_fast.bench.shares import FUSED, gain_of
from genimg_fast.bench.statistics import Verdict
from genimg_fast.data.optional import optional_import

LEAST_SHARE = 0.005  # of a step's time that is worth a word
COLUMNS = (
    "case",
    "pass",
    "ms",
    "x eager",
    "x strongest",
    "verdict",
    "cold",
    "fresh",
    "of bound",
    "MB",
    "MB x eager",
    "error",
)
EXPLAINED = """\
x: the other's time over ours, the median of pairs, above 1 ours is faster, with the interval of 95%
over processes and rounds;
strongest: the fastest of all others; cold: x strongest with inputs in no cache; fresh: with new memory;
of bound: of the least time, and whether bytes, operations or calls take it at this machine's rates, just measured
(of convolutions, the operations of the direct way: fewer products can be above 100%);
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
    for row in rows:
        notes += step_lines(row) if row.images else []
    hurried = list(dict.fromkeys(row.name for row in rows if row.hurried))
    if hurried:
        notes.append(
            f"without compile, or without cold and fresh memory, for want of time: {', '.join(hurried)}; a longer "
            "--time-limit has all"
        )
    once = list(dict.fromkeys(what for row in rows if row.counts()[0] > 1 for what in row.of_one_process()))
    if once:
        notes.append(
            f"of one process, whatever the others: {', '.join(once)}; such intervals leave out what differs "
            "between processes"
        )
    cached = {row.name for row in rows if "compile" in row.peers()}
    cached -= {row.name for row in rows if "compile" in row.first_call}
    if cached:
        notes.append(
            f"compile found on disk what it needs in {len(cached)} cases, whose first calls say nothing of it; "
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 compiles anew"
        )
    waits = [row for row in rows if "compile" in row.first_call]
    if waits:
        longest = max(waits, key=lambda row: max(row.first_call["compile"]))
        pays = longest.pays_after("compile")
        words = f"pays after {pays:.0f} calls against {longest.judged}" if pays is not None else "never pays"
        notes.append(
            f"longest first call of compile: {max(longest.first_call['compile']):.1f} s, which {words} "
            f"({longest.key})"
        )
    for row in rows:
        unknown = [name for name in row.peers() if name != REFERENCE and name not in row.errors]
        if unknown:
            notes.append(f"NOT COMPARED with eager, only timed: {', '.join(unknown)} ({row.key})")
    for row in result.rows:
        notes += [f"WRONG, no figure: {row.key}: {words}" for words in row.wrong.values()]
    notes += [f"UNSOUND: {words}" for words in result.unsound]
    return notes


def step_lines(row: Row) -> list[str]:
    """Say how many images a second a training step takes, and where its time goes.

    Args:
        row: Of a step.

    Returns:
        A line with the rates, and, if the step was profiled, one with the shares of the reference's time, by how
        many times ours is faster in each, and what that predicts by Amdahl's law.
    """
    rates = []
    for name in [row.judged, *row.peers()]:
        memory = f" ({row.memory[name][0] / 1e6:.0f} MB)" if name in row.memory else ""
        rates.append(f"{name} {row.images / (row.median(name) or 1):.0f} images/s{memory}")
    lines = [f"{row.name}: {', '.join(rates)}"]
    theirs, ours, ratio = row.kinds.get(REFERENCE), row.kinds.get(row.judged), row.ratio(REFERENCE)
    if theirs and ours and ratio:
        fused = [kind for kind in FUSED if theirs[kind] >= LEAST_SHARE * sum(theirs.values())]
        lines.append(
            f"{row.name}, eager's time: {shares_of(theirs, ours)}; {' and '.join(fused) or 'fused ones'} alone "
            f"predict {gain_of(theirs, ours, fused):.2f}x, all together {gain_of(theirs, ours, theirs):.2f}x; "
            f"measured {ratio.value:.2f}x"
        )
    return lines


def shares_of(theirs: Mapping[str, float], ours: Mapping[str, float]) -> str:
    """Say where the time of a step goes, largest first, and by how many times ours is faster there.

    Args:
        theirs: Seconds of the reference's step, by kind of operator.
        ours: Likewise of ours.

    Returns:
        Words, without the kinds that take next to nothing.
    """
    whole = sum(theirs.values())
    return ", ".join(
        f"{kind} {seconds / whole:.0%}" + (f" ({seconds / ours[kind]:.1f}x)" if ours[kind] else "")
        for kind, seconds in sorted(theirs.items(), key=lambda item: -item[1])
        if seconds >= LEAST_SHARE * whole
    )


def head_of(result: Result) -> list[str]:
    """Say what was measured where, and what the machine reaches."""
    limits, quiet = result.ceilings, result.quiet
    copies = ", ".join(f"{rate / 1e9:.0f} at {size >> 20} MiB" for size, rate in limits.copy.items())
    return [
        f"{result.when}  commit {result.commit}  {'  '.join(f'{k} {v}' for k, v in result.machine.items())}",
        result.command,
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
    check_file(path)


def check_file(path: Path) -> None:
    """Raise a ValueError unless a file can be written there: better before the time is spent than after."""
    if not path.absolute().parent.is_dir():
        raise ValueError(f"must be in a folder that exists, which {path.parent} does not")
    if path.is_dir():
        raise ValueError(f"must be a file, and {path} is a folder")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ValueError(f"must be a file that can be written, and {path} cannot")


def draw(result: Result, path: Path, rows: Sequence[Row] | None = None) -> None:
    """Draw how many times as fast as others it is, and the roofline.

    Of a case that was timed forward and in both directions, the picture has both directions.

    Args:
        result: The result.
        path: File to write: SVG, PNG or PDF, by its ending.
        rows: Those to draw; default: all.

    Raises:
        ValueError: If there is no row with figures.
    """
    figure_module = optional_import("matplotlib.figure")
    rows = [row for row in (result.rows if rows is None else rows) if row.peers()]
    both = {row.name for row in rows if row.pass_ == "both"}
    rows = [row for row in rows if row.pass_ != "forward" or row.name not in both]
    if not rows:
        raise ValueError("must have rows with figures to draw")
    bounded = [row for row in rows if row.moved and row.operations]
    figure = figure_module.Figure(
        figsize=(16 if bounded else 9, max(6.5, 1.8 + 0.5 * len(rows))), layout="constrained"
    )
    axes = figure.subplots(1, 2 if bounded else 1, squeeze=False)[0]
    _draw_ratios(axes[0], rows)
    if bounded:
        _draw_roofline(axes[1], bounded, result)
    threads = result.machine["threads"]
    where = (
        f"{result.machine['device']}, {threads} thread{'s' * (threads != '1')}, torch {result.machine['torch']}"
    )
    figure.suptitle(f"genimg_fast {result.commit} on {where}{' - UNSOUND' * bool(result.unsound)}", fontsize=15)
    figure.savefig(path, dpi=100, metadata={"Title": title_of(result)})


def title_of(result: Result) -> str:
    """What a picture's file says that it is of."""
    return f"genimg-fast bench {result.commit} {result.when}"


_COLOURS = {
    "eager": "#54626f", "inplace": "#8aa17a", "compile": "#e08a1e", "compile-float32": "#f2c879",
    "diffusers": "#9a6fb0",
}  # fmt: skip
_FAMILIES = (
    "#1f6f8b", "#c0392b", "#2e8b57", "#7d3c98", "#b7950b", "#34495e", "#e67e22", "#d16ba5", "#6b4226", "#93b81e",
)  # fmt: skip
_MARKERS = (
    ("o", 9),
    ("D", 6),
)  # in turns, and their sizes: a diamond leaves of a circle below it enough to be seen
_SIZE = 12  # of text that is read from the last row of a room


def _height(row: int, peer: str, peers: Sequence[str]) -> float:
    """Where a point stands: around the line of its row, and nearer to it than to any other."""
    return row + 0.6 / len(peers) * (peers.index(peer) - (len(peers) - 1) / 2)


def _draw_ratios(axes: Any, rows: Sequence[Row]) -> None:
    """A line for each row, and on it a point with an interval for each of the others."""
    names = list(dict.fromkeys(peer for row in rows for peer in row.peers()))
    for peer in names:
        found = [(i, ratio) for i, row in enumerate(rows) if (ratio := row.ratio(peer)) is not None]
        values = [ratio.value for _, ratio in found]
        ends = [[r.value - r.low for _, r in found], [r.high - r.value for _, r in found]]
        heights = [_height(i, peer, rows[i].peers()) for i, _ in found]
        axes.errorbar(
            values, heights, xerr=ends, fmt="o", markersize=7, elinewidth=1.5, color=_COLOURS.get(peer), label=peer
        )  # fmt: skip
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low, high = min(low, 0.8), max(high, 1.6)
    axes.axvspan(low, 1, color="#f6dcd9", zorder=0)
    axes.set_xlim(low, high)
    ticks = [t for t in (0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100) if low <= t <= high]
    if high / low > 20:
        ticks = ticks[::2]
    axes.set_xticks(ticks, [f"{t:g}x" for t in ticks], fontsize=_SIZE)
    axes.xaxis.set_minor_locator(optional_import("matplotlib.ticker").NullLocator())
    axes.axvline(1, color="black", linewidth=1.2)
    names_shown = [row.key if row.pass_ == "forward" else row.name for row in rows]
    axes.set_yticks(range(len(rows)), names_shown, fontsize=_SIZE - 1)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    judged = " or ".join(dict.fromkeys(row.judged for row in rows))
    passes = "\nforward + backward" if any(row.pass_ == "both" for row in rows) else ""
    axes.set_xlabel(f"time of the other / time of {judged}{passes}", fontsize=_SIZE + 1)
    axes.grid(axis="both", alpha=0.3)
    axes.legend(fontsize=_SIZE, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(names), frameon=False)


def _draw_roofline(axes: Any, rows: Sequence[Row], result: Result) -> None:
    """What bytes and operations allow, and for each row an arrow from the reference to ours."""
    np = optional_import("numpy")
    limits = result.ceilings
    memory, cache = limits.copy[max(limits.copy)], max(limits.copy.values())
    peak = max(limits.float32, limits.bfloat16)
    intensities = [row.operations / row.moved for row in rows]
    low, high = min(*intensities, 0.5) / 2, max(*intensities, peak / memory) * 3
    x = np.geomspace(low, high, 200)
    axes.loglog(
        x, np.minimum(x * memory, limits.float32) / 1e9, color="black", linewidth=2, label="memory, float32"
    )
    if cache > memory * 1.2:
        axes.loglog(x, np.minimum(x * cache, limits.float32) / 1e9, "--", color="black", label="caches, float32")
    if peak > limits.float32 * 1.05:
        axes.loglog(
            x, np.minimum(x * memory, peak) / 1e9, ":", color="black", linewidth=2, label="memory, bfloat16"
        )
    families = list(dict.fromkeys(row.name.split()[0] for row in rows))
    styles: dict[str, dict[str, Any]] = {}
    for i, family in enumerate(families):
        marker, size = _MARKERS[i % len(_MARKERS)]
        colour = _FAMILIES[i % len(_FAMILIES)]
        styles[family] = {"color": colour, "marker": marker, "markersize": size, "zorder": 3 + i % len(_MARKERS)}
    for row in rows:
        at, ours, theirs = row.operations / row.moved, row.median(), row.median(REFERENCE)
        if not ours:
            continue
        style = styles[row.name.split()[0]]
        rate = row.operations / ours / 1e9
        if theirs:
            start = row.operations / theirs / 1e9
            axes.plot([at, at], [start, rate], color=style["color"], linewidth=1.2, alpha=0.6)
            axes.plot(at, start, markerfacecolor="white", **style)
        axes.plot(at, rate, **style)
    for family, style in styles.items():
        axes.plot([], [], linestyle="none", label=family, **style)
    axes.plot([], [], "o", markerfacecolor="white", color="grey", label=f"the same, {REFERENCE}")
    axes.xaxis.set_minor_formatter(optional_import("matplotlib.ticker").NullFormatter())
    axes.tick_params(labelsize=_SIZE)
    axes.set_xlim(low, high)
    axes.set_xlabel("operations for each byte that has to move", fontsize=_SIZE + 1)
    axes.set_ylabel("GFLOP/s, of the operations that are needed", fontsize=_SIZE + 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=_SIZE, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)
