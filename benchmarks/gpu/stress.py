"""Checks of what no emulator shows: captured graphs, streams, threads, blocks that wait beside other kernels."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import genimg_fast as gf

from . import device
from .cases import random

# What forces the kernels whose blocks wait for each other.
CLUSTERS = {f"GENIMG_FAST_{norm}_NORM_METHOD": "cluster" for norm in ("BATCH", "GROUP")}


def pick(real: int, tiny: int) -> int:
    return tiny if device.dry else real


def outputs(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Of batch norm and of group norm."""
    return [
        gf.ops.batch_norm_act(x, None, None, weight, bias, True),
        gf.ops.group_norm_act(x, x.shape[1] // 2, weight, bias),
    ]


def with_gradients(ys: list[Tensor], x: Tensor, grad: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return [t for y in ys for t in (y.detach(), *torch.autograd.grad(y, (x, weight, bias), grad))]


def norm(x: Tensor, grad: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return with_gradients(outputs(x, weight, bias), x, grad, weight, bias)


def norm_inputs(*shape: int) -> tuple[Tensor, ...]:
    x, grad = random(*shape).requires_grad_(), random(*shape)
    return x, grad, random(shape[1]).requires_grad_(), random(shape[1]).requires_grad_()


def differing(found: list[Tensor], expected: list[Tensor]) -> Tensor:
    """Number of tensors with a bit that differs, without waiting for the device."""
    return torch.stack([(a != b).any() for a, b in zip(found, expected, strict=True)]).sum()


def packed_sequences_in_a_graph() -> int:
    """Replays of a layer on packed sequences must not read host memory that was freed since."""
    layer = gf.nn.LSTM(16, 32, device=device.DEVICE)
    packed = pack_padded_sequence(random(9, 4, 16), torch.tensor([9, 7, 4, 1]))

    def run() -> list[Tensor]:
        output = layer(packed)[0].data
        return [output.detach(), *torch.autograd.grad(output.square().sum(), tuple(layer.parameters()))]

    expected = [t.clone() for t in run()]
    graph, results = device.captured([run])
    wrong = 0
    for _ in range(pick(50, 2)):
        gc.collect()
        scribbled = [torch.randint(1 << 40, (n,)) for n in range(1, pick(4000, 40))]
        graph.replay()
        # Products of matrices may be another algorithm's in a graph; what freed memory holds is far off.
        near = zip(results[0], expected, strict=True)
        wrong += not all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in near)
        del scribbled
    return wrong


def replays_bit_for_bit() -> int:
    """2,000 replays of the norms give the bits of the first."""
    inputs = norm_inputs(16, 64, *(pick(64, 4),) * 2)
    expected = [t.clone() for t in norm(*inputs)]
    graph, results = device.captured([lambda: norm(*inputs)])
    wrong = torch.zeros((), device=device.DEVICE, dtype=torch.int64)
    for _ in range(pick(2000, 3)):
        graph.replay()
        wrong += differing(results[0], expected)
    return int(wrong)


def beside_a_kernel_that_occupies() -> int:
    """Norms in one stream while another keeps some twenty multiprocessors busy."""
    rows = random(20, pick(1 << 18, 64))
    return in_two_streams(lambda: rows.softmax(1), pick(20000, 3))


def norms_in_two_streams() -> int:
    """Norms in two streams at once."""
    others = norm_inputs(16, 64, *(pick(64, 4),) * 2)
    return in_two_streams(lambda: norm(*others), pick(5000, 3))


def in_two_streams(other: Callable[[], Any], rounds: int) -> int:
    inputs = norm_inputs(16, 64, *(pick(64, 4),) * 2)
    expected = norm(*inputs)
    wrong = torch.zeros((), device=device.DEVICE, dtype=torch.int64)
    beside = device.cuda.Stream()
    beside.wait_stream(device.cuda.current_stream())
    for _ in range(rounds):
        with device.cuda.stream(beside):
            other()
        wrong += differing(norm(*inputs), expected)
    device.cuda.synchronize()
    return int(wrong)


def backward_of_a_side_stream() -> int:
    """A forward pass in a side stream, its backward pass asked for in another."""
    inputs = norm_inputs(8, 32, *(pick(64, 4),) * 2)
    expected = norm(*inputs)
    wrong, side = 0, device.cuda.Stream()
    x, _, weight, bias = inputs
    for _ in range(pick(200, 2)):
        side.wait_stream(device.cuda.current_stream())
        with device.cuda.stream(side):
            ys = outputs(x, weight, bias)
        device.cuda.current_stream().wait_stream(side)
        found = with_gradients(ys, *inputs)
        device.cuda.synchronize()
        wrong += int(differing(found, expected))
    return wrong


def a_second_thread() -> int:
    """Threads with streams of their own, at once."""
    inputs = norm_inputs(8, 32, *(pick(64, 4),) * 2)
    expected = norm(*inputs)
    device.cuda.synchronize()

    def work(_: int) -> int:
        found = 0
        with device.cuda.stream(device.cuda.Stream()):
            for _ in range(pick(500, 2)):
                results = norm(*inputs)
                device.cuda.current_stream().synchronize()
                found += int(differing(results, expected))
        return found

    with ThreadPoolExecutor(3) as pool:
        return sum(pool.map(work, range(3)))


CHECKS: dict[str, tuple[Callable[[], int], dict[str, str]]] = {
    check.__name__.replace("_", " "): (check, environment)
    for check, environment in (
        (packed_sequences_in_a_graph, {}),
        (replays_bit_for_bit, CLUSTERS),
        (beside_a_kernel_that_occupies, CLUSTERS),
        (norms_in_two_streams, CLUSTERS),
        (backward_of_a_side_stream, {}),
        (a_second_thread, CLUSTERS),
    )
}


def measure(stage: str, contender: str, done: set[str]) -> Iterator[dict[str, Any]]:
    """Run one check; yields its row."""
    if contender in done:
        return
    yield {"begin": contender}
    row = {"stage": stage, "row": contender, "contender": contender}
    torch.manual_seed(0)
    with device.cuda.stream(device.cuda.Stream()):
        try:
            wrong = CHECKS[contender][0]()
            words = f"{wrong} results differ" if wrong else "all results agree bit for bit"
            yield row | {"status": "failed" if wrong else "ok", "words": words}
        except Exception as error:
            yield row | {"status": "failed", "words": f"{type(error).__name__}: {error}"[:500]}
