"""Calls the operators for CUDA in the emulator, in a process of its own for each family: see test_operators.py.

    python operators.py LIBRARY FAMILY

The kernels have tests of their own. Here it is their torch side: what it takes, copies, allocates and hands on.
"""

import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11, torch.bfloat16: 6e-2, torch.float16: 1e-2}
ops = torch.ops.genimg_fast


def values(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def layouts(*shape: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Tensors of a shape, by how they lie in memory."""
    first, *middle, last = shape
    yield values(*shape, dtype=dtype)
    yield values(*shape[::-1], dtype=dtype).permute(*range(len(shape) - 1, -1, -1))
    yield values(first, *middle, 2 * last, dtype=dtype)[..., ::2]
    yield values(2 * first, *middle, last, dtype=dtype)[1::2]
    yield values(torch.Size(shape).numel() + 1, dtype=dtype)[1:].view(shape)  # not aligned
    yield values(1, *middle, last, dtype=dtype).expand(shape)
    if len(shape) == 4:
        yield values(*shape, dtype=dtype).to(memory_format=torch.channels_last)
        yield values(first, 2 * middle[0], *middle[1:], last, dtype=dtype).to(memory_format=torch.channels_last)[
            :, : middle[0]
        ]


def check(dtype: torch.dtype, *pairs: tuple[Tensor, Tensor]) -> None:
    """Each found tensor is the expected one, up to the tolerance of the data's dtype."""
    for found, expected in pairs:
        assert found.shape == expected.shape, (dtype, found.shape, expected.shape)
        scale = max([1, *expected.detach().abs().amax().reshape(-1).tolist()]) if expected.numel() else 1
        torch.testing.assert_close(found.double(), expected.detach(), rtol=0, atol=TOLERANCE[dtype] * scale)


def wide(t: Tensor) -> Tensor:
    return t.detach().double().requires_grad_()


def check_pass(before: Tensor, y: Tensor, grad: Tensor, leaves: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """A norm with ReLU, forward and backward; found: gradients at input, residual, weight and bias."""
    expected = torch.autograd.grad(before * (y > 0), leaves, grad.double(), retain_graph=True)
    order = (found[0], found[2], found[3], found[1])[: len(leaves)]
    check(y.dtype, (y, before.relu()))
    check(found[0].dtype, *zip(order, expected, strict=True))


def normalizations(dtype: torch.dtype) -> None:
    """Batch norm and group norm, then ReLU."""
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    for shape in ((2, 8, 4, 8), (3, 6, 3, 7)):
        inputs, others = (list(layouts(*shape, dtype=dtype)) for _ in range(2))
        for k, (x, residual) in enumerate(zip([*inputs, inputs[0]], [*reversed(others), None], strict=True)):
            weight, bias = values(2, shape[1], dtype=statistics)
            running = [torch.zeros_like(weight), torch.ones_like(weight)]
            grad = others[(k + 3) % len(others)]
            leaves = [wide(t) for t in (x, weight, bias, residual) if t is not None]

            moments = [t.double() for t in running]
            before = F.batch_norm(leaves[0], *moments, *leaves[1:3], True, 0.1, 1e-5) + sum(leaves[3:])
            y, mean, invstd = ops.batch_norm_act_train(x, residual, weight, bias, *running, 0.1, 1e-5, 1, 0.0)
            call = (grad, x, residual, weight, bias, mean, invstd)
            grads = ops.batch_norm_act_backward(*call, True, 1, 0.0, True, residual is not None)
            check_pass(before, y, grad, leaves, grads)
            check(torch.bfloat16, *zip(running, moments, strict=True))

            before = F.batch_norm(leaves[0], *(t.double() for t in running), *leaves[1:3]) + sum(leaves[3:])
            y = ops.batch_norm_act_eval(x, residual, weight, bias, *running, 1e-5, 1, 0.0)
            call = (grad, x, residual, weight, bias, running[0], (running[1] + 1e-5).rsqrt())
            grads = ops.batch_norm_act_backward(*call, False, 1, 0.0, True, residual is not None)
            check_pass(before, y, grad, leaves, grads)

            before = F.group_norm(leaves[0], 2, *leaves[1:3]) + sum(leaves[3:])
            for wide_output in (False, True):
                if wide_output:
                    residual, grad = (None if t is None else t.to(statistics) for t in (residual, grad))
                call = (x, residual, weight, bias, None, None, 2, 1e-5, 1, 0.0, wide_output)
                y, mean, invstd = ops.group_norm_act(*call)
                assert y.dtype == (statistics if wide_output else dtype)
                call = (grad, x, residual, weight, bias, None, None, mean, invstd)
                grads = ops.group_norm_act_backward(*call, 2, 1, 0.0, True, residual is not None, True)
                assert grads[0].dtype == dtype
                check_pass(before, y, grad, leaves, grads)
    for shape in ((0, 4, 3, 3), (2, 4, 0, 3), (0, 4), (2, 0, 3, 3)):
        x, weight = values(*shape, dtype=dtype), torch.ones(shape[1], dtype=statistics)
        y, mean, invstd = ops.batch_norm_act_train(x, x, weight, weight, None, None, 0.1, 1e-5, 1, 0.0)
        grads = ops.batch_norm_act_backward(x, x, x, weight, weight, mean, invstd, True, 1, 0.0, True, True)
        assert y.shape == grads[0].shape == grads[1].shape == x.shape
        assert not torch.cat([mean, invstd, *grads[2:]]).any()


def refused_clusters(dtype: torch.dtype) -> None:
    """Batch norm and group norm where the device does not take the clusters that it says it has."""
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    x, grad = values(4, 2, 32, 64, dtype=dtype), values(4, 2, 32, 64, dtype=dtype)
    weight, bias = values(2, 2, dtype=statistics)
    leaves = [wide(t) for t in (x, weight, bias)]

    before = F.batch_norm(leaves[0], None, None, *leaves[1:], True)
    y, mean, invstd = ops.batch_norm_act_train(x, None, weight, bias, None, None, 0.1, 1e-5, 1, 0.0)
    call = (grad, x, None, weight, bias, mean, invstd)
    check_pass(before, y, grad, leaves, ops.batch_norm_act_backward(*call, True, 1, 0.0, True, False))

    before = F.group_norm(leaves[0], 1, *leaves[1:])
    y, mean, invstd = ops.group_norm_act(x, None, weight, bias, None, None, 1, 1e-5, 1, 0.0, False)
    call = (grad, x, None, weight, bias, None, None, mean, invstd)
    check_pass(before, y, grad, leaves, ops.group_norm_act_backward(*call, 1, 1, 0.0, True, False, True))


def autocast(dtype: torch.dtype) -> None:
    """Python's side of group norm as under autocast on a GPU, second order included."""
    from genimg_fast.ops import group_norm_act, group_norm_act_reference
    from genimg_fast.ops.group_norm_act import dispatch, operator

    dispatch.has_wide_output = operator.has_wide_output = lambda input: input.dtype.itemsize == 2
    if dtype.itemsize > 2:
        return
    for x in layouts(3, 8, 4, 6, dtype=dtype):
        x = x.detach().requires_grad_()
        weight, bias = values(2, 8, dtype=torch.float32).unbind()
        scale, shift = values(2, 3, 8, dtype=torch.float32).unbind()
        residual = values(3, 8, 4, 6, dtype=torch.float32)
        others = [t.requires_grad_() for t in (weight, bias, scale, shift, residual)]
        grad = values(3, 8, 4, 6, dtype=torch.float32)
        results = []
        for function, data in ((group_norm_act, x), (group_norm_act_reference, x.float())):
            y = function(data, 4, *others[:2], scale=scale, shift=shift, residual=residual)
            first = torch.autograd.grad(y, [x, *others], grad, create_graph=True)
            penalty = sum(t.double().square().sum() for t in first)
            second = torch.autograd.grad(penalty, [x, *others])
            results.append((y, *first, *second))
        assert "GroupNormAct" in type(group_norm_act(x, 4).grad_fn).__name__
        for ours, torchs in zip(*results, strict=True):
            assert ours.dtype == torchs.dtype
            check(ours.dtype, (ours.detach(), torchs.double()))


def reparameterize_kl(dtype: torch.dtype) -> None:
    for shape in ((4, 24), (3, 5, 7), (3, 1)):
        for mu, noise in zip(
            layouts(*shape, dtype=dtype), reversed(list(layouts(*shape, dtype=dtype))), strict=True
        ):
            for logvar in layouts(*shape, dtype=dtype):
                for per_element in (False, True):
                    leaves = [wide(t) for t in (mu, logvar, noise)]
                    z = leaves[0] + (leaves[1] / 2).exp() * leaves[2]
                    kl = (leaves[0] ** 2 + leaves[1].exp() - 1 - leaves[1]) / 2
                    kl = kl if per_element else kl.flatten(1).sum(1)
                    options = (float("-inf"), float("inf"), 0.0, per_element)
                    found = ops.reparameterize_kl(mu, logvar, noise, None, None, None, *options)
                    check(dtype, *zip(found, (z, kl), strict=True))
                    at_kl = values(*kl.shape[:1], *kl.shape[1:], dtype=found[1].dtype)
                    if not per_element:
                        at_kl = at_kl[:1].expand(len(at_kl))  # what a sum's backward gives
                    expected = torch.autograd.grad((z, kl), leaves, (noise.double(), at_kl.double()))
                    grads = ops.reparameterize_kl_backward(
                        noise, at_kl, mu, logvar, noise, None, None, None, *options, True, False
                    )
                    check(dtype, *zip(grads[:3], expected, strict=True))
                    seed = torch.tensor(7)
                    rest = (logvar, None, seed, None, None, *options)
                    assert torch.equal(*(ops.reparameterize_kl(t, *rest)[0] for t in (mu, mu.contiguous())))
    empty = values(3, 0, dtype=dtype)
    z, kl = ops.reparameterize_kl(empty, empty, None, torch.tensor(7), None, None, *options[:3], False)
    assert z.shape == empty.shape
    assert torch.equal(kl, torch.zeros_like(kl))
    assert kl.shape == (3,)


def recurrent(dtype: torch.dtype) -> None:
    """Stacks of layers in both directions, of equal and of different lengths."""
    kinds = (torch.nn.RNN, torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM)
    lengths = torch.tensor([4, 3, 3, 1])
    for cell, kind in enumerate(kinds):
        if cell == 1 and dtype.itemsize == 2:
            continue  # what rounds to another side of zero has another gradient
        for hidden, packed in ((8, False), (5, True), (6, False), (4, True)):
            options = {"nonlinearity": "relu"} if cell == 1 else {}
            layer = kind(3, hidden, 2, bidirectional=True, dtype=torch.float64, **options)
            for x, h0 in zip(layouts(4, 4, 3, dtype=dtype), layouts(4, 4, hidden, dtype=dtype), strict=True):
                c0 = h0.flip(0) if cell == 3 else None
                weights = [w.detach().to(dtype) for w in layer._flat_weights]
                layer.load_state_dict(dict(zip(layer.state_dict(), (w.double() for w in weights), strict=True)))
                leaves = [wide(t) for t in (x, h0, c0) if t is not None]
                data = torch.nn.utils.rnn.pack_padded_sequence(leaves[0], lengths) if packed else leaves[0]
                state = tuple(leaves[1:]) if cell == 3 else leaves[1]
                expected, last = layer(data, state)
                sizes = data.batch_sizes if packed else None
                rows = torch.cat([x[t, :n] for t, n in enumerate(sizes)]) if packed else x
                expected = expected.data if packed else expected
                finals = list(last) if cell == 3 else [last]
                output, h_n, c_n, kept = ops.recurrent(rows, h0, c0, sizes, weights, cell, True, False, True)
                check(dtype, (output, expected), *zip([h_n, c_n], finals, strict=False))
                grad = values(*output.shape[::-1], dtype=dtype).permute(*range(output.dim() - 1, -1, -1))
                wanted = torch.autograd.grad(expected, [*leaves, *layer._flat_weights], grad.double())
                matrices = [w for k, w in enumerate(weights) if k % 4 < 2]
                found = ops.recurrent_backward(
                    grad, None, None, rows, h0, c0, sizes, kept, matrices, cell, True, False, True, True, True
                )
                at_x = torch.cat([wanted[0][t, :n] for t, n in enumerate(sizes)]) if packed else wanted[0]
                states = found[1:3] if cell == 3 else found[1:2]
                check(dtype, (found[0], at_x), *zip([*states, *found[3]], wanted[1:], strict=True))


def cell_update(dtype: torch.dtype) -> None:
    for shape in ((2, 4, 3, 8), (3, 5)):
        gates_of = (shape[0], 4 * shape[1], *shape[2:])
        for c, gates in zip(layouts(*shape, dtype=dtype), layouts(*gates_of, dtype=dtype), strict=True):
            leaves = [wide(gates), wide(c)]
            i, f, g, o = leaves[0].chunk(4, 1)
            c_new = f.sigmoid() * leaves[1] + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c_new.tanh()
            check(dtype, *zip(ops.lstm_cell_update(gates, c), (h, c_new), strict=True))
            for grad in layouts(*shape, dtype=dtype):
                expected = torch.autograd.grad((h, c_new), leaves, (grad.double(), c.double()), retain_graph=True)
                found = ops.lstm_cell_update_backward(grad, c, gates, c)
                check(dtype, *zip(found, expected, strict=True))


if __name__ == "__main__":
    library, family = sys.argv[1:]
    torch.manual_seed(0)
    torch.ops.load_library(library)
    torch.ops.load_library = lambda _: None  # genimg_fast finds the operators there
    for dtype in TOLERANCE:
        globals()[family](dtype)
    print("done")
