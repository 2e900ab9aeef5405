"""The accuracy rule: at most twice plain PyTorch's own error in the same dtype, plus a few ulp."""

import torch
from torch import Tensor

FORWARD, GRADIENT = 2.0, 3.0


def assert_as_accurate_as_torch(
    ours: Tensor, torchs: Tensor, exact: Tensor, *, times: float, ulps: float = 4, name: str = "result"
) -> None:
    """Check `ours` against `exact` (float64), allowing `times` the largest error that `torchs` makes."""
    assert ours.dtype == torchs.dtype, f"{name}: {ours.dtype}, but torch gives {torchs.dtype}"
    assert ours.shape == torchs.shape, f"{name}: {tuple(ours.shape)}, but torch gives {tuple(torchs.shape)}"
    if ours.numel() == 0:
        return
    exact = exact.double().cpu()
    scale = exact.abs().max().item()
    if ours.dtype == torch.float64:
        ulps = 16 * ulps  # `exact` is no better than float64 itself: it carries the rounding of its own sums
    allowed = times * (torchs.detach().double().cpu() - exact).abs().max().item()
    allowed += ulps * torch.finfo(ours.dtype).eps * scale
    error = (ours.detach().double().cpu() - exact).abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g} (values up to {scale:.3g})"
