"""PyTorch's fused Adam, with no gradient copied on a CPU.

Kingma and Ba 2015, "Adam: A method for stochastic optimization", https://arxiv.org/abs/1412.6980.
"""

from typing import Any

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``: the same numbers, and the same state.

    Before the fused kernel for CPUs runs, a gradient that is not contiguous, as of a weight in channels_last, is
    copied, which takes longer than the kernel. Here it is given views of weights, gradients and states, with the
    channels behind the rest, which are contiguous.

    Example:
        >>> import torch
        >>> from genimg_fast.training.adam import Adam
        >>> layer = torch.nn.Conv2d(3, 8, 4).to(memory_format=torch.channels_last)
        >>> optimizer = Adam(layer.parameters(), lr=2e-4, fused=True)
        >>> layer(torch.randn(2, 3, 8, 8)).square().mean().backward()
        >>> optimizer.step()
    """

    def _init_group(
        self, group: dict[str, Any], parameters: list[Tensor], *others: list[Tensor]
    ) -> bool:  # with what it fills the lists
        has_complex: bool = super()._init_group(group, parameters, *others)
        last = [_is_channels_last(parameter) for parameter in parameters]
        *alike, _ = others  # gradients and what goes with them; then the numbers of steps
        for tensors in (parameters, *alike):
            if tensors:  # an option's may be missing
                pairs = zip(tensors, last, strict=True)
                tensors[:] = [tensor.movedim(1, -1) if moved else tensor for tensor, moved in pairs]
        return has_complex


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() > 2 and not tensor.is_contiguous() and tensor.movedim(1, -1).is_contiguous()
