import pytest
import torch
from ops.image_conv_act.calls import DTYPES, OPERATORS, SMALL, both_ways, make, run

from genimg_fast.ops import image_conv_act, image_conv_act_reference


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@both_ways
def test_compiles_as_one_graph(dtype, layout, backend, transposed):
    tensors = make(SMALL, transposed, dtype, layout=layout)
    options = {"activation": "leaky_relu", **SMALL.options(transposed)}
    grad_output = torch.randn(SMALL.image if transposed else SMALL.features_shape).to(dtype)
    torch._dynamo.reset()
    compiled = torch.compile(image_conv_act, fullgraph=True, backend=backend)
    for _ in range(2):
        ours = run(compiled, tensors, grad_output, **options)
        eager = run(image_conv_act, tensors, grad_output, **options)
        for name, value in ours.items():
            torch.testing.assert_close(value, eager[name], msg=name)
    assert ours["output"].stride() == eager["output"].stride()
    graph = torch._dynamo.explain(image_conv_act)(*tensors, **options).graphs[0].graph
    assert "genimg_fast.image_conv" in str(graph)


@pytest.mark.parametrize("activation", ["silu", "tanh"])
@both_ways
def test_autocast_inside_compile(activation, transposed):
    tensors = make(SMALL, transposed)
    grad_output = torch.randn(SMALL.image if transposed else SMALL.features_shape).bfloat16()
    results = []
    for function in (image_conv_act, image_conv_act_reference):
        torch._dynamo.reset()
        with torch.autocast("cpu", torch.bfloat16):
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
            results.append(run(compiled, tensors, grad_output, activation=activation, **SMALL.options(transposed)))
    torch.testing.assert_close(*results, rtol=0.05, atol=0.05)


@both_ways
def test_sizes_that_change_inside_compile(transposed):
    torch._dynamo.reset()
    compiled = torch.compile(image_conv_act, fullgraph=True, backend="aot_eager", dynamic=True)
    for side in (8, 12, 14):
        shape = SMALL._replace(image=(side // 4, 3, side, side))
        tensors = make(shape, transposed)
        grad_output = torch.randn(shape.image if transposed else shape.features_shape)
        options = {"activation": "tanh", **shape.options(transposed)}
        results = [run(f, tensors, grad_output, **options) for f in (compiled, image_conv_act)]
        torch.testing.assert_close(*results)


@both_ways
def test_second_order_inside_compile(transposed):
    tensors = make(SMALL, transposed)

    def penalty_gradients(function):
        leaves = [t.clone().requires_grad_() for t in tensors]
        output = function(*leaves, **SMALL.options(transposed), activation="tanh")
        (gradient,) = torch.autograd.grad(output.square().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), leaves)

    torch._dynamo.reset()
    # The other backends refuse to differentiate twice, whatever the layer.
    compiled = torch.compile(image_conv_act, fullgraph=True, backend="eager")
    results = penalty_gradients(compiled), penalty_gradients(image_conv_act_reference)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(layout, weight_layout, dtype):
    image, weight, bias = make(SMALL, False, dtype, layout=layout, weight_layout=weight_layout)
    features = make(SMALL, True, dtype, layout=layout)[0]
    image, weight, features, bias = (t.detach().requires_grad_() for t in (image, weight, features, bias))
    options = [list(SMALL.stride), list(SMALL.padding)]
    for given, activation in ((bias, 4), (None, 2)):
        torch.library.opcheck(OPERATORS.image_conv_from.default, (image, weight, given, *options, activation, 0.2))
    for given, activation in ((bias[:3].detach(), 5), (None, 0)):
        size = list(SMALL.image[2:])
        torch.library.opcheck(
            OPERATORS.image_conv_to.default, (features, weight, given, *options, size, activation, 0.2)
        )
    torch.library.opcheck(OPERATORS.image_conv_weight.default, (image, features, list(SMALL.kernel), *options))


RAW_BAD_INPUT = {
    "channels": {"image": torch.ones(2, 5, 8, 8), "weight": torch.ones(8, 5, 4, 4)},
    "float32 or bfloat16": {"image": torch.ones(2, 3, 8, 8, dtype=torch.float64)},
    "weight": {"weight": torch.ones(8, 2, 4, 4)},
    "weight ": {"weight": torch.ones(8, 3, 4)},
    "bias": {"bias": torch.ones(7)},
    "stride": {"stride": [0, 1]},
    "padding": {"padding": [-1, 1]},
    "activation": {"activation": 6},
}


@pytest.mark.parametrize("message", RAW_BAD_INPUT)
def test_raw_operators_refuse_bad_input(message):
    arguments = {"image": torch.ones(2, 3, 8, 8), "weight": torch.ones(8, 3, 4, 4), "bias": None}
    arguments |= {"stride": [2, 2], "padding": [1, 1], "activation": 0, "negative_slope": 0.0}
    OPERATORS.image_conv_from(**arguments)
    with pytest.raises(RuntimeError, match=message.strip()):
        OPERATORS.image_conv_from(**(arguments | RAW_BAD_INPUT[message]))


def test_raw_operators_refuse_sizes_that_do_not_fit():
    image, features, weight = torch.ones(2, 3, 8, 8), torch.ones(2, 8, 4, 4), torch.ones(8, 3, 4, 4)
    for size in ([10, 8], [8, 7], [8], [0, 8]):
        with pytest.raises(RuntimeError, match="image_conv"):
            OPERATORS.image_conv_to(features, weight, None, [2, 2], [1, 1], size, 0, 0.0)
    for kernel in ([4, 2], [0, 4], [4]):
        with pytest.raises(RuntimeError, match="image_conv"):
            OPERATORS.image_conv_weight(image, features, kernel, [2, 2], [1, 1])
