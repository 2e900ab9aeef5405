"""Muon: steps of equal length along all directions of a weight matrix.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
https://kellerjordan.github.io/posts/muon/.

1. The momentum m is an average of gradients, m <- 0.95 m + 0.05 g; the step looks ahead: 0.95 m + 0.05 g again.
2. That is a matrix, a row for each of a convolution's outputs; its singular values become about 1, by five rounds
   of x <- a x + (b A + c A²) x with A = x xᵀ, a Newton-Schulz iteration whose coefficients make small values grow.
3. The weights go down by lr times the matrix, longer by the root of rows over columns where there are more rows.

Gradients whose directions differ a lot in length hold up Adam; a U-Net that took away noise learned by Muon in
less than half of the steps.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Optimiser of matrices and of kernels of convolutions.

    Args:
        parameters: What to optimise, of two dimensions or more: the first against all others.
        lr: Learning rate: how long a step is, along each direction.
        momentum: Decay of the average of gradients.

    Raises:
        ValueError: If a parameter has fewer than two dimensions, or ``lr`` is negative.

    Example:
        >>> import torch
        >>> from genimg_fast.training.muon import Muon
        >>> layer = torch.nn.Linear(8, 4, bias=False)
        >>> optimizer = Muon(layer.parameters(), lr=0.02)
        >>> layer(torch.randn(5, 8)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(self, parameters: Iterable[Any], *, lr: float = 0.02, momentum: float = 0.95) -> None:
        if not lr >= 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ValueError(f"parameters must have two dimensions, got {tuple(parameter.shape)}")

    # A gradient scaler then leaves it to `step` to do nothing where a gradient is infinite: nothing is read back.
    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no losses are computed anew
        """Take a step."""
        scale, infinite = (getattr(self, name, None) for name in ("grad_scale", "found_inf"))
        for group in self.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                if scale is not None:
                    gradient = gradient / scale
                average = state["momentum"].lerp(gradient, 1 - group["momentum"])
                direction = orthogonalised(gradient.lerp(average, group["momentum"]).flatten(1))
                rows, columns = direction.shape
                length = group["lr"] * max(1.0, rows / columns) ** 0.5
                moved = parameter - direction.view_as(parameter) * length
                if infinite is not None:
                    average = torch.where(infinite > 0, state["momentum"], average)
                    moved = torch.where(infinite > 0, parameter, moved)
                state["momentum"].copy_(average)
                parameter.copy_(moved)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix near to 1: from 0.7 to 1.2, unless they were next to nothing."""
    high = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if high else matrix).to(torch.promote_types(matrix.dtype, torch.float32))
    x = x / x.norm().clamp_min(1e-12)
    a, b, c = _COEFFICIENTS
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if high else x
