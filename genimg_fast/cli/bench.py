"""``genimg-fast bench``: how fast the kernels are on this machine, against all others that compute the same."""

import sys
from pathlib import Path
from typing import Any, Literal

from genimg_fast._close_names import did_you_mean
from genimg_fast.bench import report
from genimg_fast.bench.case import Case, Pass
from genimg_fast.bench.results import NOT_REACHED, Result, changes, load
from genimg_fast.bench.runs import InterruptedRunError, built, chosen, run
from genimg_fast.cli.arguments import Device, blaming, ending_at_signals, find_device
from genimg_fast.cli.commands import add_function
from genimg_fast.options import File, Folder, OptionError, PositiveFloat, PositiveInt

COMMANDS = ("run", "compare", "show")


def add(commands: Any) -> None:
    """Add the command, with subcommands; without one it runs."""
    text = "Time the kernels, models and your own code against all others that compute the same."
    parser = commands.add_parser(
        "bench",
        help=text,
        description=f"{text} The word run may be left out: bench ops, bench all, bench FILE.py:F.",
    )
    parser.prepare = lambda args: args if args[:1] and args[0] in (*COMMANDS, "-h", "--help") else ["run", *args]
    ways = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    for function in (run_cases, compare_results, show):
        add_function(ways, function, name=function.__name__.partition("_")[0])


def run_cases(
    what: str = "ops", *, filter: list[str] | None = None, device: Device = "auto",
    dtype: list[Literal["float32", "bfloat16"]] | None = None, threads: PositiveInt | None = None,
    peers: list[str] | None = None, passes: list[Pass] | None = None, processes: PositiveInt | None = None,
    time_limit: PositiveFloat | None = None, base: str | None = None, out: Folder = Path("bench-results"),
    json: File | None = None, csv: File | None = None, plot: File | None = None,
) -> int:  # fmt: skip
    """Time cases in several fresh processes, after a look whether all contenders compute the same.

    The short list of cases runs without a filter; a filter looks in the long one. Of your own file, FUNCTION takes
    nothing and returns a gf.bench.Case, or a dictionary of some. The exit status is 1 if a judged contender is
    wrong, or slower than --base.

    Args:
        what: ``ops``, ``models``, ``all``, or ``FILE.py:FUNCTION``.
        filter: Words that a case's name must hold, all of them; default: the short list.
        device: ``cpu``, ``cuda``; ``auto``: a GPU if there is one.
        dtype: Types of data; default: both.
        threads: Threads of each process; default: torch's own choice.
        peers: Contenders beside ours and eager: inplace, compile, compile-float32 (a training loop without the
            precision and layout of ours), diffusers; on a GPU graph (eager as a CUDA graph), and liger where Liger
            Kernel is installed; or none; default: all.
        passes: What to time: forward, both (forward and backward), step; default: all that a case has.
        processes: Fresh processes, one after the other; their differences are part of the interval; default: 5.
            With --base pairs of them, as many as it takes until intervals are narrow, at most 12 by default.
        time_limit: Minutes for all of it.
        base: Revision of a checkout to build and to compare with: in pairs of processes that take turns, round by
            round; no other contender is timed.
        out: Folder of all results; nothing in it is overwritten.
        json: File for the result, instead of one in that folder.
        csv: File for a line of each row and contender.
        plot: File for a picture of it, .svg, .png or .pdf.

    Example:
        genimg-fast bench
        genimg-fast bench all --time-limit 10 --plot bench.svg
        genimg-fast bench ops --filter batch_norm_act 128x64 --dtype float32
        genimg-fast bench mine.py:softmax --json softmax.json
        genimg-fast bench ops --filter GRU --base HEAD~1
    """
    where = str(find_device(device)).partition(":")[0]
    if what in ("ops", "models", "all") or ":" in what:
        with blaming("what" if ":" in what else "filter", (ValueError,)):
            entries, own = chosen(what, filter or [], dtype or [], passes or [])
    else:
        raise OptionError("what", f"must be ops, models, all or FILE.py:FUNCTION, got {what!r}")
    if plot is not None:
        with blaming("plot"):
            report.check_picture(plot)
    for name, file in (("json", json), ("csv", csv)):
        if file is not None:
            with blaming(name):
                report.check_file(file)
    if json is None or base is not None:
        with blaming("out"):
            out.mkdir(parents=True, exist_ok=True)
    if base is not None:
        for name, given in (("peers", peers not in (None, ["none"])), ("plot", plot is not None)):
            if given:
                raise OptionError(name, "cannot go with --base, of which the judged contender alone is timed")
    _check_peers(peers or [], entries[0].case(where) if own else None)
    limit = None if time_limit is None else 60 * time_limit
    options: dict[str, Any] = {
        "own": own, "device": where, "threads": threads, "peers": peers, "passes": passes or [],
        "processes": processes, "time_limit": limit, "progress": True,
    }  # fmt: skip
    stopped = None
    try:
        with ending_at_signals("measuring"):
            if base is None:
                results = run(entries, **options)
            else:
                with blaming("base", (ValueError,)), built(base, where) as place:
                    results = run(entries, base=place, **options)
    except InterruptedRunError as error:
        results, stopped = error.results, error.__cause__
        if stopped is not None and not any(row.seconds for row in results[-1].rows):
            raise stopped from None
    result = results[-1]
    print(report.table(result))
    slower = False
    if base is not None:
        found, alone = changes(*results)
        slower = any(change.ratio.verdict == "slower" for change in found)
        print(f"\nagainst {results[0].commit}:\n{report.changes_table(found, alone)}")
        print(results[0].save_in(out))
    _write(result, out, json, csv, plot)
    if stopped is not None:
        raise stopped
    if time_limit is not None and all(row.skipped == NOT_REACHED for row in result.rows):
        print(f"nothing was measured: {time_limit:g} minutes do not suffice; give more, or a narrower --filter")
        return 1
    return 1 if slower or any(row.judged in row.wrong for row in result.rows) else 0


def _check_peers(peers: list[str], own: Case | None) -> None:
    known = ["inplace", "compile-float32", "diffusers", "liger"] if own is None else list(own.contenders)
    known += ["compile", "graph"]
    for name in peers:
        if name not in (*known, "none"):
            hint = did_you_mean(name, known)
            raise OptionError("peers", f"must be of {', '.join(known)}, or none, got {name!r}{hint}")


def _write(result: Result, out: Path, json: Path | None, csv: Path | None, plot: Path | None) -> None:
    if json is not None:
        with blaming("json"):
            result.save(json)
    else:
        with blaming("out"):
            json = result.save_in(out)
    print(json)
    if csv is not None:
        with blaming("csv"):
            csv.write_text(result.as_csv())
        print(csv)
    if plot is not None and any(row.peers() for row in result.rows):
        with blaming("plot"):
            report.draw(result, plot)
        print(plot)


def compare_results(first: Path, second: Path) -> int:
    """Compare two results row by row: faster, slower, the same, or cannot tell.

    Of two that --base measured in turns, rounds are pairs. Of other times, a change counts that shows both in
    seconds and in the times of yardsticks, which were timed in the same rounds and never change. The exit status
    is 1 if a row is slower in the second.

    Args:
        first: JSON file of a run, the earlier.
        second: JSON file of another, the later.

    Example:
        genimg-fast bench compare before.json after.json
    """
    with blaming("first"):
        before = load(first)
    with blaming("second"):
        after = load(second)
    found, alone = changes(before, after)
    if not found:
        raise OptionError("second", f"must have rows that {first} has, too")
    print(report.changes_table(found, alone))
    for file, result in ((first, before), (second, after)):
        for words in result.unsound:
            print(f"{file} is UNSOUND: {words}", file=sys.stderr)
    return 1 if any(change.ratio.verdict == "slower" for change in found) else 0


def show(result: Path, *, plot: File | None = None) -> int:
    """Show a result as Markdown, and draw it.

    Args:
        result: JSON file of a run.
        plot: File for a picture of it, .svg, .png or .pdf.

    Example:
        genimg-fast bench show bench-results/2026-11-30-120000-abcdef0.json --plot bench.svg > bench.md
    """
    with blaming("result"):
        found = load(result)
    if plot is not None:
        with blaming("plot"):
            report.check_picture(plot)
    print(report.markdown(found))
    if plot is not None:
        with blaming("plot"):
            report.draw(found, plot)
        print(plot, file=sys.stderr)  # what is printed otherwise is Markdown, which may go into a file
    return 0
