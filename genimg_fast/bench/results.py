"""What a run found: rows with all samples, the machine and the commit, in one JSON file of a fixed form."""

import csv
import io
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from genimg_fast.bench.machine import Bound, Ceilings, bound_of
from genimg_fast.bench.statistics import Ratio, change_of, ratio_of

SCHEMA = 3
OLDER = (1, 2)  # forms that lack what has a default here
NOT_REACHED, INTERRUPTED = "not reached within the time limit", "not reached before the interruption"


@dataclass
class Row:
    """One pass of one case.

    Attributes:
        name: The case.
        pass_: ``"forward"``, ``"both"`` or ``"step"``.
        judged: The contender that is judged.
        dtype: Of the data, ``"float32"`` ..., or nothing.
        moved: Bytes that have to be moved at least.
        operations: Additions and multiplications that have to be done at least.
        images: Images of a step, 0 of other passes.
        skipped: Why nothing was measured, or nothing.
        wrong: Contenders that have no figures, and why.
        errors: Largest relative error against float64, by contender.
        memory: Bytes at the peak, and kept for backward, by contender.
        first_call: Seconds of the first call, compilation included, by contender, of each process in which the
            compiler found nothing in its caches.
        seconds: By state, then contender, of each process, of each round; nothing of a process without the
            contender.
        kinds: Of a step, seconds under a profiler by contender, then kind of operator.
        hurried: Whether compiled contenders, or memory that is cold or fresh, were left out for want of time.
        yardsticks: Seconds, of each process and each warm round, of what no version of the package changes.

    Example:
        >>> import genimg_fast as gf
        >>> row = gf.bench.Row("softmax", "both", "mine", seconds={"warm": {"mine": [[1.0]], "eager": [[2.0]]}})
        >>> row.strongest(), round(row.ratio("eager").value, 3)
        ('eager', 2.0)
    """

    name: str
    pass_: str = ""
    judged: str = ""
    dtype: str = ""
    moved: int = 0
    operations: int = 0
    images: int = 0
    skipped: str = ""
    wrong: dict[str, str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    memory: dict[str, list[int]] = field(default_factory=dict)
    first_call: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    kinds: dict[str, dict[str, float]] = field(default_factory=dict)
    hurried: bool = False
    yardsticks: dict[str, list[list[float]]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells the row from others."""
        return f"{self.name}, {self.pass_}"

    def peers(self) -> list[str]:
        """List the contenders with figures beside the judged one."""
        return [name for name in self.seconds.get("warm", {}) if name != self.judged]

    def counts(self) -> tuple[int, int]:
        """Count the processes that measured it, and the rounds of the one with the fewest."""
        times = self.seconds.get("warm", {}).get(self.judged, [])
        counts = [len(rounds) for rounds in times if rounds]
        return len(counts), min(counts, default=0)

    def of_one_process(self) -> list[str]:
        """List the contenders, and the states but warm, that one process alone has measured."""
        times = {**self.seconds.get("warm", {})}
        times |= {state: each[self.judged] for state, each in self.seconds.items() if self.judged in each}
        return [name for name, rounds in times.items() if name != "warm" and sum(map(bool, rounds)) == 1]

    def median(self, name: str | None = None, state: str = "warm") -> float | None:
        """Get a contender's seconds: the median over processes of the median over rounds."""
        times = self.seconds.get(state, {}).get(name or self.judged)
        return statistics.median(statistics.median(rounds) for rounds in times if rounds) if times else None

    def ratio(self, peer: str, state: str = "warm") -> Ratio | None:
        """Estimate by how many times the judged contender is faster than a peer."""
        times = self.seconds.get(state, {})
        return ratio_of(times[peer], times[self.judged]) if peer in times and self.judged in times else None

    def strongest(self, state: str = "warm") -> str | None:
        """Name the fastest peer."""
        medians = {name: self.median(name, state) for name in self.peers()}
        known = {name: seconds for name, seconds in medians.items() if seconds is not None}
        return min(known, key=lambda name: known[name]) if known else None

    def bound(self, limits: Ceilings) -> Bound | None:
        """Get the least time that the machine allows, and what it is of, if that is known."""
        dtype = getattr(torch, self.dtype, None)
        bound = bound_of(limits, self.moved, self.operations, dtype, self.pass_)
        return bound if bound.seconds else None

    def pays_after(self, peer: str) -> float | None:
        """Count the calls after which a peer's longer first call is made up for by faster ones, if it ever is."""
        ours, theirs = self.median(), self.median(peer)
        if ours is None or theirs is None or theirs >= ours or peer not in self.first_call:
            return None
        return max(0.0, statistics.median(self.first_call[peer]) - ours) / (ours - theirs)


@dataclass
class Result:
    """What a run found.

    Attributes:
        rows: The rows.
        machine: Facts about the machine and what is installed.
        ceilings: What the machine reaches.
        quiet: What others had of the machine meanwhile.
        canaries: Seconds of what never changes, in the order of time.
        unsound: What speaks against the figures.
        commit: That the package's files are of.
        command: The command line.
        when: Date and time of the start.
        turns: What two results share that were measured in turns, round by round; nothing for one alone.
        schema: Version of this form.

    Example:
        >>> import genimg_fast as gf
        >>> limits = gf.bench.machine.Ceilings({1 << 20: 1e10}, {1 << 20: 1e10}, 1e11, 1e11)
        >>> rows = [gf.bench.Row("softmax", skipped="not reached within the time limit")]
        >>> result = gf.bench.Result(rows, {}, limits, {}, [], [], "abc1234", "", "2026-01-02T03:04:05")
        >>> result.rows[0].skipped
        'not reached within the time limit'
    """

    rows: list[Row]
    machine: dict[str, str]
    ceilings: Ceilings
    quiet: dict[str, float]
    canaries: list[float]
    unsound: list[str]
    commit: str
    command: str
    when: str
    turns: str = ""
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        body = {**asdict(self), "ceilings": self.ceilings._asdict()}
        path.write_text(json.dumps(body) + "\n")

    def save_in(self, folder: Path) -> Path:
        """Write the result into a folder of results, under a name that no other has.

        Args:
            folder: The folder, which is made.

        Returns:
            The file.

        Raises:
            OSError: If it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{datetime.fromisoformat(self.when):%Y-%m-%d-%H%M%S}-{self.commit}"
        for number in range(1000):
            path = folder / f"{stem}{f'-{number}' if number else ''}.json"
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                continue
            self.save(path)
            return path
        raise OSError(f"{folder} has 1000 results of this second")

    def as_csv(self) -> str:
        """Write a line of text for each row, contender and state: its median, and the ratio with its interval."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(
            ["case", "pass", "state", "contender", "seconds", "ratio", "low", "high", "error", "peak_bytes"]
        )
        for row in self.rows:
            for state, contenders in row.seconds.items():
                for name in contenders:
                    ratio = row.ratio(name, state) or Ratio(1, 1, 1)
                    error, peak = row.errors.get(name, ""), row.memory.get(name, [""])[0]
                    lines.writerow(
                        [row.name, row.pass_, state, name, row.median(name, state), *ratio, error, peak]
                    )
        return text.getvalue()


def load(path: str | Path) -> Result:
    """Read a result.

    Args:
        path: Its file.

    Returns:
        The result.

    Raises:
        ValueError: If the file holds none, or one of a form that this version does not know.
        OSError: If it cannot be read.

    Example:
        >>> import genimg_fast as gf
        >>> try:
        ...     gf.bench.load("no-such-file.json")
        ... except OSError:
        ...     print("no such file")
        no such file
    """
    try:
        body: dict[str, Any] = json.loads(Path(path).read_text())
        schema = body["schema"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"must be a result of genimg-fast bench, which {path} is not") from error
    if schema not in (*OLDER, SCHEMA):
        newer = ", of a later version of genimg-fast" if isinstance(schema, int) and schema > SCHEMA else ""
        raise ValueError(f"must be a result of form {SCHEMA} or older; {path} is of form {schema}{newer}")
    body["schema"] = SCHEMA
    try:
        body["rows"] = [Row(**row) for row in body["rows"]]
        limits = body["ceilings"]
        for name in ("copy", "read"):
            limits[name] = {int(size): rate for size, rate in limits[name].items()}
        body["ceilings"] = Ceilings(**limits)
        return Result(**body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"must be a whole result; {path} lacks something, or has too much: {error}") from error


def join(rows: Iterable[Mapping[str, Any]], dtypes: Mapping[str, str]) -> list[Row]:
    """Put together what the processes found.

    Args:
        rows: Of all processes, in the order of time.
        dtypes: Of the data, by case.

    Returns:
        A row for each pass of each case.
    """
    found: dict[tuple[str, str], Row] = {}
    processes: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    hurried: set[str] = set()
    made_up: set[tuple[str, str]] = set()
    for part in rows:
        if "left_out" in part:
            hurried.add(part["name"])
            continue
        if "passes" in part:
            for direction in part["passes"]:
                key = part["name"], direction
                found.setdefault(key, Row(*key, dtype=dtypes.get(part["name"], ""), skipped=NOT_REACHED))
            continue
        name, direction = part["name"], part.get("pass", "")
        if "kinds" in part:  # of steps that were profiled; the timed ones decide what has a row
            if (name, direction) in found:
                row = found[name, direction]
                row.kinds, row.memory = part["kinds"], row.memory | part["memory"]
            continue
        row = found.setdefault((name, direction), Row(name, direction, dtype=dtypes.get(name, "")))
        if "skipped" in part:
            row.skipped = part["skipped"]
            continue
        row.skipped = ""
        row.judged, row.images = part["judged"], part["images"]
        row.moved, row.operations = part["moved"], part["operations"]
        row.wrong |= part["wrong"]
        row.errors |= part["errors"]
        row.memory |= part["memory"]
        for contender, seconds in part["first_call"].items():
            row.first_call.setdefault(contender, []).append(seconds)
        if "made_up" in part:
            made_up.add((name, direction))
            if (
                len(processes[name, direction]) == 1
            ):  # it has all of that one, and an interval over two is of no use
                processes[name, direction].clear()
        processes[name, direction].append(part)
    for key, row in found.items():
        parts = processes[key]
        for state in dict.fromkeys(state for part in parts for state in part["seconds"]):
            row.seconds[state] = _side_by_side([part["seconds"].get(state, {}) for part in parts])
        row.yardsticks = _side_by_side([part["yardsticks"] for part in parts])
        row.hurried = row.name in hurried and key not in made_up
        _drop_wrong(row)
    return list(found.values())


def _side_by_side(parts: Sequence[Mapping[str, list[float]]]) -> dict[str, list[list[float]]]:
    """Give each contender a list for every process, an empty one where it was left out."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: [part.get(name, []) for part in parts] for name in names}


def _drop_wrong(row: Row) -> None:
    """Leave no figure of what is wrong in any process."""
    if row.judged in row.wrong:
        row.seconds, row.yardsticks, row.memory, row.first_call, row.kinds = {}, {}, {}, {}, {}
    for name in row.wrong:
        row.memory.pop(name, None)
        row.first_call.pop(name, None)
        for contenders in row.seconds.values():
            contenders.pop(name, None)


@dataclass(frozen=True)
class Change:
    """How a row of one result differs from that of another.

    Attributes:
        key: The row.
        ratio: By how many times the second is faster.
        beside: How both were compared: in turns, in seconds and in times of yardsticks, or in seconds.
    """

    key: str
    ratio: Ratio
    beside: str


def changes(first: Result, second: Result) -> tuple[list[Change], list[str]]:
    """Compare two results, row by row.

    Of two that were measured in turns, rounds are pairs. Of other times, but of the same versions of torch on the
    same kind of machine, the interval holds what each way to count says: in seconds, and in the times that
    yardsticks took in the same rounds. Where these disagree, the machine has changed, and it cannot be told.

    Args:
        first: The earlier.
        second: The later.

    Returns:
        The changes of the rows that both have, and the rows that one alone has.
    """
    rows = [{row.key: row for row in result.rows if row.seconds.get("warm")} for result in (first, second)]
    turns = bool(first.turns) and first.turns == second.turns
    facts = ("device", "threads", "torch", "torch's SIMD")
    alike = all(first.machine.get(fact) == second.machine.get(fact) for fact in facts)
    common = [key for key in rows[0] if key in rows[1]]
    alone = [key for key in {**rows[0], **rows[1]} if (key in rows[0]) != (key in rows[1])]
    return [_change(key, rows[0][key], rows[1][key], turns, alike) for key in common], alone


def _change(key: str, first: Row, second: Row, turns: bool, alike: bool) -> Change:
    if turns and (ratio := change_in_turns(first, second)) is not None:
        return Change(key, ratio, "in turns")
    before, after = (row.seconds["warm"][row.judged] for row in (first, second))
    ways = [(_ones(before), _ones(after))]
    if alike:
        common = [name for name in first.yardsticks if name in second.yardsticks]
        ways += [(first.yardsticks[name], second.yardsticks[name]) for name in common]
    found = [change_of((before, yardstick[0]), (after, yardstick[1])) for yardstick in ways]
    value = statistics.median(ratio.value for ratio in found)
    ratio = Ratio(value, min(ratio.low for ratio in found), max(ratio.high for ratio in found))
    return Change(key, ratio, "in seconds and in times of yardsticks" if len(ways) > 1 else "in seconds")


def change_in_turns(first: Row, second: Row) -> Ratio | None:
    """Estimate how rows differ whose rounds are pairs.

    Args:
        first: The earlier.
        second: The later.

    Returns:
        By how many times the second is faster; None if their rounds are no pairs.
    """
    before, after = (row.seconds["warm"][row.judged] for row in (first, second))
    pairs = list(zip(before, after, strict=False))  # the last process may have had the time for one of both
    if any(len(a) != len(b) for a, b in pairs):
        return None
    ratio = ratio_of([a for a, _ in pairs], [b for _, b in pairs])
    return ratio if len(pairs) > 1 else Ratio(ratio.value, 0.0, math.inf)


def _ones(times: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[1.0] * len(rounds) for rounds in times]
