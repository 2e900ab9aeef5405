"""Intervals and verdicts, and files of results."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genimg_fast.bench import Ratio, Result, Row, load, report
from genimg_fast.bench.machine import Ceilings, Quiet, bound_of, unsound
from genimg_fast.bench.results import changes, join
from genimg_fast.bench.statistics import change_of, ratio_of

MIB = 1 << 20


def samples(seconds: float, seed: int, drift: float = 0.0, rounds: int = 40) -> list[list[float]]:
    """Of five processes, with noise of 3 percent, of which each has 1 percent of its own, and outliers."""
    generator = np.random.default_rng(seed)
    found = []
    for process in range(5):
        times = (
            seconds * (1 + drift * process) * np.exp(generator.normal(0, 0.03, rounds) + generator.normal(0, 0.01))
        )
        times[::9] *= 3
        found.append(times.tolist())
    return found


def result_of(ours: float, seed: int = 0, eager: float = 2e-3, yardstick: float = 1e-3, **facts: str) -> Result:
    row = Row(
        "op 1", "both", "genimg_fast", "float32", moved=8 * MIB, operations=MIB, errors={"genimg_fast": 1e-7},
        memory={"genimg_fast": [MIB, 0], "eager": [2 * MIB, MIB]},
        first_call={"genimg_fast": [ours], "eager": [eager]},
        seconds={"warm": {"genimg_fast": samples(ours, seed), "eager": samples(eager, seed + 100)}},
        yardsticks={"memory": samples(yardstick, seed + 200), "arithmetic": samples(1e-4, seed + 300)},
    )  # fmt: skip
    machine = {"device": "a", "threads": "2", "torch": "3", "torch's SIMD": "-", **facts}
    limits = Ceilings({MIB: 4e10, 64 * MIB: 1e10}, {MIB: 5e10}, 1e11, 2e11)
    quiet = Quiet(0, 0, 0.1, 0, 0)._asdict()
    return Result([row], machine, limits, quiet, [1e-3], [], "abc1234", "genimg-fast bench", "2026-01-02T03:04:05")


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((1.3, 1.2, 1.4), "faster"),
        ((0.8, 0.7, 0.9), "slower"),
        ((1.0, 0.99, 1.01), "same"),
        ((1.01, 1.005, 1.015), "same"),
        ((1.1, 0.95, 1.3), "cannot tell"),
    ],
)
def test_verdict(interval: tuple[float, float, float], verdict: str) -> None:
    assert Ratio(*interval).verdict == verdict


def test_an_interval_holds_the_true_ratio() -> None:
    held = 0
    for seed in range(40):
        ratio = ratio_of(samples(1.5, 2 * seed), samples(1.0, 2 * seed + 1))
        assert ratio.low <= ratio.value <= ratio.high
        held += ratio.low <= 1.5 <= ratio.high
    assert held >= 37  # 95% of many


def test_a_slower_machine_is_no_change() -> None:
    before, after = (samples(1e-3, 0), samples(2e-3, 1)), (samples(3e-3, 2), samples(6e-3, 3))
    change = change_of(before, after)
    assert change.low <= 1 <= change.high
    assert change.value == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("factor", "verdict"), [(1.1, "slower"), (1 / 1.1, "faster")])
def test_a_change_of_ten_percent_is_found(factor: float, verdict: str) -> None:
    for seed in range(10):
        found, alone = changes(result_of(1e-3, seed), result_of(1e-3 * factor, seed + 50))
        assert [change.ratio.verdict for change in found] == [verdict]
        assert alone == []


def test_no_change_is_found_where_there_is_none() -> None:
    for seed in range(10):
        found, _ = changes(result_of(1e-3, seed), result_of(1e-3, seed + 50))
        assert found[0].ratio.verdict in ("same", "cannot tell")


def test_of_another_machine_seconds_are_compared() -> None:
    same, other = (changes(result_of(1e-3), result_of(1e-3, device=d))[0][0] for d in ("a", "b"))
    assert (same.beside, other.beside) == ("in seconds and in times of yardsticks", "in seconds")


@pytest.mark.parametrize(("ours", "yardstick"), [(1.2e-3, 1.2e-3), (1e-3, 1.2e-3)])
def test_of_a_machine_that_changed_nothing_is_told(ours: float, yardstick: float) -> None:
    (change,), _ = changes(result_of(1e-3), result_of(ours, 50, yardstick=yardstick))
    assert change.ratio.verdict == "cannot tell"


def in_turns(factor: float, seed: int) -> tuple[Result, Result]:
    """Two results whose machine changed by far more than they differ, from one pair of rounds to the next."""
    generator = np.random.default_rng(seed)
    load = np.exp(generator.normal(0, 0.5, (5, 40)))
    results = result_of(1e-3), result_of(1e-3)
    for result, seconds in zip(results, (1e-3, 1e-3 * factor), strict=True):
        noise = np.exp(generator.normal(0, 0.03, load.shape) + generator.normal(0, 0.01, (5, 1)))
        result.turns = "the same"
        result.rows[0].seconds["warm"]["genimg_fast"] = (seconds * load * noise).tolist()
    return results


@pytest.mark.parametrize(("factor", "verdicts"), [(1.1, {"slower"}), (1.0, {"same", "cannot tell"})])
def test_of_results_in_turns_rounds_are_pairs(factor: float, verdicts: set[str]) -> None:
    for seed in range(10):
        before, after = in_turns(factor, seed)
        (change,), _ = changes(before, after)
        assert change.beside == "in turns"
        assert change.ratio.verdict in verdicts
        after.turns = "another"
        assert changes(before, after)[0][0].ratio.verdict == "cannot tell"


def test_a_process_that_had_no_time_for_both_is_no_pair() -> None:
    before, after = in_turns(1.1, 0)
    before.rows[0].seconds["warm"]["genimg_fast"].pop()
    assert changes(before, after)[0][0].beside == "in turns"
    before.rows[0].seconds["warm"]["genimg_fast"][0].pop()
    before.rows[0].yardsticks = {}
    assert changes(before, after)[0][0].beside == "in seconds"


@pytest.mark.parametrize("turns", ["", "the same"])
def test_one_process_tells_nothing_of_a_change(turns: str) -> None:
    pair = in_turns(1.5, 0)
    for result in pair:
        result.turns = turns
        row = result.rows[0]
        row.yardsticks = {}
        row.seconds["warm"]["genimg_fast"] = row.seconds["warm"]["genimg_fast"][:1]
    assert changes(*pair)[0][0].ratio.verdict == "cannot tell"


def test_a_file_of_the_first_form_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    result_of(1e-3).save(file)
    body = json.loads(file.read_text())
    del body["turns"], body["rows"][0]["yardsticks"]
    file.write_text(json.dumps({**body, "schema": 1}))
    assert load(file).rows[0].yardsticks == {}


def test_a_file_gives_the_result_back(tmp_path: Path) -> None:
    result = result_of(1e-3)
    first, second = result.save_in(tmp_path / "all"), result.save_in(tmp_path / "all")
    assert first != second
    assert load(first) == load(second) == result
    assert first.name.startswith("2026-01-02-030405-abc1234")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "rows": 5}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="must be a"):
        load(file)


def test_a_later_form_is_said_to_be_later(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="is of form 99, of a later version of genimg-fast"):
        load(file)


def test_what_was_timed_and_not_compared_is_said() -> None:
    result = result_of(1e-3)
    times = result.rows[0].seconds["warm"]
    times["compile"] = times["eager"]
    assert "NOT COMPARED with eager, only timed: compile (op 1, both)" in report.notes_of(result)
    result.rows[0].errors["compile"] = 1e-7
    assert not any("NOT COMPARED" in note for note in report.notes_of(result))


def test_what_the_compiler_had_on_disk_is_no_first_call() -> None:
    result = result_of(1e-3)
    row = result.rows[0]
    row.seconds["warm"]["compile"] = row.seconds["warm"]["eager"]
    assert any(
        note.startswith("compile found on disk what it needs in 1 cases") for note in report.notes_of(result)
    )
    row.first_call["compile"] = [20.0]
    notes = report.notes_of(result)
    assert not any("on disk" in note for note in notes)
    assert any(note.startswith("longest first call of compile: 20.0 s") for note in notes)


def test_parts_of_processes_are_joined_and_the_wrong_left_out() -> None:
    def part(wrong: dict[str, str]) -> dict[str, object]:
        return json.loads(json.dumps({
            "name": "op", "pass": "both", "judged": "mine", "images": 0, "moved": 1, "operations": 2,
            "wrong": wrong, "errors": {}, "memory": {"mine": [1, 1], "bad": [1, 1]},
            "first_call": {"mine": 1.0, "bad": 1.0},
            "seconds": {"warm": {"mine": [1.0], "bad": [0.1]}}, "yardsticks": {"memory": [1.0]},
        }))  # fmt: skip

    (row,) = join([part({}), part({"bad": "cheats"})], {"op": "float32"})
    assert row.seconds == {"warm": {"mine": [[1.0], [1.0]]}}
    assert list(row.memory) == list(row.first_call) == ["mine"]
    (row,) = join([part({"mine": "is wrong"})], {})
    assert row.seconds == {}


def test_a_process_without_a_contender_is_no_pair() -> None:
    def part(**times: float) -> dict[str, object]:
        return {
            "name": "op", "pass": "both", "judged": "mine", "images": 0, "moved": 1, "operations": 2, "wrong": {},
            "errors": {}, "memory": {}, "first_call": {}, "yardsticks": {},
            "seconds": {"warm": {name: [seconds] * 5 for name, seconds in times.items()}},
        }  # fmt: skip

    (row,) = join(
        [part(mine=2.0, eager=6.0), part(mine=1.0, eager=2.0, compile=4.0), part(mine=1.0, eager=2.0)], {}
    )
    assert row.counts() == (3, 5)
    assert row.of_one_process() == ["compile"]
    assert row.median("compile") == 4.0
    assert row.ratio("compile").value == pytest.approx(4)  # with mine of the same process, not of the first
    assert row.ratio("eager").value == pytest.approx(2)


def test_a_pass_that_was_announced_and_not_measured_is_said() -> None:
    (row,) = join([{"name": "op", "passes": ["both"]}], {})
    assert (row.key, row.skipped) == ("op, both", "not reached within the time limit")


@pytest.mark.parametrize(
    ("moved", "operations", "direction", "seconds", "what"),
    [
        (2 * MIB, 0, "both", 2 * MIB / 4e10, "bytes"),
        (200 * MIB, 0, "both", 200 * MIB / 1e10, "bytes"),
        (2 * MIB, 1e9, "both", 1e-2, "operations"),
        (64, 64, "forward", 3e-6, "calls"),
        (64, 64, "both", 2e-5, "calls"),
        (64, 64, "step", 1.6e-9, "bytes"),
    ],
)
def test_what_takes_longest_bounds_the_time(
    moved: int, operations: int, direction: str, seconds: float, what: str
) -> None:
    limits = result_of(1e-3).ceilings._replace(forward_call=3e-6, both_call=2e-5)
    bound = bound_of(limits, moved, operations, None, direction)
    assert bound == (pytest.approx(seconds), what)


def test_the_table_says_what_bounds_a_row() -> None:
    result = result_of(1e-3)  # 8 MiB at 4e10 bytes a second
    assert report.cells_of(result.rows[0], result)[report.COLUMNS.index("of bound")] == "21% bytes"
    result.rows[0].moved = result.rows[0].operations = 0
    assert report.cells_of(result.rows[0], result)[report.COLUMNS.index("of bound")] == "-"


def test_a_run_that_others_disturbed_is_unsound() -> None:
    assert unsound(Quiet(0, 0, 0, 0, 0), [1.0, 1.02]) == []
    words = " ".join(unsound(Quiet(0.2, 0.3, 0, 0, 0), [1.0, 1.5]))
    assert "hypervisor gave 20%" in words
    assert "others" in words
    assert "50% longer" in words


def test_table_and_markdown_have_every_row() -> None:
    result = result_of(1e-3)
    result.rows.append(Row("op 2", skipped="diffusers is needed here"))
    result.rows.append(Row("op 3", "both", "mine", wrong={"mine": "mine: results differ"}))
    for text in (report.table(result), report.markdown(result)):
        assert "op 1" in text
        assert "diffusers is needed here" in text
        assert "WRONG, no figure: op 3, both: mine: results differ" in text
    assert "op 1,both,warm,genimg_fast," in result.as_csv()


def test_points_of_a_row_are_nearer_to_it_than_to_others() -> None:
    for peers in (["eager"], ["eager", "inplace", "compile", "diffusers", "compile-float32"]):
        heights = [report._height(3, peer, peers) for peer in peers]
        assert sum(heights) / len(heights) == pytest.approx(3)
        assert max(abs(height - 3) for height in heights) <= 0.3


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_pictures(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"x.{ending}"
    report.draw(result_of(1e-3), file)
    assert file.stat().st_size > 5000
    with pytest.raises(ValueError, match="must have rows"):
        report.draw(Result([], {}, result_of(1).ceilings, {}, [], [], "", "", ""), file)


def test_a_picture_names_every_family_and_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    figure = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.setattr(figure, "savefig", lambda self, path, **options: drawn.append(self))
    result = result_of(1e-3)
    for name, direction in (("conv 2", "both"), ("conv_transpose 2", "both"), ("norm 3", "forward")):
        result.rows.append(replace(result.rows[0], name=name, pass_=direction))
    report.draw(result, tmp_path / "x.png")
    ratios, roofline = drawn[0].axes
    assert [text.get_text() for text in ratios.get_yticklabels()] == [
        "op 1", "conv 2", "conv_transpose 2", "norm 3, forward",
    ]  # fmt: skip
    assert ratios.get_xlabel().endswith("forward + backward")
    legend = [text.get_text() for text in roofline.get_legend().get_texts()]
    assert [name for name in legend if name in ("op", "conv", "conv_transpose", "norm")] == [
        "op", "conv", "conv_transpose", "norm",
    ]  # fmt: skip
