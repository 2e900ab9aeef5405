"""CUDA graphs of eager PyTorch; where there is no GPU, something that behaves like one."""

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg_fast.bench import Case, WrongResultError, case as cases, operators
from genimg_fast.bench.gate import Gate
from genimg_fast.bench.graphed import Graphed

RECORDED: list[int] = []  # how many tensors each graph takes


def like_a_graph(function: Callable[..., Any], samples: tuple[Tensor, ...], **options: Any) -> Callable[..., Any]:
    """Records once, for samples of which none is the caller's; writes all results to the same memory."""
    RECORDED.append(len(samples))
    with torch.no_grad():
        buffer = torch.empty_like(function(*samples))

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Tensor) -> Tensor:
            ctx.save_for_backward(*given)
            with torch.no_grad():
                return buffer.copy_(function(*given)).detach()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            leaves = [t.detach().requires_grad_(t.requires_grad) for t in ctx.saved_tensors]
            wanted = [t for t in leaves if t.requires_grad]
            with torch.enable_grad():
                found = iter(torch.autograd.grad(function(*leaves), wanted, grad))
            return tuple(next(found) if t.requires_grad else None for t in leaves)

    return lambda *given: Replay.apply(*given)


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "make_graphed_callables", like_a_graph)
    RECORDED.clear()


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def eager(x: Tensor, weight: None, scale: float, noise: Tensor | None = None) -> Tensor:
    return F.silu(x) * scale + (0 if noise is None else noise)


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_graph_computes_the_same_and_may_reuse_its_memory(direction: str) -> None:
    x = torch.randn(8, 64, device=DEVICE, requires_grad=True)
    made = Case(
        {"eager": eager}, (x, None, 2.0), fixed={"noise": torch.randn(8, 64, device=DEVICE)}, compiled=False
    )
    graph = Graphed(eager)
    assert Gate(made, direction).check("graph", graph) < 1e-6  # type: ignore[arg-type]

    def plainly(*inputs: Any, **options: Any) -> Any:
        return graph(*inputs, **options)

    with pytest.raises(WrongResultError, match="changes in a later call"):
        Gate(made, "forward").check("mine", plainly)


def test_a_graph_is_recorded_once_for_tensors_of_a_kind() -> None:
    graph = Graphed(eager)
    for shape in ((2, 3), (2, 3), (4, 3)):
        x = torch.randn(shape, device=DEVICE)
        torch.testing.assert_close(graph(x, None, 3.0), eager(x, None, 3.0))
        torch.testing.assert_close(graph(x, None, 3.0, noise=x), eager(x, None, 3.0, x))
    if DEVICE == "cpu":
        assert RECORDED == [1, 2, 1, 2]


def test_of_a_module_a_copy_is_recorded_for_one_kind() -> None:
    net, x = nn.BatchNorm1d(4).to(DEVICE), torch.randn(8, 4, device=DEVICE)
    graph = Graphed(net)
    graph(x)
    assert [p.shape for p in graph.parameters()] == [p.shape for p in net.parameters()]
    assert net.running_mean is not None
    assert not net.running_mean.any()
    with pytest.raises(RuntimeError, match="inputs of one kind alone"):
        graph(x[:4])


@pytest.mark.parametrize("activation", ["silu", "leaky_relu"])
def test_group_norm_of_liger_kernel_is_called_as_it_wants_to_be(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Function:
        @staticmethod
        def apply(x: Tensor, weight: Tensor, bias: Tensor, channels: int, groups: int, eps: float) -> Tensor:
            assert (x.dim(), x.shape[1]) == (3, channels)
            return F.group_norm(x, groups, weight, bias, eps)

    module = ModuleType("liger_kernel.ops.group_norm")
    module.LigerGroupNormFunction = Function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    case = operators.group_norm_case((2, 8, 4, 4), 2, activation, "", "float32", "NCHW", "cpu")
    liger = partial(operators._liger_group_norm, 2, activation)
    assert Gate(case, "both").check("liger", liger) < 1e-5


def test_graphs_are_peers_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 4)
    made = Case({"eager": F.silu}, (x,), compiled=False)
    assert set(made.peers()) == {"eager"}
    monkeypatch.setattr(cases, "on_cuda", lambda inputs: True)
    assert set(made.peers()) == {"eager", "graph"}
    assert set(made.peers(["none"])) == {"eager"}
