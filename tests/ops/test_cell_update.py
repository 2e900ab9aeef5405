import itertools

import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from torch.autograd import gradcheck, gradgradcheck

import genimg_fast as gf
from genimg_fast.ops import (
    gru_cell_update,
    gru_cell_update_reference,
    lstm_cell_update,
    lstm_cell_update_reference,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPERATORS = torch.ops.genimg_fast
UPDATES = {
    "lstm": (lstm_cell_update, lstm_cell_update_reference, (4, 1)),
    "gru": (gru_cell_update, gru_cell_update_reference, (3, 3, 1)),
}
STATE_SHAPES = [(5, 7), (1, 1), (3, 5, 4), (2, 8, 5, 3), (2, 3, 2, 3, 2), (64, 300)]


@pytest.fixture(autouse=True)
def _native_backend():
    with gf.backend("native"):
        yield


def make(kind, shape, dtype=torch.float32, device="cpu"):
    counts = UPDATES[kind][2]
    return [torch.randn(shape[0], n * shape[1], *shape[2:]).to(device, dtype) for n in counts]


def run(function, tensors, dtype=None):
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((k * o.double()).sin().sum() for k, o in enumerate(outputs, start=1)).backward()
    return outputs, [leaf.grad for leaf in leaves]


def check(kind, tensors):
    function, reference, _ = UPDATES[kind]
    ours, torchs = run(function, tensors), run(reference, tensors)
    exact = run(reference, tensors, torch.float64)
    for order, times in enumerate((FORWARD, GRADIENT)):
        for value, theirs, right in zip(ours[order], torchs[order], exact[order], strict=True):
            assert_as_accurate_as_torch(value, theirs, right, times=times)
    return ours


@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.parametrize("shape", STATE_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_updates(kind, shape, dtype, device):
    check(kind, make(kind, shape, dtype, device))


@pytest.mark.parametrize("kind", UPDATES)
def test_updates_in_other_layouts(kind, device):
    tensors = make(kind, (2, 8, 5, 3), device=device)
    last = [t.contiguous(memory_format=torch.channels_last) for t in tensors]
    outputs, _ = check(kind, last)
    assert all(o.is_contiguous(memory_format=torch.channels_last) for o in outputs)
    check(kind, [last[0], *tensors[1:]])
    check(kind, [tensors[0], *last[1:]])
    check(kind, [t[..., ::2] for t in tensors])
    check(kind, [t[:1].expand_as(t) for t in tensors])


@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.usefixtures("simd_level")
def test_every_simd_level(kind):
    for dtype in DTYPES:
        check(kind, make(kind, (3, 37), dtype))


@pytest.mark.parametrize("kind", UPDATES)
def test_update_gradients_of_first_and_second_order(kind, device):
    tensors = [t.requires_grad_() for t in make(kind, (2, 2, 2), torch.float64, device)]
    assert gradcheck(UPDATES[kind][0], tensors)
    assert gradgradcheck(UPDATES[kind][0], tensors)


@pytest.mark.parametrize("kind", UPDATES)
def test_updates_give_only_what_is_needed(kind, device):
    function, reference, counts = UPDATES[kind]
    tensors = make(kind, (3, 4), torch.float64, device)
    for needed, used in itertools.product(itertools.product([False, True], repeat=len(counts)), (0, -1)):
        if not any(needed):
            continue
        results = []
        for f in (function, reference):
            leaves = [t.clone().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
            outputs = f(*leaves)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            outputs[used].square().sum().backward()
            results.append([leaf.grad for leaf in leaves])
        assert [g is not None for g in results[0]] == list(needed)
        for ours, torchs in zip(*results, strict=True):
            torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("kind", UPDATES)
def test_updates_promote_dtypes_as_torch(kind, device):
    function, reference, _ = UPDATES[kind]
    tensors = make(kind, (3, 4), device=device)
    for mixed in ([tensors[0].bfloat16(), *tensors[1:]], [*tensors[:-1], tensors[-1].double()]):
        ours, torchs = function(*mixed), reference(*mixed)
        # Torch rounds in between to the narrower dtype; these convert first.
        wide = torchs[0].dtype
        exact = reference(*(t.to(wide) for t in mixed))
        for result, theirs, right in zip(ours, torchs, exact, strict=True):
            assert result.dtype == theirs.dtype == wide
            torch.testing.assert_close(result, right)


@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_updates_compile_as_one_graph(kind, backend, device):
    function, tensors = UPDATES[kind][0], make(kind, (2, 3, 4), device=device)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    torch.testing.assert_close(run(compiled, tensors), run(function, tensors))
    if backend == "eager":
        leaves = [t.double().requires_grad_() for t in tensors]
        assert gradgradcheck(compiled, leaves)


@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4, 5)], ids=str)
def test_update_opcheck(kind, shape, device):
    for layout in (torch.contiguous_format, torch.channels_last):
        tensors = make(kind, shape, device=device)
        if len(shape) == 4:
            tensors = [t.contiguous(memory_format=layout) for t in tensors]
        leaves = [t.requires_grad_() for t in tensors]
        forward = getattr(OPERATORS, f"{kind}_cell_update").default
        backward = getattr(OPERATORS, f"{kind}_cell_update_backward").default
        torch.library.opcheck(forward, leaves)
        grad = torch.randn_like(leaves[-1])
        torch.library.opcheck(backward, [grad, *([None] if kind == "lstm" else []), *leaves])


def test_updates_of_nothing(device):
    for kind, (function, _, _) in UPDATES.items():
        leaves = [t.requires_grad_() for t in make(kind, (0, 4), device=device)]
        output = function(*leaves)
        output = output[0] if kind == "lstm" else output
        output.sum().backward()
        assert output.shape == leaves[-1].grad.shape == (0, 4)


def test_updates_refuse_bad_input():
    ones = torch.ones
    with pytest.raises(ValueError, match=r"gates must have shape \(2, 12, 5\), got \(2, 9, 5\)"):
        lstm_cell_update(ones(2, 9, 5), ones(2, 3, 5))
    with pytest.raises(ValueError, match=r"gates_h must have shape \(2, 9\), got \(2, 12\)"):
        gru_cell_update(ones(2, 9), ones(2, 12), ones(2, 3))
    with pytest.raises(ValueError, match="c must have at least 2 dimensions"):
        lstm_cell_update(ones(4), ones(1))
    with pytest.raises(ValueError, match=r"h must be float32, float64, bfloat16 or float16, got torch\.int64"):
        gru_cell_update(ones(2, 9), ones(2, 9), ones(2, 3).long())
    with pytest.raises(TypeError, match="gates must be a Tensor, got float"):
        lstm_cell_update(1.0, ones(2, 3))
    with pytest.raises(ValueError, match=r"gates must be float32, .*, got torch\.complex64"):
        lstm_cell_update(ones(2, 12, dtype=torch.complex64), ones(2, 3))
    with pytest.raises(ValueError, match=r"gates_h must be a dense tensor, got torch\.sparse_coo"):
        gru_cell_update(ones(2, 9), ones(2, 9).to_sparse(), ones(2, 3))


def test_native_backend_says_what_it_cannot_do():
    meta = torch.ones(2, 4, device="meta"), torch.ones(2, 1, device="meta")
    with pytest.raises(RuntimeError, match=r"lstm_cell_update: backend 'native'.*'meta'"):
        lstm_cell_update(*meta)
    with gf.backend("auto"):
        assert lstm_cell_update(*meta)[0].shape == (2, 1)
