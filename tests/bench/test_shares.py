"""Where the time of a step goes."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from genimg_fast.bench import Row, report, shares
from genimg_fast.bench.shares import KINDS, OTHER, gain_of, kind_of, seconds_by_kind

STEPS = """
import torch, genimg_fast as gf

def several():
    x = torch.randn(256, 256)
    product = lambda: (x @ x).sum()
    cases = {"step": gf.bench.Case({"mine": product, "eager": product}, passes=("step",), images=4)}
    return {**cases, "no step": gf.bench.Case({"mine": torch.sin, "eager": torch.sin}, (x,))}
"""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::conv2d", "convolutions and products"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "convolutions and products"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32", "convolutions and products"),
        ("aten::addmm", "convolutions and products"),
        ("aten::native_batch_norm", "norms and activations"),
        ("genimg_fast::group_norm_act_backward", "norms and activations"),
        ("autograd::engine::evaluate_function: LeakyReluBackward0", "norms and activations"),
        ("genimg_fast::lstm", "recurrent layers"),
        ("aten::binary_cross_entropy_with_logits", "losses"),
        ("aten::log_sigmoid_forward", "losses"),
        ("Optimizer.step#Adam.step", "optimizer"),
        ("aten::copy_", None),
        ("aten::sum", None),
    ],
)
def test_kinds_are_told_by_names(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def event(name: str, microseconds: float, *children: Any) -> Any:
    return SimpleNamespace(name=name, self_cpu_time_total=microseconds, cpu_children=children)


def test_time_goes_to_the_outermost_operator_that_has_a_kind() -> None:
    totals = dict.fromkeys((*KINDS, OTHER), 0.0)
    convolution = event("aten::conv2d", 1, event("aten::copy_", 2), event("aten::relu", 4))
    for outer in (event("my step", 8, convolution, event("aten::copy_", 16)), event("aten::relu", 32)):
        shares._add(outer, None, totals)
    found = {kind: round(seconds * 1e6) for kind, seconds in totals.items() if seconds}
    assert found == {"convolutions and products": 7, "norms and activations": 32, OTHER: 24}


def test_a_step_is_profiled() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(8, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.LeakyReLU(), torch.nn.Conv2d(64, 8, 3)
    )
    optimizer = torch.optim.Adam(network.parameters())
    x = torch.randn(8, 8, 32, 32)

    def step() -> None:
        torch.nn.functional.mse_loss(network(x), x[..., 2:-2, 2:-2]).backward()
        optimizer.step()

    step()
    found = seconds_by_kind({"mine": step}, "cpu", seconds=0.05)["mine"]
    assert set(found) == {*KINDS, OTHER}
    assert all(found[kind] > 0 for kind in found if kind != "recurrent layers")
    assert found["recurrent layers"] == 0


def test_a_gain_is_that_of_the_share() -> None:
    theirs, ours = {"norms": 2.0, "other": 8.0}, {"norms": 0.5, "other": 4.0}
    assert gain_of(theirs, ours, ["norms"]) == pytest.approx(10 / 8.5)
    assert gain_of(theirs, ours, theirs) == pytest.approx(10 / 4.5)
    assert gain_of(theirs, ours, []) == 1


def test_a_step_has_a_line_of_rates_and_one_of_shares() -> None:
    kinds = {"convolutions and products": 8.0, "norms and activations": 2.0, "recurrent layers": 0.0, OTHER: 0.01}
    row = Row(
        "DCGAN step", "step", "genimg_fast", images=64, memory={"eager": [9_000_000, 0]},
        seconds={"warm": {"genimg_fast": [[1.0]], "eager": [[2.0]]}},
        kinds={"eager": kinds, "genimg_fast": {**kinds, "norms and activations": 1.0}},
    )  # fmt: skip
    rates, shares = report.step_lines(row)
    assert rates == "DCGAN step: genimg_fast 64 images/s, eager 32 images/s (9 MB)"
    assert "convolutions and products 80% (1.0x), norms and activations 20% (2.0x);" in shares
    assert shares.endswith("alone predict 1.11x, all together 1.11x; measured 2.00x")
    row.kinds = {}
    assert report.step_lines(row) == [rates]


def test_a_process_profiles_steps_alone(tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(STEPS)
    reads, writes = os.pipe()
    job = {"names": ["step", "no step"], "own": f"{file}:several", "device": "cpu", "threads": 1}
    subprocess.run(
        [sys.executable, "-m", "genimg_fast.bench.shares"], input=json.dumps({**job, "descriptor": writes}),
        text=True, pass_fds=[writes], check=True,
    )  # fmt: skip
    os.close(writes)
    with os.fdopen(reads) as lines:
        (row,) = map(json.loads, io.StringIO(lines.read()))
    assert (row["name"], row["pass"]) == ("step", "step")
    assert set(row["kinds"]) == set(row["memory"]) == {"mine", "eager"}
    assert row["kinds"]["mine"]["convolutions and products"] > 0
    assert row["memory"]["mine"][0] >= 256 * 256 * 4
