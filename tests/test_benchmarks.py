import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="tests run without the benchmarks")
def test_benchmark_prints_its_table_and_writes_its_figures(tmp_path):
    target = tmp_path / "result.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "--benchmark-quiet", "--json", target]
    result = subprocess.run(
        [*command, "-k", "8x3x33x65 and float32 and NCHW and backward"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stdout
    assert "8x3x33x65 float32 NCHW" in result.stdout
    assert "x eager" in result.stdout
    (row,) = json.loads(target.read_text())["rows"]
    assert set(row["seconds"]) == {"genimg_fast", "eager", "inplace"}
    assert row["must_move"] == 3 * 4 * 8 * 3 * 33 * 65
    assert all(value > 0 for value in [*row["seconds"].values(), *row["peak_bytes"].values()])


@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="tests run without the benchmarks")
def test_vae_evaluation_runs_and_can_fail(tmp_path):
    command = [sys.executable, "benchmarks/eval_vae.py", "--steps", "3", "--out", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1, result.stderr  # three steps teach nothing
    assert "FAIL: samples are of the requested class in at least 90%" in result.stdout
    assert {f.name for f in tmp_path.iterdir()} == {
        "reconstructions.png", "samples.png", "class-samples.png",
        "interpolation.png", "interpolation.gif", "latent.png",
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="tests run without the benchmarks")
def test_memory_of_changing_shapes_is_flat():
    command = [sys.executable, "benchmarks/eval_memory.py", "--steps", "300"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "step    300:" in result.stdout
    assert "pass: after the first fifth of the steps" in result.stdout


@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="tests run without the benchmarks")
def test_frame_evaluation_runs_and_can_fail(tmp_path):
    command = [sys.executable, "benchmarks/eval_frames.py", "--steps", "2", "--batch-size", "2", "--held-out", "4"]
    result = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1, result.stderr  # two steps teach nothing
    assert "FAIL: next-frame MSE at least 3 times lower than of the last frame" in result.stdout
    assert {f.name for f in tmp_path.iterdir()} == {"rollouts.gif", "rollouts.png"}


@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="tests run without the benchmarks")
def test_processes_are_timed():
    from bench_processes import images_per_second

    options = ["dcgan", "--data", "digits", "--channels", "4", "--batch-size", "4", "--steps", "10"]
    assert images_per_second(1, 1, options) > 0
