"""Hooks of the benchmark run: one table at the end, that of ``genimg-fast bench``."""

import os
import sys
from datetime import datetime
from pathlib import Path

# The compiler's pool of worker processes would still be starting while the first figures are taken.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest
import torch

from genimg_fast.bench import Result, machine, report
from genimg_fast.bench.catalog import all_entries
from genimg_fast.bench.results import join

ROWS: list = []
WATCH = machine.Watch()


@pytest.fixture
def rows() -> list:
    """Where what was found is kept for the table."""
    return ROWS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--json", metavar="FILE", help="write the result to FILE, for genimg-fast bench compare")


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not ROWS:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    quiet, canaries = WATCH.quiet(), [row["canary"] for row in ROWS]
    result = Result(
        join(ROWS, {entry.name: entry.dtype for entry in all_entries()}), machine.facts(device),
        machine.ceilings(device), quiet._asdict(), canaries, machine.unsound(quiet, canaries), machine.commit(),
        " ".join(sys.argv), datetime.now().isoformat(timespec="seconds"),
    )  # fmt: skip
    terminalreporter.write_line("")
    terminalreporter.write_line(report.table(result))
    if target := config.getoption("--json"):
        result.save(Path(target))
