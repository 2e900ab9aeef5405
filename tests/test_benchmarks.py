import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from genimg_fast.bench import load

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="tests run without the benchmarks")
def test_benchmark_prints_its_table_and_writes_its_figures(tmp_path):
    target = tmp_path / "result.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "--benchmark-quiet", "--json", target]
    result = subprocess.run(
        [*command, "-k", "T28 and GRU and float32 and both"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stdout
    assert "GRU T28 B64 I28 H64 float32" in result.stdout
    assert "x eager" in result.stdout
    (row,) = load(target).rows
    assert set(row.seconds["warm"]) == {"genimg_fast", "eager"}
    assert row.median() > 0


@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="tests run without the benchmarks")
def test_vae_evaluation_runs_and_can_fail(tmp_path):
    command = [sys.executable, "benchmarks/eval_vae.py", "--steps", "3", "--out", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1, result.stderr  # three steps teach nothing
    assert "FAIL: samples are of the requested class in at least 90%" in result.stdout
    assert "FAIL: ResidualVAE: held-out ELBO beats PPCA of the same latent size" in result.stdout
    assert "FAIL: VQ-VAE: held-out error at most a tenth of that of the mean image" in result.stdout
    assert {f.name for f in tmp_path.iterdir()} == {
        "reconstructions.png", "samples.png", "class-samples.png",
        "interpolation.png", "interpolation.gif", "latent.png",
        "resvae-reconstructions.png", "resvae-samples.png", "vqvae-reconstructions.png",
    }  # fmt: skip


@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="tests run without the benchmarks")
def test_evaluations_take_fashion_mnist_and_can_fail(tmp_path):
    generator = np.random.default_rng(0)
    for split, n in (("train", 200), ("t10k", 60)):
        for kind, numbers in (
            ("images-idx3", generator.integers(256, size=(n, 28, 28))),
            ("labels-idx1", np.arange(n) % 10),
        ):
            header = struct.pack(f">HBB{numbers.ndim}I", 0, 8, numbers.ndim, *numbers.shape)
            (tmp_path / f"{split}-{kind}-ubyte").write_bytes(header + numbers.astype(np.uint8).tobytes())
    missed = {
        "eval_gan.py": "FAIL: at least 85% of the samples are of the requested class",
        "eval_vae.py": "FAIL: held-out ELBO beats PPCA of the same latent size",
    }
    for script, words in missed.items():
        command = [sys.executable, f"benchmarks/{script}", "--fashion-mnist", tmp_path, "--steps", "3"]
        result = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 1, result.stderr  # noise teaches nothing
        assert words in result.stdout
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "cyclegan.png", "fashion-classes.png", "fashion.png",
        "fashion-reconstructions.png", "fashion-class-samples.png",
    }  # fmt: skip


def test_failures_do_not_pass_for_variety():
    from clothes import variation

    real, labels = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)), torch.arange(400) % 2
    right = torch.ones(400, dtype=torch.bool)
    failed = torch.arange(400) >= 380
    made = torch.where(failed[:, None], 100.0, real / 2)
    assert variation((made, labels, ~failed), (real, labels, right)) == pytest.approx([0.5, 0.5], abs=0.02)
    assert variation((made, labels, right), (real, labels, right))[0] > 1
    assert variation((real[:1], labels[:1], right[:1]), (real, labels, right)) == [0, 0]


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
