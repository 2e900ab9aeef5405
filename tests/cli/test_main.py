"""The program: what it prints, what it exits with, and what stops it."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any
from unittest import mock

import pytest
import torch
from tiny_runs import TINY
from trainers import OnStep

import genimg_fast as gf
from genimg_fast.cli import main


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr().out == f"{gf.info()}\n"


def test_output_in_another_encoding(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["sample", str(run), "--out", str(tmp_path / "\u00e9.png")]) == 0
    stream.flush()
    assert stream.buffer.getvalue() == f"{tmp_path}/\\xe9.png\n".encode()


def test_nan_is_one_line_that_names_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--steps", "40", "--lr", "1e30", "--out", str(tmp_path), "--device", "cpu"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("genimg-fast: error: ")
    assert " at step " in last


def test_short_memory_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--out", str(tmp_path)]
    errors = []
    assert main(["train", "mlp-vae", "--hidden", "2000000000", *flags]) == 1
    errors += capsys.readouterr().err.splitlines()
    assert main(["train", "dcgan", "--channels", "2147483647", "--z-dim", "2147483647", *flags]) == 1
    errors += capsys.readouterr().err.splitlines()
    assert main(["train", "dcgan", "--data", "photos", "--crops", "2000000000", *flags]) == 1
    errors += capsys.readouterr().err.splitlines()
    monkeypatch.setattr(gf.models.DCGAN, "sample", lambda self, n, **_: torch.empty(n, 10**9 if n > 1 else 1))
    assert main(["sample", str(run), "--n", "2000000000", "--out", str(tmp_path / "grid.png")]) == 1
    errors += capsys.readouterr().err.splitlines()
    assert [re.sub(r" for \d+ bytes", "", line) for line in errors] == [
        f"genimg-fast: error: out of memory; reduce {flags}"
        for flags in ("--hidden", "--channels or --z-dim", "--crops", "--n")
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("signals", "status", "message"),
    [
        ([signal.SIGINT], 130, "stopped after step 2; checkpoint saved to "),
        ([signal.SIGINT, signal.SIGINT], 130, "stopped at once, after step 2; nothing was saved"),
        ([signal.SIGTERM], 143, "stopped after step 2; checkpoint saved to "),
        ([signal.SIGHUP], 129, "stopped after step 2; checkpoint saved to "),
    ],
)
def test_signals(
    signals: list[int], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def on_step(step: int, _: dict[str, torch.Tensor]) -> None:
        for signum in signals if step == 2 else []:
            os.kill(os.getpid(), signum)

    def fit(*args: Any, callbacks: Sequence[Any], **options: Any) -> Any:
        return gf.training.fit(*args, callbacks=[*callbacks, OnStep(on_step)], **options)

    monkeypatch.setattr("genimg_fast.cli.train.fit", fit)
    assert main([*TINY, "--steps", "9", "--out", str(tmp_path), "--device", "cpu"]) == status
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"genimg-fast: {message}")


@pytest.mark.parametrize(("rank", "said"), [("0", "genimg-fast: stopped\n"), ("1", "")])
def test_the_first_of_several_processes_says_what_stopped_them(
    rank: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genimg_fast.cli.train.fit", mock.Mock(side_effect=KeyboardInterrupt("stopped")))
    monkeypatch.setenv("RANK", rank)
    assert main([*TINY, "--steps", "9", "--out", str(tmp_path), "--device", "cpu"]) == 130
    assert capsys.readouterr().err == said


REDIRECTIONS = ["2>&-", ">&-", ">/dev/full", "| true"]


@pytest.fixture(scope="module")
def unread(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Iterator[dict[str, tuple[Any, Path]]]:
    """Trainings that nobody reads, all at once: starting takes most of their time."""
    runs = {}
    for redirection in REDIRECTIONS:
        out = tmp_path_factory.mktemp("unread")
        flags = ["--data", str(photos), "--steps", "2", "--out", str(out)]
        command = f"{shlex.join([sys.executable, '-m', 'genimg_fast', *TINY, *flags])} {redirection}"
        process = subprocess.Popen(["bash", "-o", "pipefail", "-c", command], stdout=PIPE, stderr=PIPE)
        runs[redirection] = process, out / "00000-dcgan-photos" / "checkpoint.pt"
    yield runs
    for process, _ in runs.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("redirection", REDIRECTIONS)
def test_a_run_goes_on_when_nobody_reads_what_it_prints(
    redirection: str, unread: dict[str, tuple[Any, Path]]
) -> None:
    process, checkpoint = unread[redirection]
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert checkpoint.exists()


@pytest.mark.parametrize("words", ["completion bash", "train dcgan --print-config"])
def test_output_that_nobody_reads_is_no_error(words: str) -> None:
    command = f"{sys.executable} -m genimg_fast {words} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], stderr=PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


INTERRUPTED = """
    import os, signal, sys, threading, time
    def interrupt():
        while "torch" not in sys.modules:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
"""


@pytest.mark.parametrize("command", [["-m", "genimg_fast"], ["genimg-fast"]])
def test_ctrl_c_during_the_imports_is_one_line(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(INTERRUPTED))
    # What pip makes of the entry point.
    (tmp_path / "genimg-fast").write_text("import sys\nfrom genimg_fast.cli import main\nsys.exit(main())\n")
    path = os.pathsep.join([str(tmp_path), str(Path(gf.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, *command, "info"], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "genimg-fast: interrupted\n")


def test_ctrl_c_and_python_m(tmp_path: Path, photos: Path) -> None:
    flags = ["--data", str(photos), "--steps", "1000000", "--log-every", "1", "--out", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-m", "genimg_fast", *TINY, *flags], stderr=PIPE, text=True)
    stats = tmp_path / "00000-dcgan-photos" / "stats.jsonl"
    deadline = time.monotonic() + 120
    while not stats.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in error
    checkpoint = tmp_path / "00000-dcgan-photos" / "checkpoint.pt"
    assert error.splitlines()[-1].endswith(f"checkpoint saved to {checkpoint}")
    assert f"stopped after step {gf.training.load_checkpoint(checkpoint)['step']};" in error
