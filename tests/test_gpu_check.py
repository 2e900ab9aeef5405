"""The check for machines with a GPU, with the CPU in the place of one."""

import json
import subprocess
import sys
import time
import types
from collections import Counter

import pytest
import torch

import genimg_fast as gf

gpu_check = pytest.importorskip("gpu_check", reason="tests run without the benchmarks")

from gpu import cases, commands, device, report, stress  # noqa: E402
from gpu.rows import Rows, read  # noqa: E402


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU")
def test_says_clearly_that_there_is_no_gpu(tmp_path):
    command = [sys.executable, gpu_check.SCRIPT, "--out", tmp_path / "rows.jsonl"]
    # Without PYTHONPATH: it finds the package by itself.
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={})
    assert result.returncode == gpu_check.NO_GPU
    assert result.stderr.startswith("gpu-check: no NVIDIA GPU is visible")
    assert not list(tmp_path.iterdir())


def without(packages, *options):
    """What the check does in a Python that lacks packages."""
    hide = f"import runpy, sys; sys.modules |= dict.fromkeys({packages!r}); sys.argv = {['gpu_check', *options]!r}"
    find = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n: sys.modules.get(n, n) and f(n)"
    run = f"runpy.run_path({str(gpu_check.SCRIPT)!r}, run_name='__main__')"
    command = [sys.executable, "-c", "\n".join((hide, find, run))]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_needs_no_torch_is_answered_without_it():
    assert "--deadline" in without(["torch"], "--help").stdout
    assert "invalid choice" in without(["torch"], "--stage", "bm").stderr
    run = without(["torch"], "--stage", "bn")
    assert run.returncode == gpu_check.NO_GPU
    assert run.stderr.startswith("gpu-check: there is no torch in ")


def test_times_need_no_package_but_torch_and_numpy(tmp_path):
    packages = "docstring_parser yaml PIL tqdm sklearn skimage scipy matplotlib torchvision"
    run = without(packages.split(), "--dry-run", "--stage", "steps", "--out", str(tmp_path / "rows.jsonl"))
    assert run.returncode == 0, run.stderr
    assert len(read(tmp_path / "rows.jsonl")) == 6


@pytest.mark.parametrize("name", ["rows.json", "rows.txt", ""])
def test_the_report_cannot_take_the_place_of_the_rows(name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        dry_run(tmp_path / name)
    assert "is no .jsonl file" in capsys.readouterr().err


def dry_run(out, *options):
    return gpu_check.main(["--dry-run", "--out", str(out), *options])


def test_a_whole_run_goes_on_where_it_was_cut(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert dry_run(out) == 0
    printed = capsys.readouterr().out
    rows = read(out)
    assert Counter(row["status"] for row in rows) == {"ok": len(rows)}
    assert {row["stage"] for row in rows} == set(gpu_check.STAGES) - {"report"}
    assert len({(row["stage"], row["contender"], row["row"]) for row in rows}) == len(rows)
    assert {row["contender"] for row in rows if row["stage"] == "bn"} == set(cases.CONTENDERS["batch_norm_act"])
    for row in rows:
        if "seconds" in row:
            assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
    assert "batch_norm_act: 0.85 of the speed of copying" in printed
    assert printed.rstrip().endswith("gpu-check: nothing failed")
    assert "launched  automatic" in out.with_suffix(".txt").read_text()
    assert json.loads(out.with_suffix(".json").read_text())["machine"]["gpu"] == "stand-in"

    lines = out.read_text().splitlines()
    kept = [line for line in lines if '"stage": "gn"' not in line]
    out.write_text("\n".join(kept) + '\n{"stage": "gn", "row": "cut sho')
    assert dry_run(out, "--stage", "gn") == 0
    assert len(read(out)) == len(lines)
    assert dry_run(out, "--stage", "gn", "--deadline", "0") == 0  # there is nothing left to do
    assert len(read(out)) == len(lines)


def test_a_deadline_leaves_rows_out_and_says_so(tmp_path, capsys):
    assert dry_run(tmp_path / "rows.jsonl", "--stage", "rnn", "--deadline", "-1") == gpu_check.UNFINISHED
    assert "unfinished: facts, rnn" in capsys.readouterr().out


def test_the_facts_take_their_time_from_the_stage_that_needs_them(tmp_path, monkeypatch):
    given = {}

    def run(stage, rows, seconds):
        given[stage] = seconds
        time.sleep(0.2)

    monkeypatch.setattr(gpu_check, "run_measured", run)
    assert dry_run(tmp_path / "rows.jsonl", "--stage", "rnn", "--deadline", "10") == 0
    assert given["facts"] == 10
    assert given["rnn"] <= 9.8


def test_tests_find_packages_that_were_brought_along(rows, monkeypatch):
    found = []
    monkeypatch.setenv("PYTHONPATH", "brought")

    def run(stage, command, environment, seconds):
        found.append(environment)
        return {"stage": stage, "row": command.row, "contender": "", "status": "ok"}

    monkeypatch.setattr(commands, "run", run)
    gpu_check.run_commands("tests", rows, 10)
    assert found[0]["PYTHONPATH"].split(":") == [str(gpu_check.ROOT), "brought"]


def test_wrong_results_are_found_and_the_stage_is_in_the_exit_status(tmp_path, monkeypatch, capsys):
    right, forward = gf.ops.batch_norm_act, gf.nn.LSTM.forward

    def wrong_in_the_last_bits(x, *arguments, **options):
        return right(x, *arguments, **options) + torch.rand(()) * 1e-6

    def with_what_memory_holds(layer, packed):
        output, states = forward(layer, packed)
        return output._replace(data=output.data + torch.rand(())), states

    monkeypatch.setattr(gf.ops, "batch_norm_act", wrong_in_the_last_bits)
    monkeypatch.setattr(gf.nn.LSTM, "forward", with_what_memory_holds)
    status = dry_run(tmp_path / "rows.jsonl", "--stage", "stress")
    assert gpu_check.STAGES[status - gpu_check.FAILED] == "stress"
    failed = {row["row"] for row in read(tmp_path / "rows.jsonl") if row["status"] == "failed"}
    assert failed == set(stress.CHECKS)
    assert "gpu-check: failed: stress" in capsys.readouterr().out


@pytest.fixture
def rows(tmp_path):
    return Rows(tmp_path / "rows.jsonl", "some GPU")


PROCESS = """
import json, os, sys, time
done = [json.loads(line)["row"] for line in open(sys.argv[-1])] if os.path.exists(sys.argv[-1]) else []
print("a word of a library")
for row in "abc":
    if row in done:
        continue
    print(json.dumps({"begin": row}), flush=True)
    if row == "b":
        %s
    print(json.dumps({"stage": "bn", "contender": "split", "row": row, "status": "ok"}), flush=True)
"""


@pytest.mark.parametrize(("fault", "words"), [("os.abort()", "ended with -6"), ("time.sleep(60)", "hung for 1")])
def test_a_process_that_fails_in_a_row_is_followed_by_one_for_the_rest(fault, words, rows, tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(PROCESS % fault)
    monkeypatch.setattr(gpu_check, "SCRIPT", script)
    monkeypatch.setattr(gpu_check, "LONGEST_ROW", 1.5)
    gpu_check.run_contender("bn", "split", rows, time.monotonic() + 60, time.monotonic() + 90)
    assert [(row["row"], row["status"]) for row in read(rows.path)] == [("a", "ok"), ("b", "failed"), ("c", "ok")]
    assert words in rows.rows[1]["words"]


def test_a_row_that_is_not_done_when_the_time_is_over_is_left_for_the_next_call(rows, tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(PROCESS % "time.sleep(60)")
    monkeypatch.setattr(gpu_check, "SCRIPT", script)
    with pytest.raises(gpu_check.Unfinished):
        gpu_check.run_contender("bn", "split", rows, time.monotonic() + 2, time.monotonic() + 3)
    assert [row["row"] for row in read(rows.path)] in (["a"], [])


def test_a_process_that_does_not_start_is_a_failure(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "SCRIPT", tmp_path / "no such script")
    gpu_check.run_contender("bn", "split", rows, time.monotonic() + 60, time.monotonic() + 90)
    (row,) = rows.rows
    assert (row["row"], row["status"], row["words"]) == ("start", "failed", "the process ended with 2")


def test_an_error_is_a_row_and_the_others_are_measured(tmp_path, monkeypatch):
    def failing(x, mean, var, weight, bias, training, momentum, eps, *, activation, negative_slope):
        if x.dtype == torch.bfloat16:
            raise RuntimeError("no bfloat16 today")
        return x * weight[:, None, None] + bias[:, None, None]

    monkeypatch.setattr(gf.ops, "batch_norm_act", failing)
    with device.stand_in():
        found = [row for row in cases.measure("bn", "split", set()) if "row" in row]
    assert {(row["dtype"], row["direction"], row["status"]) for row in found} == {
        ("float32", "forward", "ok"), ("bfloat16", "forward", "failed"),
        ("float32", "backward", "ok"), ("bfloat16", "backward", "failed"),
    }  # fmt: skip
    words = {row.get("words") for row in found if row["dtype"] == "bfloat16"}
    assert words == {"RuntimeError: no bfloat16 today"}


def test_another_build_of_the_library_has_rows_of_its_own(rows):
    rows.add({"stage": "bn", "contender": "split", "row": "a", "status": "ok"})
    same, other = Rows(rows.path, "some GPU"), Rows(rows.path, "another GPU")
    assert same.done("bn", "split") == {"a"}
    assert other.done("bn", "split") == set()


def add_times(rows, case, **microseconds):
    """Rows of 67 MB whose copy takes 30 us."""
    if not rows.of("facts"):
        rows.add({"stage": "facts", "contender": "", "row": "copy 67.11 MB", "status": "ok", "seconds": 30e-6})
    facts = {
        "stage": "bn", "row": case, "status": "ok", "operator": "batch_norm_act", "direction": "forward",
        "bytes": 64 << 20, "tensors": 2, "dtype": "float32", "layout": "NCHW", "channels": 64,
    }  # fmt: skip
    for contender, each in microseconds.items():
        rows.add({**facts, "contender": contender, "seconds": each * 1e-6, "again": each * 1.01e-6})


def test_a_target_is_met_if_all_rows_meet_it(rows):
    add_times(rows, "first", automatic=33, eager=80, compile=50)
    add_times(rows, "second", automatic=32, eager=60, compile=39)
    share, eager, compiled, *others = report.verdicts(rows)
    assert str(share) == "met          batch_norm_act: 0.85 of the speed of copying: 2 of 2, worst 0.91 (first)"
    assert str(eager) == "MISSED       batch_norm_act: 2 x eager: 1 of 2, worst 1.88 (second)"
    assert (compiled.met, compiled.rows) == (2, 2)
    assert {str(other)[:12] for other in others} == {"not measured"}


def test_predictions_stand_beside_measurements(rows, monkeypatch):
    asked = []

    def predict(*call):
        asked.append(call)
        seconds = {"split": 40e-6, "cluster": 25e-6}.get(call[2])
        return seconds and types.SimpleNamespace(seconds=seconds)

    operators = {"batch_norm_act": (None, ("split", "block", "cluster"), {})}
    stub = types.SimpleNamespace(OPERATORS=operators, predict=predict, Call=lambda *values: values)
    monkeypatch.setitem(sys.modules, "predictions", stub)
    add_times(rows, "case", automatic=30, split=60, eager=80)
    header, line, summary = report.lines_of(rows, "bn")
    assert header.split()[-3:] == ["automatic", "split", "eager"]
    assert line.split() == ["case", "100%", "25.0", "1.20", "1.0%", "-", "30.0", "60.0", "80.0"]
    assert summary == "measured over predicted: median 1.20, 1.20 to 1.20"
    assert asked[0] == ("batch_norm_act", "forward", "split", (64 << 20, "float32", "NCHW", 64))
    assert report.predicted({**rows.of("bn", "split")[0]}) == 40e-6
    assert report.predicted({**rows.of("bn", "eager")[0]}) is None


def test_each_row_of_ours_has_a_prediction():
    pytest.importorskip("predictions")
    for stage in ("bn", "gn", "reparam"):
        for case in cases.STAGES[stage].cases():
            row = {"contender": cases.AUTOMATIC, **case.facts}
            assert 0 < report.predicted(row) < 0.01
            assert report.predicted(row | {"contender": "eager"}) is None


def test_the_process_of_a_contender_reports_line_by_line(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert dry_run(out, "--stage", "reparam", "--contender", "eager") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["begin"] for event in events[::2]] == [event["row"] for event in events[1::2]]
    assert len(events) == 8
    assert not out.exists()  # it is the first process that writes


def test_a_recurrent_step_comes_from_two_lengths(rows):
    for steps, seconds in ((64, 69e-6), (512, 517e-6)):
        row = {"stage": "rnn", "row": f"GRU T{steps} B16 H64", "contender": "steps", "status": "ok", "layers": 1}
        rows.add({**row, "steps": steps, "seconds": seconds})
    assert list(report.steps_of_recurrent(rows))[1].split() == ["GRU", "B16", "H64", "steps", "1.00", "+", "5.0"]


def test_a_program_that_is_missing_or_too_slow_is_told(monkeypatch):
    missing = commands.run("ncu", commands.Command("counters", ("no-such-program",)), {}, 1)
    assert (missing["status"], missing["words"]) == ("missing", "no-such-program not found")
    slow = commands.Command("slow", ("sh", "-c", "echo begun; sleep 60"))
    row = commands.run("tests", slow, {}, 1)
    assert (row["status"], row["code"]) == ("failed", commands.TIMED_OUT)
    assert row["words"] == "not done after 1 s; begun"


def test_counters_are_read_from_what_ncu_prints():
    lines = [
        "==PROF== Connected", '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"',
        '"0","normalize<float>(int)","gpu__time_duration.sum","us","35.2"',
        '"0","normalize<float>(int)","dram__bytes_read.sum","Mbyte","67.1"',
    ]  # fmt: skip
    assert commands.counters("\n".join(lines)) == [
        {"kernel": "normalize<float>", "gpu__time_duration.sum": "35.2 us", "dram__bytes_read.sum": "67.1 Mbyte"}
    ]


def test_what_the_sanitizers_run_is_there():
    """On the CPU, with "cpu" for "cuda"."""
    selections = {command.line[command.line.index("-x") + 1 :] for command in commands.sanitizers()}
    assert len(selections) == len(commands.SANITIZED)
    every = [test for *tests, _, _ in selections for test in tests]
    command = [*commands.PYTEST, "--collect-only", *every]
    result = subprocess.run(command, capture_output=True, text=True, cwd=gpu_check.ROOT)
    assert result.returncode == 0, result.stdout
    for *tests, option, words in selections:
        assert option == "-k"
        for test in tests:
            ids = [line for line in result.stdout.splitlines() if line.startswith(f"{test}[")]
            assert [i for i in ids if all(word in i for word in words.replace("cuda", "cpu").split(" and "))], test
