"""Once a call is over and its results are gone, so are its arguments, without the garbage collector."""

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast import nn, ops


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = torch.nn.BatchNorm2d(8), torch.nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z = y + x
        return self.act(z) + self.act(self.norm(x)) + y


# Shape of the input, and the call.
CALLS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Any]]] = {
    "batch_norm_act": ((64, 8, 10, 10), lambda x: ops.batch_norm_act(x, training=True, residual=x)),
    "batch_norm_act, evaluation": (
        (64, 8, 10, 10),
        lambda x: ops.batch_norm_act(x, torch.zeros(8), torch.ones(8)),
    ),
    "reparameterize_kl": ((4, 6), lambda x: ops.reparameterize_kl(x, x)),
    "lstm_cell_update": ((4, 24), lambda x: ops.lstm_cell_update(x, x[:, :6])),
    "gru_cell_update": ((4, 18), lambda x: ops.gru_cell_update(x, x, x[:, :6])),
    "rnn": ((3, 4, 5), lambda x: ops.rnn(x, None, torch.ones(6, 5), torch.ones(6, 6))),
    "gru": ((3, 4, 5), lambda x: ops.gru(x, None, torch.ones(18, 5), torch.ones(18, 6))),
    "lstm": ((3, 4, 5), lambda x: ops.lstm(x, None, torch.ones(24, 5), torch.ones(24, 6))),
    "BatchNorm2d": ((64, 8, 10, 10), lambda x: nn.BatchNorm2d(8)(x)),
    "BatchNorm2d, cumulative": ((64, 8, 10, 10), lambda x: nn.BatchNorm2d(8, momentum=None)(x)),
    "BatchNorm1d in 16 bits": (
        (4096, 16),
        lambda x: nn.BatchNorm1d(16).bfloat16()(x.bfloat16() if x.is_floating_point() else x),
    ),
    "BatchNormAct2d": ((64, 8, 10, 10), lambda x: nn.BatchNormAct2d(8)(x, x)),
    "SyncBatchNormAct": ((64, 8, 10, 10), lambda x: nn.SyncBatchNormAct(8)(x)),
    "Sequential": ((64, 8, 10, 10), lambda x: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())(x)),
    "fused": ((64, 8, 10, 10), lambda x: gf.fuse(Block())(x)),
    "GroupNormAct": ((64, 8, 10, 10), lambda x: nn.GroupNormAct(2, 8)(x, x)),
    "GaussianReparameterization": ((4, 6), lambda x: nn.GaussianReparameterization()(x, x)),
    "RNN": ((3, 4, 5), lambda x: nn.RNN(5, 6)(x)),
    "GRU": ((3, 4, 5), lambda x: nn.GRU(5, 6, bidirectional=True)(x)),
    "LSTM": ((3, 4, 5), lambda x: nn.LSTM(5, 6, num_layers=2)(x)),
    "GRUCell": ((4, 5), lambda x: nn.GRUCell(5, 6)(x)),
    "LSTMCell": ((4, 5), lambda x: nn.LSTMCell(5, 6)(x)),
    "ConvLSTM2d": ((2, 3, 4, 6, 6), lambda x: nn.ConvLSTM2d(4, 5, 3)(x)),
}


class Subclass(Tensor):
    """What the kernels refuse and PyTorch takes."""


def first_tensor(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else first_tensor(result[0])


@pytest.fixture(autouse=True)
def _no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("path", ["fused", "torch", "refused", "error"])
@pytest.mark.parametrize("name", CALLS)
def test_arguments_and_results_are_freed(name: str, path: str) -> None:
    shape, call = CALLS[name]
    x = torch.randn(shape)
    if path == "refused":
        x = x.as_subclass(Subclass)
    references = [weakref.ref(x)]
    with gf.backend("reference" if path == "torch" else "native"):
        if path == "error":
            x = x.to(torch.int64)
            references.append(weakref.ref(x))
            with contextlib.suppress(ValueError, TypeError, RuntimeError):
                call(x)
                pytest.fail("integers were taken")
        else:
            x.requires_grad_()
            result = first_tensor(call(x))
            references.append(weakref.ref(result))
            result.sum().backward()
            del result
    del x
    assert [r() for r in references] == [None, None]


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param({"weight": torch.ones(16)[::2]}, id="strided weight"),
        pytest.param({"weight": torch.ones(8), "bias": torch.ones(8).bfloat16()}, id="two dtypes"),
        pytest.param({"weight": torch.ones(9)}, id="weight too long"),
        pytest.param({"residual": torch.ones(8, 1, 1)}, id="residual that broadcasts"),
    ],
)
def test_input_is_freed_where_batch_norm_leaves_it_to_torch(refused: dict[str, Tensor]) -> None:
    x = torch.randn(64, 8, 10, 10)
    reference = weakref.ref(x)
    with gf.backend("auto"), contextlib.suppress(RuntimeError):
        ops.batch_norm_act(x, training=True, **refused)
    del x
    assert reference() is None
