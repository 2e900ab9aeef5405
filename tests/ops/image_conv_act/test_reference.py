import itertools

import pytest
import torch
import torch.nn.functional as F
from ops.image_conv_act.calls import (
    ACTIVATIONS,
    DTYPES,
    LAYOUTS,
    SHAPES,
    SMALL,
    Shape,
    both_ways,
    check,
    make,
    run,
)

import genimg_fast as gf
from genimg_fast.ops import image_conv_act, image_conv_act_reference


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@both_ways
def test_shapes(shape, dtype, layout, transposed):
    check(shape, make(shape, transposed, dtype, layout=layout), transposed)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@both_ways
def test_options(activation, bias, layout, dtype, transposed):
    shape = Shape((3, 3, 14, 18), 16)
    check(shape, make(shape, transposed, dtype, layout=layout, bias=bias), transposed, activation=activation)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@both_ways
def test_layouts(layout, weight_layout, dtype, transposed):
    shape = Shape((3, 3, 10, 12), 16)
    tensors = make(shape, transposed, dtype, layout=layout, weight_layout=weight_layout)
    ours, torchs = check(shape, tensors, transposed)
    assert ours["output"].stride() == torchs["output"].stride()


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["identity", "leaky_relu"])
@both_ways
def test_grad_output_of_another_layout(grad_layout, layout, activation, transposed):
    tensors = make(SMALL, transposed, layout=layout)
    check(SMALL, tensors, transposed, activation=activation, grad_layout=grad_layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
@both_ways
@pytest.mark.usefixtures("simd_level")
def test_every_simd_level(dtype, layout, activation, transposed):
    for shape in SHAPES[2:7]:
        check(shape, make(shape, transposed, dtype, layout=layout), transposed, activation=activation)


@pytest.mark.parametrize("slope", [0.0, -0.5, 1.5])
@both_ways
def test_any_slope(slope, transposed):
    tensors = make(SMALL, transposed)
    results = []
    for function in (image_conv_act, image_conv_act_reference):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = function(*leaves, **SMALL.options(transposed), activation="leaky_relu", negative_slope=slope)
        results.append([y, *torch.autograd.grad(y, leaves, y.detach().cos())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@both_ways
def test_values_far_from_zero(activation, transposed):
    tensors = make(SMALL, transposed)
    check(SMALL, [tensors[0] * 100, *tensors[1:]], transposed, activation=activation)


@pytest.mark.parametrize("of", range(3), ids=["input", "weight", "bias"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@both_ways
def test_infinity_and_nan_reach_what_they_reach_in_torch(of, layout, transposed):
    for value, activation in itertools.product([float("inf"), float("-inf"), float("nan")], ACTIVATIONS):
        tensors = make(SMALL, transposed, layout=layout)
        tensors[of][(1,) * tensors[of].dim()] = value
        results = []
        for function in (image_conv_act, image_conv_act_reference):
            y = function(*tensors, **SMALL.options(transposed), activation=activation)
            # How far finite values agree is tested elsewhere.
            results.append(torch.where(y.isfinite(), 0.0, y))
        torch.testing.assert_close(*results, equal_nan=True, msg=lambda m, a=activation: f"{a}: {m}")


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3]], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@both_ways
def test_bit_identical_from_run_to_run_and_across_threads(shape, layout, dtype, transposed):
    tensors = make(shape, transposed, dtype, layout=layout)
    grad_output = torch.randn(shape.image if transposed else shape.features_shape)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 5):
            torch.set_num_threads(count)
            results.append(run(image_conv_act, tensors, grad_output, **shape.options(transposed)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            if name != "grad_bias":  # torch's own sum
                assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
@both_ways
def test_autocast_as_in_torch(dtype, weights, transposed):
    x, weight, bias = make(SMALL, transposed)
    tensors = [x.to(dtype), weight.to(weights), bias.to(weights)]
    grad_output = torch.randn(SMALL.image if transposed else SMALL.features_shape)
    results = []
    for function in (image_conv_act, image_conv_act_reference):
        backend = gf.backend("auto" if dtype == torch.float64 else "native")
        with torch.autocast("cpu", torch.bfloat16), backend:
            try:
                results.append(run(function, tensors, grad_output, activation="tanh", **SMALL.options(transposed)))
            except RuntimeError as error:  # float64 is not cast, and meets weights that are
                results.append({"error": str(error)})
    if "error" in results[1]:
        assert results[0] == results[1]
        return
    for name, value in results[0].items():
        torch.testing.assert_close(
            value, results[1][name], rtol=0.05, atol=0.05, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("shape", [Shape((0, 3, 8, 8)), Shape((2, 3, 8, 8), 0)], ids=str)
@both_ways
def test_empty_tensors_as_in_torch(shape, transposed):
    outcomes = []
    for function in (image_conv_act, image_conv_act_reference):
        x, weight, bias = (t.requires_grad_() for t in make(shape, transposed))
        try:
            output = function(x, weight, bias, activation="relu", **shape.options(transposed))
            output.sum().backward()
            outcomes.append((output, x.grad, weight.grad, bias.grad))
        except RuntimeError as error:
            outcomes.append(str(error))
    if isinstance(outcomes[1], str):
        assert outcomes[0] == outcomes[1]
    else:
        torch.testing.assert_close(*outcomes)


def test_reference_is_plain_torch():
    x, weight, bias = make(SMALL)
    expected = F.leaky_relu(F.conv2d(x, weight, bias, 2, 1), 0.2)
    with gf.backend("reference"):
        ours = image_conv_act(x, weight, bias, 2, 1, activation="leaky_relu", negative_slope=0.2)
    assert torch.equal(ours, expected)
    expected = F.conv_transpose2d(expected, weight, None, 2, 1, 1).sigmoid()
    ours = image_conv_act_reference(
        ours, weight, None, 2, 1, transposed=True, output_padding=1, activation="sigmoid"
    )
    assert torch.equal(ours, expected)
