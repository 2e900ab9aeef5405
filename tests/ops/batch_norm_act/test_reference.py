import itertools

import pytest
import torch
import torch.nn.functional as F
from ops.batch_norm_act.calls import (
    ACTIVATIONS,
    INF,
    KINDS,
    SHAPES,
    check,
    make,
    run,
)

import genimg_fast as gf
from genimg_fast.ops import batch_norm_act, batch_norm_act_reference


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "own"), KINDS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_dtypes_and_ranks(shape, dtype, own, training, activation, device):
    check(make(shape, dtype, own, device=device), training=training, activation=activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_options(activation, affine, residual, training, device):
    tensors = make((6, 5, 7, 9), device=device, affine=affine, residual=residual)
    check(tensors, training=training, activation=activation)


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5, 3, 33), (4, 12, 7, 9), (8, 64, 8, 8), (2, 3, 4, 5, 6)], ids=str)
def test_layouts(layout, dtype, shape, device):
    tensors = make(shape, dtype, device=device, layout=layout, residual=True)
    ours, torchs = check(tensors)
    assert ours["output"].stride() == torchs["output"].stride()


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_mean_far_from_zero(layout, activation, device):
    check(make((16, 8, 16, 16), device=device, layout=layout, offset=2000.0), activation=activation)


@pytest.mark.parametrize("shape", [(32, 48, 28, 28), (36, 64, 44, 44)], ids=["read ahead", "past the caches"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "own"), [KINDS[0], KINDS[4]])
def test_large(layout, dtype, own, shape, device):
    check(make(shape, dtype, own, device=device, layout=layout, residual=True))


@pytest.mark.parametrize("slope", [0.0, -0.5, 1.5])
def test_any_slope(slope, device):
    x, weight, bias, _ = make((6, 5, 7, 9), torch.float64, device=device)
    ours = batch_norm_act(x, None, None, weight, bias, True, negative_slope=slope)
    torchs = batch_norm_act_reference(x, None, None, weight, bias, True, negative_slope=slope)
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize(("dtype", "own"), KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.usefixtures("simd_level")
def test_every_simd_level(dtype, own, layout):
    for shape, activation in itertools.product(
        [(6, 37, 5, 7), (8, 16, 16, 16), (3, 2, 40, 41), (24, 40, 2, 2)], ["leaky_relu", "silu"]
    ):
        check(make(shape, dtype, own, layout=layout, residual=True), activation=activation)


INFINITE = {
    "input": {"x": [INF]},
    "input, weight zero": {"x": [INF], "weight": 0.0},
    "input of both signs": {"x": [INF, -INF]},
    "NaN in input": {"x": [float("nan")]},
    "weight zero": {"weight": 0.0},
    "NaN in weight": {"weight": float("nan")},
    "bias": {"bias": -INF},
    "residual": {"residual": [-INF]},
    "input and residual": {"x": [INF], "residual": [-INF]},
    "running_mean": {"running_mean": INF},
    "running_var": {"running_var": INF},
    "grad_output": {"grad_output": [INF]},
    "grad_output, input": {"grad_output": [INF], "x": [INF]},
}


@pytest.mark.parametrize("case", INFINITE)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_infinity_and_nan_reach_what_they_reach_in_torch(case, training, layout, device):
    for (dtype, own), activation, shape in itertools.product(
        [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)], ACTIVATIONS,
        [(5, 3, 5, 7), (3, 3, 12, 13)],
    ):  # fmt: skip
        x, weight, bias, residual = make(shape, dtype, own, device=device, layout=layout, residual=True)
        values = {"x": x, "weight": weight, "bias": bias, "residual": residual}
        values |= {"running_mean": torch.zeros_like(bias), "running_var": torch.ones_like(bias)}
        values["grad_output"] = torch.randn_like(x)
        for name, value in INFINITE[case].items():
            if isinstance(value, list):
                for k, v in enumerate(value):
                    values[name][k, 1, 0, 0] = v
            else:
                values[name][1] = value
        results = []
        for function in (batch_norm_act, batch_norm_act_reference):
            copies = {name: t.clone() for name, t in values.items()}
            leaves = [copies[n].requires_grad_() for n in ("x", "weight", "bias", "residual")]
            statistics = copies["running_mean"], copies["running_var"]
            y = function(
                leaves[0], *statistics, *leaves[1:3], training, activation=activation, negative_slope=0.2,
                residual=leaves[3],
            )  # fmt: skip
            gradients = torch.autograd.grad(y, leaves, copies["grad_output"])
            # How far finite values agree is tested elsewhere.
            results.append([torch.where(t.isfinite(), 0.0, t.detach()) for t in (y, *statistics, *gradients)])
        torch.testing.assert_close(*results, equal_nan=True)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bit_identical_from_run_to_run_and_across_threads(layout, activation, device):
    tensors = make((32, 24, 14, 14), device=device, layout=layout)
    grad_output = torch.randn_like(tensors[0])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(run(batch_norm_act, tensors, grad_output, training=True, activation=activation))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_as_in_torch(dtype, activation, device):
    x, weight, bias, _ = make((4, 6, 5, 5), device=device)
    for data in (x, x.to(dtype)):
        with torch.autocast(device, dtype):
            ours = batch_norm_act(data, None, None, weight, bias, True, activation=activation)
            torchs = batch_norm_act_reference(data, None, None, weight, bias, True, activation=activation)
        assert ours.dtype == torchs.dtype
        torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_16_bits_throughout_alone(dtype, device):
    x, weight, bias, _ = make((4, 6, 5, 5), dtype, dtype, device=device)
    with torch.autocast(device, dtype):
        ours = batch_norm_act(x, None, None, weight, bias, True)
        torchs = batch_norm_act_reference(x, None, None, weight, bias, True)
    assert ours.dtype == torchs.dtype
    assert torch.equal(ours, batch_norm_act(x, None, None, weight, bias, True))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty_input_as_in_torch(shape, training, device):
    results = []
    for function in (batch_norm_act, batch_norm_act_reference):
        x = torch.empty(shape, device=device, requires_grad=True)
        mean, var = torch.zeros(3, device=device), torch.ones(3, device=device)
        output = function(x, mean, var, training=training)
        output.sum().backward()
        results.append((output, x.grad, mean, var))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, equal_nan=True)


def test_batch_of_one_keeps_channels_last(device):
    x = torch.randn(40, 50, 16, device=device).permute(2, 0, 1).unsqueeze(0)
    ours, torchs = batch_norm_act(x, training=True), batch_norm_act_reference(x, training=True)
    assert ours.stride() == torchs.stride()
    torch.testing.assert_close(ours, torchs)


def test_reference_is_plain_torch():
    x, weight, bias, residual = make((6, 5, 7, 9), residual=True)
    expected = F.leaky_relu(F.batch_norm(x, None, None, weight, bias, True) + residual, 0.2)
    with gf.backend("reference"):
        ours = batch_norm_act(x, None, None, weight, bias, True, negative_slope=0.2, residual=residual)
    assert torch.equal(ours, expected)


def test_silu_of_every_bfloat16(device):
    every = torch.arange(2**16, device=device).to(torch.int16).view(torch.bfloat16)
    x = every[every.isfinite()].view(1, 1, 256, -1).requires_grad_()
    zero, one = torch.zeros(1, device=device), torch.ones(1, device=device)
    y = batch_norm_act(x, zero, one, None, None, False, 0.1, 0.0, activation="silu")
    wide = x.detach().double().requires_grad_()
    expected = F.silu(wide)
    for found, right in zip(
        (y, *torch.autograd.grad(y.sum(), x)), (expected, *torch.autograd.grad(expected.sum(), wide)), strict=True
    ):
        # Half a step of 8 bits, the sigmoid's error, and what becomes zero where e^x is no normal number.
        torch.testing.assert_close(found.double(), right, rtol=0.005, atol=1e-36)
