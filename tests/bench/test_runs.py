"""How a run spends its time."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genimg_fast import ops
from genimg_fast.bench import Result, report, runs, worker
from genimg_fast.bench.catalog import find
from genimg_fast.bench.machine import Ceilings
from genimg_fast.bench.runs import InterruptedRunError, chosen, run


class Processes:
    """Stands for processes that measure: a pass takes the budget, and in the first one a check and a compiler.

    Attributes:
        clock: Seconds since the beginning.
        jobs: What each process was to do.
        interrupted: In which of them, and before which of its cases, Ctrl-C comes.
    """

    def __init__(self, check: float, compiler: float, interrupted: tuple[int, int] = (0, 0)) -> None:
        self.clock = 0.0
        self.check, self.compiler = check, compiler
        self.jobs: list[dict[str, Any]] = []
        self.interrupted = interrupted

    def rows(
        self, job: dict[str, Any], version: Path, ends: float | None, running: Any = None, module: str = "worker"
    ) -> Iterator[dict[str, Any]]:
        if module == "shares":
            self.clock += 10
            kinds = {"eager": {"other": 1.0}, "genimg_fast": {"other": 1.0}}
            yield from ({"name": n, "pass": "step", "kinds": kinds, "memory": {}} for n in job["names"])
            return
        self.jobs.append(job)
        for number, name in enumerate(job["names"]):
            if (len(self.jobs), number) == self.interrupted:
                raise KeyboardInterrupt
            passes = ["step"] if find(name).step else ["forward", "both"]
            yield {"name": name, "passes": passes}
            for direction in passes:
                compiled = "compile" not in job["without"].get(f"{name}, {direction}", ())
                takes = job["budget"] + job["whole"] * (self.check + compiled * self.compiler)
                if ends is not None and self.clock + takes > ends:
                    self.clock = ends
                    return
                self.clock += takes
                contenders = ("genimg_fast", "eager", *(["compile"] if compiled else []))
                times = {contender: [1e-3, 1e-3] for contender in contenders}
                yield {
                    "name": name, "pass": direction, "moved": 0, "operations": 0, "images": 0,
                    "judged": "genimg_fast", "canary": 1e-3, "wrong": {}, "errors": {}, "memory": {},
                    "first_call": {}, "seconds": dict.fromkeys(job["states"], times), "yardsticks": {},
                }  # fmt: skip


def measured(monkeypatch: pytest.MonkeyPatch, limit: float | None, **takes: Any) -> tuple[Processes, Result]:
    processes = Processes(**takes)
    monkeypatch.setattr(runs, "_rows_of", processes.rows)
    monkeypatch.setattr(runs.time, "monotonic", lambda: processes.clock)
    monkeypatch.setattr(runs.machine, "ceilings", lambda device: Ceilings({1: 1e9}, {1: 1e9}, 1e9, 1e9))
    monkeypatch.setattr(runs.machine, "canary", lambda device: 1e-3)
    (result,) = run(chosen("all", [], [])[0], time_limit=limit)
    return processes, result


def test_a_limit_that_suffices_is_used_and_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    processes, result = measured(monkeypatch, 600, check=0.5, compiler=0.2)
    assert 450 < processes.clock <= 600
    assert all(row.counts() >= (runs.PROCESSES, 2) for row in result.rows)
    assert not any(row.hurried for row in result.rows)
    assert all("compile" in row.peers() for row in result.rows)
    assert all({"warm", "cold", "fresh"} == {*row.seconds} for row in result.rows if row.pass_ != "step")


def test_where_compilers_take_too_long_every_case_has_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    processes, result = measured(monkeypatch, 600, check=1, compiler=9)
    assert processes.clock <= 600
    hurried = [row for row in result.rows if row.hurried]
    assert 0 < len(hurried) < len(result.rows)
    assert all(row.counts()[0] >= runs.FEWEST_PROCESSES for row in result.rows)
    assert all(row.ratio("eager") is not None for row in result.rows)
    assert all("compile" in row.peers() for row in result.rows if not row.hurried)
    assert all(job["states"] == ["warm"] and not job["whole"] for job in processes.jobs[2:-1])
    assert all(row.ratio("compile") for row in result.rows if row.name.startswith("DCGAN-64"))  # those come first
    notes = report.notes_of(result)
    assert any(line.startswith("without compile") for line in notes)
    assert any(line.startswith("of one process, whatever the others: compile") for line in notes)


def test_time_that_is_left_goes_to_what_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    processes, result = measured(monkeypatch, 600, check=1, compiler=4)
    *_, last = processes.jobs
    left_out = processes.jobs[1]["names"]
    assert last["whole"]
    assert last["names"][: len(left_out)] == left_out
    with_all = [row for row in result.rows if "cold" in row.seconds]
    assert {row.name for row in with_all} & {*left_out}
    assert all("compile" in row.peers() and not row.hurried for row in with_all)
    assert processes.clock > 550


def test_rows_stand_in_the_order_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    _, result = measured(monkeypatch, 60, check=1, compiler=1)
    names = [entry.name for entry in chosen("all", [], [])[0]]
    assert list(dict.fromkeys(row.name for row in result.rows)) == names


def test_the_command_has_what_decides_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENIMG_FAST_BACKEND", raising=False)
    monkeypatch.setenv("GENIMG_FAST_WINOGRAD", "0")
    monkeypatch.setattr(sys, "argv", ["genimg-fast", "bench", "ops"])
    _, result = measured(monkeypatch, 60, check=1, compiler=1)
    assert result.command == "GENIMG_FAST_WINOGRAD=0 genimg-fast bench ops"


def test_what_the_limit_does_not_reach_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    processes, result = measured(monkeypatch, 30, check=5, compiler=5)
    assert processes.clock <= 30
    missing = [row for row in result.rows if row.skipped]
    assert missing
    assert {row.skipped for row in missing} == {runs.NOT_REACHED}


def test_without_a_limit_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    processes, result = measured(monkeypatch, None, check=5, compiler=60)
    assert len(processes.jobs) == runs.PROCESSES
    assert all(row.counts()[0] == runs.PROCESSES and not row.hurried for row in result.rows)


@pytest.mark.parametrize("interrupted", [(1, 5), (2, 5)])
def test_an_interruption_keeps_what_was_measured(
    interrupted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InterruptedRunError) as stopped:
        measured(monkeypatch, None, check=1, compiler=1, interrupted=interrupted)
    assert isinstance(stopped.value.__cause__, KeyboardInterrupt)
    (result,) = stopped.value.results
    assert len({row.name for row in result.rows if row.counts()[0] == interrupted[0]}) == 5
    missing = {row.skipped for row in result.rows if not row.seconds}
    assert missing == ({runs.INTERRUPTED} if interrupted[0] == 1 else set())
    assert result.unsound[-1] == "it was interrupted"


@pytest.mark.parametrize("name", ["winograd_conv2d 64x64", "bf16_conv_weight 64x64"])
def test_a_revision_without_an_operator_skips_its_cases(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ops, "winograd_conv2d")
    monkeypatch.setitem(sys.modules, "genimg_fast.ops.bf16_conv", None)
    names = [entry.name for entry in chosen("ops", [name], [])[0]]
    written: list[dict[str, Any]] = []
    worker.work({"threads": None, "device": "cpu", "turns": None, "names": names, "own": None}, written.append)
    assert [row["name"] for row in written] == names
    assert all(name.split()[0].removesuffix("_weight") in row["skipped"] for row in written)


def test_a_revision_that_the_benchmark_does_not_run_in_is_named(tmp_path: Path) -> None:
    package = tmp_path / "genimg_fast" / "bench"
    package.mkdir(parents=True)
    (package / "worker.py").write_text("import not_there_yet")
    (tmp_path / "revision").write_text("abc1234")
    with pytest.raises(ValueError, match=r"abc1234 does not run .* No module named 'not_there_yet'"):
        list(runs._rows_of({}, tmp_path, None))
