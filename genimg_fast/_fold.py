"""Batch norms folded into the convolutions before them, for inference."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genimg_fast.nn.batch_norm_act import _BatchNormAct
from genimg_fast.nn.roles import is_batch_norm, is_observed

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PRODUCERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)


def fold_batch_norm(model: Any, *inputs: Any, **named_inputs: Any) -> Any:
    """Make a copy of a model for inference, with batch norms folded into the layers before them.

    A batch norm whose input is always what one convolution, transposed convolution or linear layer returns, and
    which nothing else uses, is a factor and a summand for each of that layer's channels. Where that is so is seen
    as the model runs once; it may be written in any way. The activation of a ``BatchNormAct`` stays.

    Args:
        model: Any module; it stays as it is.
        *inputs: What it is called with.
        **named_inputs: Likewise.

    Returns:
        The copy, in evaluation mode. Its ``state_dict`` has other keys.

    Raises:
        Exception: Whatever the model raises for these inputs.
        RuntimeError: If the copy does something else than the model, as where a ``forward`` reads a batch norm's
            statistics.

    Example:
        >>> import torch, genimg_fast as gf
        >>> nn = torch.nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> x = torch.randn(1, 3, 8, 8)
        >>> folded = gf.fold_batch_norm(model, x)
        >>> folded[1]
        Identity()
        >>> torch.testing.assert_close(folded(x), model(x))
    """
    return fold(model, lambda twin: twin(*inputs, **named_inputs))


def fold(model: Any, run: Callable[[Any], Any]) -> Any:
    """Fold as :func:`fold_batch_norm`; ``run`` calls what is to be faster, the same each time."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad(), _Watch(twin) as watch:
        before = run(twin)
        watch.leaves(before)
    watch.leaves_what_is_held()
    pairs = watch.pairs()
    for producer, norm in pairs:
        _fold_into(producer, norm)
    replaced = {norm: _what_is_left(norm) for _, norm in pairs}
    for parent in list(twin.modules()):
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]
    try:
        with torch.no_grad():
            after = run(twin)
        for one, other in zip(tree_leaves(before), tree_leaves(after), strict=True):
            if isinstance(one, Tensor) and one.is_floating_point():
                # Folded weights are rounded once more: norms of whole results, as single values may nearly cancel.
                error = (one.double() - other.double()).norm() / one.double().norm().clamp(min=1e-30)
                if not error <= 256 * torch.finfo(one.dtype).eps:
                    raise ValueError(f"its results differ by {error:.1e}")
    except Exception as error:
        raise RuntimeError(f"batch norms of {type(model).__name__} cannot be folded: {error}") from error
    return twin


class _Watch(TorchDispatchMode):
    """Sees which layers' results go into which batch norms, and into nothing else.

    Args:
        model: What will run.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.made: dict[int, tuple[nn.Module, Tensor]] = {}  # results by their ids; held, so that ids stay theirs
        self.norm_of: dict[nn.Module, set[nn.Module | None]] = {}
        self.producer_of: dict[nn.Module, set[nn.Module | None]] = {}
        self.inside: list[int] = []  # ids of the inputs of the batch norms that run

    def __enter__(self) -> Any:
        self.handles = []
        for module in self.model.modules():
            if _can_take(module):
                self.handles.append(module.register_forward_hook(self._produced))
            elif _can_go(module):
                self.handles.append(module.register_forward_pre_hook(self._enters))
                self.handles.append(module.register_forward_hook(self._leaves_norm))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self.handles:
            handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.leaves((args, kwargs))
        return func(*args, **(kwargs or {}))

    def leaves(self, values: Any) -> None:
        """Note that tensors are used by something, if that is no batch norm of theirs."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and id(value) in self.made and id(value) not in self.inside:
                self.norm_of[self.made[id(value)][0]].add(None)

    def leaves_what_is_held(self) -> None:
        """Note as used what somebody has a reference to: a result of a kind of its own, or a layer."""
        for layer, output in self.made.values():
            # This one, that in the tuple, and the argument of getrefcount.
            if sys.getrefcount(output) > 3:
                self.norm_of[layer].add(None)

    def _produced(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self.made[id(output)] = layer, output
        self.norm_of.setdefault(layer, set())

    def _enters(self, norm: nn.Module, inputs: Any) -> None:
        made = self.made.get(id(inputs[0])) if len(inputs) == 1 else None
        self.producer_of.setdefault(norm, set()).add(made[0] if made else None)
        if made:
            flat = isinstance(made[0], nn.Linear) and made[1].dim() != 2  # the channels are elsewhere
            self.norm_of[made[0]].add(None if flat else norm)
        self.inside.append(id(inputs[0]) if inputs else 0)

    def _leaves_norm(self, norm: nn.Module, inputs: Any, output: Any) -> None:
        self.inside.pop()

    def pairs(self) -> list[tuple[Any, Any]]:
        """Get each layer and the batch norm that follows it."""
        return [
            (producer, norm)
            for producer, norms in self.norm_of.items()
            for norm in norms
            if len(norms) == 1 and norm is not None and self.producer_of[norm] == {producer}
        ]


def _can_take(module: nn.Module) -> bool:
    return type(module) in _PRODUCERS and not is_observed(module) and not is_parametrized(module)


def _can_go(module: Any) -> bool:
    if is_observed(module) or not (is_batch_norm(module) or isinstance(module, _BatchNormAct)):
        return False
    return getattr(module, "running_mean", None) is not None and getattr(module, "running_var", None) is not None


def _fold_into(layer: Any, norm: Any) -> None:
    """Multiply a layer's weights by what a batch norm multiplies its results by, and likewise for what it adds."""
    wide = torch.promote_types(layer.weight.dtype, torch.float32)
    scale = (norm.running_var.to(wide) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(wide)
    shift = -norm.running_mean.to(wide) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.to(wide)
    weight = layer.weight.to(wide)
    if type(layer) in _TRANSPOSED:  # (in, out / groups, ...), the groups one after the other in the first
        groups = layer.groups
        grouped = weight.view(groups, -1, *weight.shape[1:])
        weight = (grouped * scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))).view_as(weight)
    else:
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    bias = shift if layer.bias is None else shift + layer.bias.to(wide) * scale
    dtype, needs = layer.weight.dtype, layer.weight.requires_grad
    layer.weight = nn.Parameter(weight.detach().to(dtype), needs)
    layer.bias = nn.Parameter(bias.detach().to(dtype), needs)


def _what_is_left(norm: Any) -> nn.Module:
    if getattr(norm, "activation", "identity") == "relu":
        return nn.ReLU()
    if getattr(norm, "activation", "identity") == "leaky_relu":
        return nn.LeakyReLU(norm.negative_slope)
    if getattr(norm, "activation", "identity") == "silu":
        return nn.SiLU()
    return nn.Identity()
