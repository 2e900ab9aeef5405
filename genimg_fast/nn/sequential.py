"""A Sequential that runs batch norm and the activation behind it as one operator."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from genimg_fast.nn.batch_norm_act import forward_batch_norm
from genimg_fast.nn.stands_for import StandIn, torch_class

# Exact types: a subclass may do something else in its forward.
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _is_plain(module: nn.Module) -> bool:
    """Whether calling the module does nothing but run its class's forward."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
    )


def _fused_activation(first: nn.Module, second: nn.Module) -> tuple[str, float] | None:
    """Activation name and slope if the two modules can run as one operator, else None."""
    if torch_class(type(first)) not in _BATCH_NORMS or not (_is_plain(first) and _is_plain(second)):
        return None
    if type(second) is nn.ReLU:
        return "relu", 0.0
    if type(second) is nn.LeakyReLU:
        return "leaky_relu", second.negative_slope
    return None


class Sequential(nn.Sequential, StandIn):
    """Here batch norm followed by ReLU or LeakyReLU runs fused.

    Modules with hooks run one by one, so that the hooks see what they always saw.
    """

    _smallest = ()

    def forward(self, input: Tensor) -> Tensor:
        """Run the modules in order."""
        modules: list[nn.Module] = list(self._modules.values())
        may_fuse = not _has_any_global_hook()
        position = 0
        while position < len(modules):
            module = modules[position]
            fused = None
            if may_fuse and position + 1 < len(modules) and isinstance(input, Tensor):
                fused = _fused_activation(module, modules[position + 1])
            if fused is None:
                input = module(input)
                position += 1
            else:
                input = forward_batch_norm(module, input, *fused)  # type: ignore[arg-type]
                position += 2
        return input
