import itertools

import pytest
import torch
import torch.nn.functional as F
from accuracy import FORWARD, assert_as_accurate_as_torch
from ops.group_norm_act.calls import ACTIVATIONS, INF, KINDS, NAMES, SHAPES, check, make, run
from torch.utils._python_dispatch import TorchDispatchMode

import genimg_fast as gf
from genimg_fast.bench.case import tensors_of
from genimg_fast.ops import group_norm_act, group_norm_act_reference


@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "own"), KINDS)
def test_dtypes_and_ranks(shape, groups, dtype, own, device):
    check(make(shape, dtype, own, device=device), groups=groups)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("modulated", [True, False], ids=["modulated", "fixed"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_options(activation, affine, residual, modulated, layout, device):
    tensors = make(
        (6, 8, 7, 9), device=device, affine=affine, residual=residual, modulated=modulated, layout=layout
    )
    check(tensors, groups=2, activation=activation)


@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=4)), ids=str)
@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 5, 5)], ids=str)
def test_each_parameter_alone(present, shape, device):
    tensors = make(shape, device=device)
    for k, given in zip((1, 2, 4, 5), present, strict=True):
        tensors[k] = tensors[k] if given else None
    check(tensors, groups=4)


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((5, 6, 33), 2), ((4, 12, 7, 9), 12), ((8, 64, 8, 8), 8), ((2, 4, 4, 5, 6), 1), ((2, 6, 32, 32), 2)],
    ids=str,
)
def test_layouts(layout, dtype, shape, groups, device):
    tensors = make(shape, dtype, device=device, layout=layout)
    ours, torchs = check(tensors, groups=groups)
    if device == "cpu":  # on CUDA torch's own is always contiguous
        assert ours["output"].stride() == torchs["output"].stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_mean_far_from_zero(layout, device):
    check(make((8, 8, 16, 16), device=device, layout=layout, offset=2000.0), groups=2)


# A plane of several pieces, a group of several segments, more columns than a block, a short last row.
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "own"), [KINDS[0], KINDS[4]])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((1, 2, 200, 331), 2), ((3, 12, 64, 65), 1), ((2, 384, 20, 20), 32), ((3, 3, 151, 149), 3)],
    ids=str,
)
def test_large(layout, dtype, own, shape, groups, device):
    check(make(shape, dtype, own, device=device, layout=layout), groups=groups)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_outputs_past_the_caches(layout, device):
    check(make((16, 32, 96, 96), device=device, layout=layout, modulated=False), groups=8)


@pytest.mark.parametrize("slope", [0.0, -0.5, 1.5])
def test_any_slope(slope, device):
    x = make((6, 6, 7, 9), torch.float64, device=device)[0]
    options = {"activation": "leaky_relu", "negative_slope": slope}
    torch.testing.assert_close(group_norm_act(x, 3, **options), group_norm_act_reference(x, 3, **options))


@pytest.mark.parametrize("eps", [0.0, 1.0, -1.0, float("nan")])
def test_any_eps(eps, device):
    x = make((6, 6, 7, 9), device=device)[0]
    torch.testing.assert_close(
        group_norm_act(x, 3, eps=eps), group_norm_act_reference(x, 3, eps=eps), equal_nan=True
    )


@pytest.mark.parametrize(("dtype", "own"), KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.usefixtures("simd_level")
def test_every_simd_level(dtype, own, layout, activation):
    for shape, groups in [((6, 37, 5, 7), 1), ((8, 16, 16, 16), 4), ((3, 2, 40, 41), 2), ((24, 40), 8)]:
        check(make(shape, dtype, own, layout=layout), groups=groups, activation=activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "own"), [KINDS[0], KINDS[1]])
def test_values_far_from_zero(activation, dtype, own, device):
    tensors = make((4, 6, 7, 9), dtype, own, device=device)
    tensors[1] = tensors[1] * 100  # where e^-v is beyond float32
    check(tensors, groups=2, activation=activation)


# Infinite parameters are not among them: the kernels have bias * (1 + scale) in one, so that where torch's steps
# give an infinity this may be NaN, and the reverse.
INFINITE = {
    "input": {"input": [INF]},
    "input, weight zero": {"input": [INF], "weight": 0.0},
    "input of both signs": {"input": [INF, -INF]},
    "NaN in input": {"input": [float("nan")]},
    "weight zero": {"weight": 0.0},
    "NaN in weight": {"weight": float("nan")},
    "NaN in bias": {"bias": float("nan")},
    "NaN in scale": {"scale": float("nan")},
    "shift": {"shift": INF},
    "residual": {"residual": [-INF]},
    "residual of both signs": {"residual": [INF, -INF]},
    "input and residual": {"input": [INF], "residual": [-INF]},
    "grad_output": {"grad_output": [INF]},
    "grad_output, input": {"grad_output": [INF], "input": [INF]},
}


@pytest.mark.parametrize("case", INFINITE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_infinity_and_nan_reach_what_they_reach_in_torch(case, activation, layout, device):
    for (dtype, own), shape in itertools.product(
        [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)], [(5, 4, 5, 7), (3, 4, 12, 13)]
    ):
        values = dict(zip(NAMES, make(shape, dtype, own, device=device, layout=layout), strict=True))
        values["grad_output"] = torch.randn_like(values["input"])
        for name, value in INFINITE[case].items():
            if isinstance(value, list):
                for k, v in enumerate(value):
                    values[name][k, 1, 0, 0] = v
            elif values[name].dim() == 1:
                values[name][1] = value
            else:
                values[name][0, 1] = value
        results = []
        for function in (group_norm_act, group_norm_act_reference):
            leaves = {name: values[name].clone().requires_grad_() for name in NAMES}
            arguments = {name: t for name, t in leaves.items() if name != "input"}
            y = function(leaves["input"], 2, **arguments, activation=activation, negative_slope=0.2)
            gradients = torch.autograd.grad(y, list(leaves.values()), values["grad_output"])
            # How far finite values agree is tested elsewhere.
            # A gradient that is not finite is infinite or NaN by the order of its terms.
            results.append([torch.where(y.isfinite(), 0.0, y.detach()), *(t.isfinite() for t in gradients)])
        torch.testing.assert_close(*results, equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "groups"), [((32, 24, 14, 14), 4), ((1, 24, 70, 70), 1), ((3, 8, 90, 90), 2)], ids=str
)
def test_bit_identical_from_run_to_run_and_across_threads(layout, shape, groups, device):
    tensors = make(shape, device=device, layout=layout)
    grad_output = torch.randn_like(tensors[0])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 5):
            torch.set_num_threads(count)
            results.append(run(group_norm_act, tensors, grad_output, groups=groups))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("own", ["wide", "16 bits"])
def test_autocast_as_in_torch(dtype, own, device):
    x, weight, bias, residual, scale, shift = make((4, 6, 5, 5), device=device)
    for data in (x, x.to(dtype)):
        if device == "cpu" and own == "16 bits" and data is x:
            continue  # torch refuses them, under autocast too
        arguments = [weight, bias] if own == "wide" else [weight.to(dtype), bias.to(dtype)]
        for added in (residual, residual.to(data.dtype)):
            results = []
            for function in (group_norm_act, group_norm_act_reference):
                with torch.autocast(device, dtype):
                    results.append(function(data, 3, *arguments, residual=added, scale=scale, shift=shift))
            wide = [t.double() for t in (data, *arguments, added, scale, shift)]
            exact = group_norm_act_reference(
                wide[0], 3, *wide[1:3], residual=wide[3], scale=wide[4], shift=wide[5]
            )
            assert_as_accurate_as_torch(*results, exact, times=FORWARD)


class Wide(TorchDispatchMode):
    """Counts the float32 tensors of a size that operators give."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.found = numel, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.found += sum(t.numel() == self.numel and t.dtype == torch.float32 for t in tensors_of(result))
        return result


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_autocast_makes_no_float32_copies(layout):
    x, weight, bias, residual, scale, shift = make((4, 6, 5, 5), torch.bfloat16, torch.float32, layout=layout)
    leaves = [t.requires_grad_() for t in (x, residual, weight, bias, scale, shift)]
    with Wide(x.numel()) as wide, torch.autocast("cpu", torch.bfloat16):
        y = group_norm_act(x, 3, weight, bias, residual=residual, scale=scale, shift=shift)
        torch.autograd.grad(y, leaves, torch.ones_like(y))
        assert wide.found == 0
        group_norm_act_reference(x.float(), 3, weight, bias)
        assert wide.found > 0


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 4, 4)], ids=str)
def test_empty_input_as_in_torch(shape, device):
    results = []
    for function in (group_norm_act, group_norm_act_reference):
        x = torch.empty(shape, device=device, requires_grad=True)
        weight = torch.ones(4, device=device, requires_grad=True)
        output = function(x, 2, weight)
        output.sum().backward()
        results.append((output, x.grad, weight.grad))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, equal_nan=True)


def test_batch_of_one_keeps_channels_last():
    x = torch.randn(40, 50, 16).permute(2, 0, 1).unsqueeze(0)
    ours, torchs = group_norm_act(x, 4), group_norm_act_reference(x, 4)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, torchs)


def test_one_value_per_group(device):
    x = torch.randn(5, 8, device=device)
    bias = torch.randn(8, device=device)
    torch.testing.assert_close(group_norm_act(x, 8, None, bias), F.silu(bias).expand(5, 8))


def test_reference_is_plain_torch():
    x, weight, bias, residual, scale, shift = make((6, 6, 7, 9))
    normalised = F.group_norm(x, 3, weight, bias)
    expected = F.silu(normalised * (1 + scale[:, :, None, None]) + shift[:, :, None, None] + residual)
    with gf.backend("reference"):
        ours = group_norm_act(x, 3, weight, bias, residual=residual, scale=scale, shift=shift)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(("shape", "torchs"), [((4, 6, 7), F.instance_norm), ((4, 6, 7, 9), F.instance_norm)])
def test_instance_norm(shape, torchs, device):
    x = torch.randn(shape, device=device)
    torch.testing.assert_close(group_norm_act(x, 6, activation="identity"), torchs(x))
