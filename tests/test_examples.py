import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from genimg_fast.training import load_checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="tests run without the examples")


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.mark.parametrize("example", ["plain_loop.py", "lightning_vae.py", "accelerate_vae.py"])
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_an_example_trains_and_draws(example, tmp_path, monkeypatch, capsys):
    out = tmp_path / "samples.png"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [example, "--steps", "3", "--out", str(out)])
    runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    assert re.search(r"^step 3: loss\w*=\d", capsys.readouterr().out, re.M)
    assert out.stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # nobody's results in the repository
    monkeypatch.setenv("TOUR_STEPS", "4")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert {path.name for path in tmp_path.iterdir()} == {
        "morph.png",
        "reconstructions.png",
        "runs",
        "samples.png",
    }


def test_accelerate_trains_in_two_processes(tmp_path):
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", EXAMPLES / "accelerate_vae.py"]
    options = ["--steps", "2", "--mixed-precision", "bf16", "--out", tmp_path / "samples.png"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 2: loss=") == 1
    assert (tmp_path / "samples.png").stat().st_size > 1000


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


TRAIN = ["-m", "genimg_fast", "train", "dcgan", "--data", "digits", "--channels", "4", "--batch-size", "16"]


def test_two_nodes_train_one_run(tmp_path):
    """As on two machines with a folder in common: a torchrun on each, which find each other at an address."""
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "test"]
    command = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", *meet, *TRAIN, "--steps", "3"]
    nodes = [
        subprocess.Popen(
            [*command, "--out", tmp_path / "runs"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "".join(said)
    (run,) = (tmp_path / "runs").iterdir()
    state = load_checkpoint(run)
    assert state["step"] == 3
    assert len(state["rng"]) == 2  # one of each process


SRUN = """#!/bin/sh
exec "$@"
"""
SCONTROL = """#!/bin/sh
case "$1 $2" in
"show job") echo "PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=$PREEMPTED" ;;
requeue*) echo "$@" >> "$REQUEUED" ;;
esac
"""


@pytest.fixture
def slurm(tmp_path):
    """Starts the batch script with options, the machine being all of the cluster."""

    def submit(*options, srun=SRUN, preempted="None"):
        for name, text in {"srun": srun, "scontrol": SCONTROL}.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "REQUEUED": str(tmp_path / "requeued"),
            "PREEMPTED": preempted,
            "SLURM_JOB_ID": "7",
            "SLURM_NNODES": "1",
            "MASTER_PORT": str(free_port()),
        }
        return subprocess.Popen(
            ["bash", EXAMPLES / "train.sbatch", *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env=environment,
        )  # fmt: skip

    return submit


@pytest.mark.parametrize(
    ("ending", "preempted", "requeued"),
    [("exit 0", "None", False), ("exit 1", "None", False), ("exit 1", "2026-01-01T00:00:00", True)],
)
def test_only_a_preempted_job_is_queued_again(ending, preempted, requeued, slurm, tmp_path):
    job = slurm(srun=f"#!/bin/sh\n{ending}\n", preempted=preempted)
    job.communicate(timeout=60)
    assert job.returncode == int(ending[-1])
    assert (tmp_path / "requeued").exists() == requeued


def test_a_stopped_slurm_job_goes_on_where_it_stopped(slurm, tmp_path):
    runs = tmp_path / "runs"
    options = [
        "--data",
        "digits",
        "--channels",
        "4",
        "--batch-size",
        "16",
        "--checkpoint-every",
        "5",
        "--out",
        runs,
    ]
    first = slurm(*options, "--steps", "100000")
    deadline = time.monotonic() + 300
    while not list(runs.glob("*/checkpoint.pt")):
        assert first.poll() is None, first.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=300)[0]
    assert (tmp_path / "requeued").read_text() == "requeue 7\n", said
    assert "checkpoint saved to" in said
    (run,) = runs.iterdir()
    saved = load_checkpoint(run)["step"]

    second = slurm(*options, "--steps", str(saved + 2))
    said = second.communicate(timeout=300)[0]
    assert second.returncode == 0, said
    assert list(runs.iterdir()) == [run]
    assert load_checkpoint(run)["step"] == saved + 2
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
