"""The cases of ``genimg-fast bench`` under pytest-benchmark, in one process: `pytest benchmarks/bench_cases.py`.

One case: `-k "batch_norm_act and 128x64x32x32 and float32 and both"`. The command itself takes several processes,
a limit of time, and cold and fresh memory.
"""

import pytest
import torch

from genimg_fast.bench import machine
from genimg_fast.bench.catalog import all_entries
from genimg_fast.bench.entries import Entry
from genimg_fast.bench.timing import calls
from genimg_fast.bench.worker import measure

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def passes_of(entry: Entry) -> tuple[str, ...]:
    if entry.step:
        return ("step",)
    return ("both",) if entry.kind == "models" else ("forward", "both")


CASES = [(entry, direction) for entry in all_entries() for direction in passes_of(entry)]


@pytest.mark.parametrize(
    ("entry", "direction"),
    CASES,
    ids=[f"{entry.name}-{direction}".replace(" ", "-") for entry, direction in CASES],
)
def test_case(entry: Entry, direction: str, benchmark, rows: list) -> None:
    torch._dynamo.reset()
    try:
        case = entry.case(DEVICE)
    except ImportError as error:
        pytest.skip(str(error))
    found = measure(
        case, direction, device=DEVICE, states=["warm"], peers=None, budget=3.0, seed=0, whole=True
    )  # fmt: skip
    rows.append({
        "name": entry.name, "pass": direction, "moved": case.moved.get(direction, 0),
        "operations": case.operations.get(direction, 0), "images": case.images, "judged": case.judged,
        "canary": machine.canary(DEVICE), **found,
    })  # fmt: skip
    assert case.judged not in found["wrong"], found["wrong"]
    # For pytest-benchmark's own report and files.
    judged = {case.judged: case.contenders[case.judged]}
    benchmark.group = entry.name.split()[0]
    benchmark.extra_info["seconds"] = found["seconds"]
    benchmark.pedantic(calls(case, judged, direction, "warm", DEVICE)[case.judged], rounds=5, warmup_rounds=1)
