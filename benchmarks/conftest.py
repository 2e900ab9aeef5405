"""Hooks of the benchmark run: the measuring fixture, and one table at the end."""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

# The compiler's pool of worker processes would still be starting while the first figures are taken.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest
from harness import ROWS, Row, copy_bandwidth, machine, peak_bytes, synchronize, table


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--json", metavar="FILE", help="write every figure of the table to FILE")


@pytest.fixture
def compare(benchmark):
    """Times contenders in turns, so that all of them see the same machine, and keeps the figures for the table.

    All run, timed, in the set-up of each round of pytest-benchmark, which then times the first contender for a
    report of its own: behind its own code even a call of the same function takes some percent of 50 microseconds
    more.
    """

    def run(row: Row, contenders: dict[str, Callable[[], object]]) -> None:
        def seconds(function: Callable[[], object]) -> float:
            synchronize()
            started = time.perf_counter()
            function()
            synchronize()
            return time.perf_counter() - started

        first = next(iter(contenders.values()))
        for function in contenders.values():
            seconds(function)
        once = sum(seconds(function) for function in contenders.values())
        # About three seconds in all, at least 15 rounds: a stable median, and the whole list in minutes.
        rounds = int(min(max(1.5 / once, 15), 1000))
        times: dict[str, list[float]] = {name: [] for name in contenders}

        def time_all() -> None:
            # Each timed call follows one of the same contender: what another one left in the caches and in the
            # allocator's free lists is not part of the comparison.
            for name, function in contenders.items():
                function()
                times[name].append(seconds(function))

        benchmark.group = row.operator
        benchmark.pedantic(seconds, args=(first,), setup=time_all, rounds=rounds, warmup_rounds=2)
        for name in contenders:
            row.seconds[name] = statistics.median(times[name])
        for name, function in contenders.items():
            row.peak_bytes[name] = peak_bytes(function)
        ROWS.append(row)

    return run


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not ROWS:
        return
    facts, bandwidth = machine(), copy_bandwidth()
    write = terminalreporter.write_line
    write("")
    write("  ".join(f"{name} {value}" for name, value in facts.items()))
    write(f"copy {bandwidth / 1e9:.1f} GB/s (64 MB, read + write); GB/s counts only the bytes that must move;")
    write(
        "peak MB is what one call allocates; 'x peer' is the peer's median time over ours: above 1 we are faster"
    )
    write("")
    for line in table(bandwidth):
        write(line)
    target = config.getoption("--json")
    if target:
        result = {
            "machine": facts,
            "copy_bytes_per_second": bandwidth,
            "rows": [vars(row) for row in ROWS],
        }
        Path(target).write_text(json.dumps(result, indent=1) + "\n")
