import itertools

import pytest
import torch
import torch.nn.functional as F
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import genimg_fast as gf
from genimg_fast import _native
from genimg_fast.ops import batch_norm_act, batch_norm_act_reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Of the input, and of parameters and running statistics.
KINDS = [
    pytest.param(torch.float32, torch.float32, id="float32"),
    pytest.param(torch.float64, torch.float64, id="float64"),
    pytest.param(torch.bfloat16, torch.float32, id="bfloat16"),
    pytest.param(torch.float16, torch.float32, id="float16"),
    pytest.param(torch.bfloat16, torch.bfloat16, id="bfloat16 throughout"),
    pytest.param(torch.float16, torch.float16, id="float16 throughout"),
]
ACTIVATIONS = ["identity", "relu", "leaky_relu"]
SHAPES = [(16, 7), (5, 3, 33), (4, 5, 7, 9), (8, 64, 8, 8), (2, 3, 4, 5, 6), (3, 1, 17, 1), (64, 24, 4, 4)]
INF = float("inf")
OPERATORS = torch.ops.genimg_fast


@pytest.fixture(autouse=True)
def _native_backend():
    with gf.backend("native"):
        yield


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last":
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return x.contiguous(memory_format=formats.get(x.dim(), torch.contiguous_format))
    if layout == "strided":  # a slice of a larger tensor: no dimension's stride is what the shape suggests
        larger = torch.full([2 * n + 1 for n in x.shape], float("nan"), dtype=x.dtype, device=x.device)
        view = larger[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)]
        return view.copy_(x)
    if layout == "expanded":
        return x[:1].expand_as(x)
    return x


def make(
    shape, dtype=torch.float32, own=None, *, device="cpu", layout="contiguous", offset=0.0, affine=True,
    residual=False,
):  # fmt: skip
    """Arguments of one call: input, weight, bias, residual. `own` is the parameters' dtype."""
    x = torch.randn(shape, device=device) * 2 + offset
    parameters = {"dtype": own or statistics_dtype(dtype), "device": device}
    weight = torch.rand(shape[1], **parameters) + 0.5 if affine else None
    bias = torch.randn(shape[1], **parameters) if affine else None
    added = torch.randn(shape, device=device).to(dtype) if residual else None
    return [lay_out(x.to(dtype), layout), weight, bias, added]


def run(function, tensors, grad_output, *, training, activation, dtype=None, **options):
    """Forward and backward; returns every result by name. `dtype` computes in that dtype instead."""
    x, weight = tensors[:2]
    kind = statistics_dtype(x.dtype) if weight is None else weight.dtype
    channels = x.shape[1]
    running_mean, running_var = (
        torch.linspace(*ends, channels, device=x.device).to(kind).to(dtype or kind) for ends in ((-1, 1), (0.5, 2))
    )
    tensors = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    x, weight, bias, residual = tensors
    output = function(
        x, running_mean, running_var, weight, bias, training, 0.3, 1e-5,
        activation=activation, negative_slope=0.2, residual=residual, **options,
    )  # fmt: skip
    output.backward(grad_output.to(output.dtype))
    named = dict(zip(("input", "weight", "bias", "residual"), tensors, strict=True))
    gradients = {f"grad_{name}": t.grad for name, t in named.items() if t is not None}
    return {"output": output, "running_mean": running_mean, "running_var": running_var, **gradients}


def check(tensors, *, training=True, activation="leaky_relu", grad_output=None):
    grad_output = torch.randn_like(tensors[0]) if grad_output is None else grad_output
    options = {"training": training, "activation": activation}
    ours = run(batch_norm_act, tensors, grad_output, **options)
    torchs = run(batch_norm_act_reference, tensors, grad_output, **options)
    exact = run(batch_norm_act_reference, tensors, grad_output, dtype=torch.float64, **options)
    for name, value in ours.items():
        times = GRADIENT if name.startswith("grad") else FORWARD
        assert_as_accurate_as_torch(value, torchs[name], exact[name], times=times, name=name)
    assert type(ours["output"].grad_fn).__name__ == "_BatchNormActBackward"
    return ours, torchs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "own"), KINDS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_dtypes_and_ranks(shape, dtype, own, training, device):
    check(make(shape, dtype, own, device=device), training=training)


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


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_grad_output_of_another_layout(layout, device):
    tensors = make((4, 12, 7, 9), device=device)
    check(tensors, grad_output=lay_out(torch.randn_like(tensors[0]), layout))
    channels_last = make((4, 12, 7, 9), device=device, layout="channels_last")
    check(channels_last, grad_output=torch.randn((4, 12, 7, 9), device=device))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_mean_far_from_zero(layout, device):
    check(make((16, 8, 16, 16), device=device, layout=layout, offset=2000.0))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "own"), [KINDS[0], KINDS[4]])
def test_large(layout, dtype, own, device):
    check(make((32, 48, 28, 28), dtype, own, device=device, layout=layout, residual=True))


@pytest.mark.parametrize("slope", [0.0, -0.5, 1.5])
def test_any_slope(slope, device):
    x, weight, bias, _ = make((6, 5, 7, 9), torch.float64, device=device)
    ours = batch_norm_act(x, None, None, weight, bias, True, negative_slope=slope)
    torchs = batch_norm_act_reference(x, None, None, weight, bias, True, negative_slope=slope)
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("level", ["avx512", "avx2", "sse2"])
@pytest.mark.parametrize(("dtype", "own"), KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_simd_level(level, dtype, own, layout):
    before = _native.simd_level()
    try:
        _native.set_simd_level(level)
    except ValueError:
        pytest.skip(f"this processor has no {level}")
    try:
        for shape in [(6, 37, 5, 7), (8, 16, 16, 16), (3, 2, 40, 41), (24, 40, 2, 2)]:
            check(make(shape, dtype, own, layout=layout, residual=True))
    finally:
        _native.set_simd_level(before)


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


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bit_identical_from_run_to_run_and_across_threads(layout, device):
    tensors = make((32, 24, 14, 14), device=device, layout=layout)
    grad_output = torch.randn_like(tensors[0])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(run(batch_norm_act, tensors, grad_output, training=True, activation="relu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_first_and_second_order(training, activation, device):
    tensors = make((4, 3, 3, 2), torch.float64, device=device, residual=True)
    running = (
        torch.zeros(3, dtype=torch.float64, device=device),
        torch.ones(3, dtype=torch.float64, device=device),
    )
    inputs = [t.requires_grad_() for t in tensors]

    def function(x, weight, bias, residual):
        statistics = tuple(r.clone() for r in running)
        return batch_norm_act(x, *statistics, weight, bias, training, activation=activation, residual=residual)

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_arguments_that_depend_on_each_other(activation, device):
    x, weight, _, _ = make((4, 3, 3, 2), torch.float64, device=device)

    def function(x, weight):
        return batch_norm_act(x * 2, None, None, weight, weight, True, activation=activation, residual=x)

    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)
    results = []
    for create_graph in (False, True):
        output = function(*inputs)
        score = (output * torch.arange(output.numel(), device=device).view_as(output)).sum()
        results.append(torch.autograd.grad(score, inputs, create_graph=create_graph))
    torch.testing.assert_close(*results)


def test_one_tensor_as_input_and_residual(device):
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(lambda x: batch_norm_act(x, training=True, residual=x), x)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: batch_norm_act(x, training=True, residual=x), fullgraph=True)
    torch.testing.assert_close(compiled(x), batch_norm_act(x, training=True, residual=x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("dtype", "own"), KINDS)
def test_gradient_penalty_is_as_accurate_as_torchs(dtype, own, training, device):
    tensors = make((16, 8, 5, 5), dtype, own, device=device, residual=True)

    def penalty_gradients(function, wanted=None):
        x, weight, bias, residual = (t.to(wanted or t.dtype).clone().requires_grad_() for t in tensors)
        statistics = torch.zeros_like(bias), torch.ones_like(bias)
        y = function(x, *statistics, weight, bias, training, residual=residual)
        slopes = torch.autograd.grad(y, (x, weight), y.detach().cos(), create_graph=True)
        penalty = slopes[0].square().sum() + slopes[1].square().sum() / x.numel()
        return torch.autograd.grad(penalty, (x, weight, residual), allow_unused=True)

    for ours, torchs, exact in zip(
        penalty_gradients(batch_norm_act),
        penalty_gradients(batch_norm_act_reference),
        penalty_gradients(batch_norm_act_reference, torch.float64),
        strict=True,
    ):
        if torchs is not None:
            assert_as_accurate_as_torch(ours, torchs, exact, times=GRADIENT)


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=4))[1:], ids=str)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_only_the_gradients_that_are_needed(needed, activation, device):
    tensors = make((6, 5, 7, 9), device=device, residual=True)
    results = []
    for function in (batch_norm_act, batch_norm_act_reference):
        leaves = [t.clone().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
        x, weight, bias, residual = leaves
        function(
            x, None, None, weight, bias, True, activation=activation, residual=residual
        ).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


def test_saves_the_input_and_two_values_per_channel(device):
    x, weight, bias, _ = make((8, 16, 8, 8), device=device)
    x.requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        batch_norm_act(x, torch.zeros_like(bias), torch.ones_like(bias), weight, bias, True)
    assert sorted(t.numel() for t in saved) == [16, 16, 16, 16, x.numel()]
    assert any(t.data_ptr() == x.data_ptr() for t in saved)


def test_two_forwards_before_one_backward(device):
    x, weight, bias, _ = make((8, 16, 8, 8), device=device)
    x.requires_grad_()
    mean, var = torch.zeros(16, device=device), torch.ones(16, device=device)
    first = batch_norm_act(x, mean, var, weight, bias, True)
    second = batch_norm_act(x * 2, mean, var, weight, bias, True)
    (first + second).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("shape", [(2, 16, 3, 3), (64, 16, 8, 8)], ids=["small", "large"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "own"), [KINDS[0], KINDS[4]])
def test_backward_of_an_evaluation_after_a_training_step(dtype, own, layout, shape, device):
    """PyTorch's kernels keep the running statistics, not their values, and do not notice that they changed."""
    x, weight, bias, _ = make(shape, dtype, own, device=device, layout=layout)
    results = []
    for function in (batch_norm_act, batch_norm_act_reference):
        leaf, mean, var = x.clone().requires_grad_(), torch.zeros_like(bias), torch.ones_like(bias)
        with gf.backend("auto"):
            evaluated = function(leaf, mean, var, weight, bias, False, activation="identity")
            function(x * 3, mean, var, weight, bias, True, 0.5)
        evaluated.sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("shape", [(2, 16, 3, 3), (64, 16, 8, 8)], ids=["small", "large"])
def test_a_trace_of_an_evaluation_warns_of_nothing(shape, recwarn):
    x, weight, bias, _ = make(shape)

    def evaluate(x):
        return batch_norm_act(x, torch.zeros(16), torch.ones(16), weight, bias)

    with gf.backend("auto"):
        traced = torch.jit.trace(evaluate, x)
    assert [w.category for w in recwarn if issubclass(w.category, torch.jit.TracerWarning)] == []
    torch.testing.assert_close(traced(x[:1]), evaluate(x[:1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_as_in_torch(dtype, device):
    x, weight, bias, _ = make((4, 6, 5, 5), device=device)
    for data in (x, x.to(dtype)):
        with torch.autocast(device, dtype):
            ours = batch_norm_act(data, None, None, weight, bias, True)
            torchs = batch_norm_act_reference(data, None, None, weight, bias, True)
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
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(("dtype", "own"), [KINDS[0], KINDS[4]])
def test_compiles_as_one_graph(dtype, own, training, layout, backend, device):
    tensors = make((4, 6, 5, 5), dtype, own, device=device, layout=layout, residual=True)
    grad_output = torch.randn_like(tensors[0])
    torch._dynamo.reset()
    compiled = torch.compile(batch_norm_act, fullgraph=True, backend=backend)
    for _ in range(2):
        options = {"training": training, "activation": "leaky_relu"}
        ours = run(compiled, tensors, grad_output, **options)
        eager = run(batch_norm_act, tensors, grad_output, **options)
        for name, value in ours.items():
            torch.testing.assert_close(value, eager[name], msg=name)
    assert ours["output"].stride() == eager["output"].stride()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_second_order_inside_compile(training, device):
    x, weight, bias, _ = make((4, 6, 5, 5), device=device)
    mean, var = torch.zeros(6, device=device), torch.ones(6, device=device)

    def penalty_gradients(function):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        output = function(leaves[0], mean.clone(), var.clone(), leaves[1], leaves[2], training)
        (gradient,) = torch.autograd.grad(output.square().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), leaves)

    torch._dynamo.reset()
    # The other backends refuse to differentiate twice, whatever the layer.
    compiled = torch.compile(batch_norm_act, fullgraph=True, backend="eager")
    for ours, torchs in zip(penalty_gradients(compiled), penalty_gradients(batch_norm_act_reference), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize(("dtype", "own"), KINDS[:3] + KINDS[4:5])
def test_opcheck(layout, dtype, own, device):
    x, weight, bias, residual = make((4, 6, 5, 7), dtype, own, device=device, layout=layout, residual=True)
    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    invstd = var.to(statistics_dtype(dtype))
    for r, w, b in [(residual, weight, bias), (None, None, None)]:
        for statistics in [(mean.clone(), var.clone()), (None, None)]:
            train = (x, r, w, b, *statistics, 0.1, 1e-5, 2, 0.2)
            torch.library.opcheck(OPERATORS.batch_norm_act_train.default, train)
        functional = (x.detach().requires_grad_(), r, w, b, 1e-5, 2, 0.2)
        torch.library.opcheck(OPERATORS.batch_norm_act_train_functional.default, functional)
        evaluate = (x, r, w, b, mean, var, 1e-5, 1, 0.0)
        torch.library.opcheck(OPERATORS.batch_norm_act_eval.default, evaluate)
        for needed in itertools.product([True, False], repeat=2):
            backward = (
                torch.randn_like(x),
                x.detach().requires_grad_(),
                r,
                w,
                b,
                torch.zeros_like(invstd),
                invstd,
                True,
                2,
                0.2,
                *needed,
            )
            torch.library.opcheck(OPERATORS.batch_norm_act_backward.default, backward)


def test_opcheck_of_the_operators_of_compiled_graphs():
    x, weight, bias, residual = make((4, 6, 5, 7), residual=True)
    evaluate = (x.requires_grad_(), residual, weight, bias, torch.zeros(6), torch.ones(6), 1e-5, 1, 0.0)
    torch.library.opcheck(OPERATORS.batch_norm_act_eval_with_copies.default, evaluate)
    backward = (x.detach(), *(t.detach() for t in evaluate[:6]), torch.ones(6), torch.ones(6), *evaluate[6:])
    torch.library.opcheck(OPERATORS.batch_norm_act_eval_backward.default, (*backward, True, True))
    torch.library.opcheck(OPERATORS.copy.default, (weight.requires_grad_(),))


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


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 3, 1, 1)], ids=str)
def test_raw_operators_survive_tiny_input(shape, device):
    x, c = torch.randn(shape, device=device), torch.ones(3, device=device)
    output = OPERATORS.batch_norm_act_train(x, None, None, None, c.clone(), c.clone(), 0.1, 1e-5, 2, 0.2)[0]
    assert output.shape == x.shape
    gradients = OPERATORS.batch_norm_act_backward(x, x, None, None, None, c, c, True, 2, 0.2, True, True)
    assert [g.shape for g in gradients] == [x.shape, x.shape, (3,), (3,)]


BAD_INPUT = {
    "one value per channel": lambda x, c: ((x[:1, :, :1, :1], c, c), {"training": True}),
    "running_mean too long": lambda x, c: ((x, torch.ones(7), c), {}),
    "weight too short": lambda x, c: ((x, c, c, torch.ones(2)), {"training": True}),
    "bias of another dtype": lambda x, c: ((x, c, c, c.double(), c), {}),
    "no statistics in evaluation": lambda x, c: ((x,), {"training": False}),
    "1-d input": lambda x, c: ((x[0, 0, 0], c, c), {}),
    "integer input": lambda x, c: ((x.long(), c, c), {}),
    "float64 input, float32 statistics": lambda x, c: ((x.double(), c, c), {}),
    "residual of another shape": lambda x, c: ((x, c, c), {"residual": torch.ones(4, 5, 2, 2)}),
    "eps zero": lambda x, c: ((x, c, c), {"eps": 0.0, "training": True}),
    "eps zero in evaluation": lambda x, c: ((x, c, c), {"eps": 0.0}),
    "negative eps": lambda x, c: ((x, c, c), {"eps": -1.0, "training": True}),
    "negative eps in evaluation": lambda x, c: ((x, c, c), {"eps": -1.0}),
    "eps not a number": lambda x, c: ((x, c, c), {"eps": float("nan")}),
    "16-bit parameters, float32 statistics": lambda x, c: (
        (x.bfloat16(), c, c, c.bfloat16(), c.bfloat16()),
        {"training": True},
    ),
    "16-bit statistics, float32 parameters": lambda x, c: ((x.half(), c.half(), c.half(), c, c), {}),
    "weight and bias of two dtypes": lambda x, c: ((x.half(), None, None, c.half(), c), {"training": True}),
    "16-bit parameters, float32 input": lambda x, c: ((x, None, None, c.half(), c.half()), {"training": True}),
    "bfloat16 parameters, float16 input": lambda x, c: ((x.half(), c.bfloat16(), c.bfloat16()), {}),
    "strided parameters": lambda x, c: ((x, c, c, torch.rand(12)[::2]), {}),
    "not a tensor": lambda x, c: (([1.0], c, c), {}),
}


@pytest.mark.parametrize("size", [5, 40], ids=["small", "large"])
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_torchs_own_error(case, size):
    arguments, options = BAD_INPUT[case](torch.randn(8, 6, size, size), torch.ones(6))
    outcomes: list[Tensor | str] = []
    for function in (batch_norm_act, batch_norm_act_reference):
        try:
            with gf.backend("auto"):
                outcomes.append(function(*arguments, **options))
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    # What one version of torch refuses another may take: either way we do the same.
    ours, torchs = outcomes
    if isinstance(torchs, Tensor):
        torch.testing.assert_close(ours, torchs, equal_nan=True)
    else:
        assert ours == torchs


def test_unknown_activation_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'gelu'.*identity, relu, leaky_relu"):
        batch_norm_act(torch.randn(4, 6), training=True, activation="gelu")


RAW_BAD_INPUT = {
    "residual must have the input's shape": {"residual": torch.ones(2, 6)},
    "residual must have the input's dtype": {"residual": torch.ones(4, 6, dtype=torch.float64)},
    "weight must have shape": {"weight": torch.ones(5)},
    "bias must have the input's dtype": {"bias": torch.ones(6, dtype=torch.float64)},
    "weight must have the input's dtype": {"weight": torch.ones(6, dtype=torch.bfloat16)},
    "running_mean must be contiguous": {"running_mean": torch.ones(12)[::2]},
    "activation must be 0": {"activation": 3},
    "input must": {"input": torch.ones(6)},
    "input must be float32": {"input": torch.ones(4, 6, dtype=torch.int64)},
}


@pytest.mark.parametrize("message", RAW_BAD_INPUT)
def test_raw_operators_refuse_bad_input(message):
    arguments = dict.fromkeys(["residual", "weight", "bias", "running_mean", "running_var"])
    arguments |= {"input": torch.randn(4, 6), "momentum": 0.1, "eps": 1e-5}
    arguments |= {"activation": 2, "negative_slope": 0.2}
    with pytest.raises(RuntimeError, match=message):
        OPERATORS.batch_norm_act_train(**(arguments | RAW_BAD_INPUT[message]))


def test_native_backend_says_what_it_cannot_do():
    x, c = torch.randn(8, 4), torch.ones(4, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"'native'.*must be torch.float16 or torch.float32 for torch.float16"):
        batch_norm_act(x.half(), None, None, c, c, True)
    with pytest.raises(RuntimeError, match=r"'native'.*one dtype, got torch.bfloat16 and torch.float32"):
        batch_norm_act(x.bfloat16(), c.float(), c.float(), c, c, True)


def test_auto_leaves_to_torch_what_is_faster_there(device):
    small = torch.randn(2, 3, device=device, requires_grad=True)
    strided = torch.ones(128, device=device)[::2]
    large = torch.randn(64, 64, 4, 4, device=device, requires_grad=True)
    with gf.backend("auto"):
        if device == "cpu":
            assert "LeakyRelu" in type(batch_norm_act(small, training=True).grad_fn).__name__
        assert type(batch_norm_act(large, training=True).grad_fn).__name__ == "_BatchNormActBackward"
        y = batch_norm_act(large, None, None, strided, strided, True)
        assert "LeakyRelu" in type(y.grad_fn).__name__


def test_transforms_run_on_torch():
    x, tangent = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    results = []
    for function in (batch_norm_act, batch_norm_act_reference):
        gradient = torch.func.grad(lambda t, f=function: f(t, training=True).square().sum())(x)
        _, derivative = torch.func.jvp(lambda t, f=function: f(t, training=True), (x,), (tangent,))
        results.append((gradient, derivative))
    torch.testing.assert_close(*results)


def test_transforms_inside_compile_run_on_torch():
    x, tangent = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    results = []
    for function in (batch_norm_act, batch_norm_act_reference):
        torch._dynamo.reset()

        def derivative(x, t, f=function):
            return torch.func.jvp(lambda x: f(x, training=True), (x,), (t,))[1]

        results.append(torch.compile(derivative, backend="aot_eager", fullgraph=True)(x, tangent))
    torch.testing.assert_close(*results)
    assert results[0].norm() > 0


def test_default_device_keeps_the_kernel():
    x = torch.randn(4, 6, 5, 5, requires_grad=True)
    with torch.device("cpu"):
        assert type(batch_norm_act(x, training=True).grad_fn).__name__ == "_BatchNormActBackward"


def test_other_layouts_run_on_torch():
    x, c = torch.randn(4, 8, 6, 6), torch.ones(8)
    if torch.backends.mkldnn.is_available():
        with torch.no_grad():
            ours = batch_norm_act(x.to_mkldnn(), c, c, c, c, activation="relu").to_dense()
        torch.testing.assert_close(ours, batch_norm_act_reference(x, c, c, c, c, activation="relu"))


def test_batch_of_one_keeps_channels_last(device):
    x = torch.randn(40, 50, 16, device=device).permute(2, 0, 1).unsqueeze(0)
    ours, torchs = batch_norm_act(x, training=True), batch_norm_act_reference(x, training=True)
    assert ours.stride() == torchs.stride()
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
def test_activation_has_the_forwards_branch_whatever_changes_before_backward(
    residual, activation, create_graph, device
):
    tensors = make((6, 5, 7, 9), torch.float64, device=device, residual=residual)
    results = []
    for function in (batch_norm_act, batch_norm_act_reference):
        leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
        x, weight, bias, added = leaves
        mean, var = torch.zeros_like(weight.detach()), torch.ones_like(weight.detach())
        y = function(x, mean, var, weight, bias, activation=activation, residual=added)
        with torch.no_grad():
            bias += 1
            if device == "cpu":  # elsewhere to notice would cost a synchronisation: all is the forward's
                function(x * 3 + 2, mean, var, training=True)
        wanted = [t for t in leaves if t is not None]
        found = torch.autograd.grad(y, wanted, y.detach().cos(), create_graph=create_graph)
        if create_graph:
            found += torch.autograd.grad(found[0].square().sum() + found[1].sum(), (x, weight))
        results.append(found)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_may_change_before_backward(activation, training, device):
    results = []
    x, weight, bias, _ = make((6, 5, 7, 9), device=device)
    for function in (batch_norm_act, batch_norm_act_reference):
        leaf, shift = x.clone().requires_grad_(), bias.clone().requires_grad_()
        statistics = torch.zeros_like(bias), torch.ones_like(bias)
        y = function(leaf, *statistics, weight, shift, training, activation=activation)
        with torch.no_grad():
            shift.add_(1)
        results.append(torch.autograd.grad(y, (leaf, shift), x.cos()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("backend", [None, "aot_eager", "inductor"])
def test_statistics_and_bias_may_change_between_evaluation_and_backward(backend, activation):
    """Batch norm's gradient follows the statistics, the activation's branch does not, as eagerly in torch."""
    results = []
    tensors = make((6, 5, 7, 9), residual=True)
    torch._dynamo.reset()
    ours = torch.compile(batch_norm_act, backend=backend, fullgraph=True) if backend else batch_norm_act
    for function in (ours, batch_norm_act_reference):
        leaves = [t.clone().requires_grad_() for t in tensors]
        x, weight, bias, residual = leaves
        mean, var = torch.zeros(5), torch.ones(5)
        y = function(x, mean, var, weight, bias, activation=activation, residual=residual)
        with torch.no_grad():
            bias.add_(1)
            batch_norm_act(x * 3 + 2, mean, var, training=True, momentum=0.5)
        results.append(torch.autograd.grad(y, leaves, tensors[0].cos()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_alone_may_be_transformed(activation, training, create_graph, device):
    results = []
    tensors = make((6, 5, 7, 9), torch.float64, device=device, residual=True)
    v, t = torch.randn(2, *tensors[0].shape, dtype=torch.float64, device=device)
    for function in (batch_norm_act, batch_norm_act_reference):
        leaves = [t.clone().requires_grad_() for t in tensors]
        x, weight, bias, residual = leaves
        statistics = torch.zeros_like(bias.detach()), torch.ones_like(bias.detach())
        y = function(x, *statistics, weight, bias, training, activation=activation, residual=residual)
        with forward_ad.dual_level():
            dual = torch.autograd.grad(
                y, leaves, forward_ad.make_dual(v, t), create_graph=create_graph, retain_graph=True
            )
            tangents = [forward_ad.unpack_dual(d).tangent for d in dual]
        many = torch.autograd.grad(y, leaves, torch.stack((v, t)), is_grads_batched=True)
        results.append([*tangents, *many])
    torch.testing.assert_close(*results)


def test_checkpointing(device):
    from torch.utils.checkpoint import checkpoint

    x, weight, bias, _ = make((8, 16, 8, 8), device=device)
    gradients = []
    for wrap in (lambda f, t: f(t), lambda f, t: checkpoint(f, t, use_reentrant=False)):
        leaf = x.clone().requires_grad_()
        wrap(lambda t: batch_norm_act(t, None, None, weight, bias, True), leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_reference_is_plain_torch():
    x, weight, bias, residual = make((6, 5, 7, 9), residual=True)
    expected = F.leaky_relu(F.batch_norm(x, None, None, weight, bias, True) + residual, 0.2)
    with gf.backend("reference"):
        ours = batch_norm_act(x, None, None, weight, bias, True, negative_slope=0.2, residual=residual)
    assert torch.equal(ours, expected)
