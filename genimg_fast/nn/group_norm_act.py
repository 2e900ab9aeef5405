"""Group norm and instance norm layers on the fused operator, alone and with an activation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from genimg_fast.nn.batch_norm_act import running_statistics, weight_and_bias
from genimg_fast.nn.stands_for import StandIn, is_leaf, leaf
from genimg_fast.ops._activations import activate, activation_code
from genimg_fast.ops._checks import WIDE_DTYPE, check_type
from genimg_fast.ops._dispatch import PLAIN_TENSORS
from genimg_fast.ops.group_norm_act import group_norm_act
from genimg_fast.ops.group_norm_act.dispatch import KERNELS


def forward_group_norm(
    module: Any,
    input: Tensor,
    activation: str = "identity",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Do what torch's group norm does in ``forward``, and what may follow it.

    Args:
        module: Supplies the number of groups, eps and parameters.
        input: (N, C, *).
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        negative_slope: Slope of ``"leaky_relu"`` below zero.
        residual: Shape of ``input``; added before the activation.
        scale: (N, C); see :func:`genimg_fast.ops.group_norm_act`.
        shift: (N, C).

    Returns:
        Shape of ``input``.
    """
    if is_leaf(module, input):
        return leaf(module, input, residual, scale=scale, shift=shift)
    return group_norm_act(
        input, module.num_groups, *weight_and_bias(module), module.eps, activation=activation,
        negative_slope=negative_slope, residual=residual, scale=scale, shift=shift,
    )  # fmt: skip


def forward_instance_norm(
    module: Any,
    input: Tensor,
    activation: str = "identity",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Do what torch's instance norm layers do in ``forward``, and what may follow it; see the function above."""
    if is_leaf(module, input):
        return leaf(module, input, residual, scale=scale, shift=shift)
    if _is_group_norm(module, input):
        weight, bias = weight_and_bias(module)
        alone = activation == "identity" and residual is scale is shift is None
        if not _is_torchs(input, alone):
            # As torch's, whose result is contiguous whatever the input.
            return group_norm_act(
                input.contiguous(), module.num_features, weight, bias, module.eps, activation=activation,
                negative_slope=negative_slope, residual=residual, scale=scale, shift=shift,
            )  # fmt: skip
        # Its checks have been made, and take a quarter of a small call; contiguous it makes the input itself.
        output = torch.instance_norm(input, weight, bias, None, None, True, 0.0, module.eps, False)
    else:
        output = nn.modules.instancenorm._InstanceNorm.forward(module, input)
    if scale is not None or shift is not None:
        over_planes = (..., *(None,) * (input.dim() - 2))
        if scale is not None:
            output = output * (1 + scale).to(output.dtype)[over_planes]
        if shift is not None:
            output = output + shift.to(output.dtype)[over_planes]
    return activate(output if residual is None else output + residual, activation, negative_slope)


def _is_group_norm(module: Any, input: Tensor) -> bool:
    """Whether an instance norm is a group norm of as many groups as channels, and no error in torch."""
    mean, variance = running_statistics(module)
    if type(input) not in PLAIN_TENSORS or mean is not None or variance is not None:
        return False
    if not (module.training or not module.track_running_stats):
        return False
    sizes, wide = input.shape, WIDE_DTYPE.get(input.dtype)
    if len(sizes) != module._get_no_batch_dim() + 1 or sizes[1] != module.num_features or wide is None:
        return False
    # On a GPU autocast runs group norm in float32, and instance norm as it comes.
    if input.dtype is not wide and not input.is_cpu and torch.is_autocast_enabled(input.device.type):
        return False
    return sizes[0] > 0 and math.prod(sizes[2:]) > 1


def _is_torchs(input: Tensor, alone: bool) -> bool:
    """Whether torch's instance norm is to run: where torch's group norm would, whose gradients err more.

    Where means are ten and a hundred times the standard deviation, these err up to ten times as much.
    """
    # Of one sample, torch's has a wrong gradient (2.14.1) where the one behind it comes in channels_last.
    if WIDE_DTYPE.get(input.dtype) is not input.dtype or input.shape[0] == 1:
        return False
    return KERNELS.is_slower("cpu", (input, input.shape[1] if alone else 0, True))


class GroupNorm(nn.GroupNorm, StandIn):
    """Here on the fused operator."""

    _smallest = (1, 1, 1e-5, True, "meta")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, (N, C, *)."""
        return forward_group_norm(self, input)


_SMALLEST = (1, 1e-5, 0.1, False, False, "meta")


class InstanceNorm1d(nn.InstanceNorm1d, StandIn):
    """Here on the fused operator, unless it tracks running statistics."""

    _smallest = _SMALLEST

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, (N, C, L) or (C, L)."""
        return forward_instance_norm(self, input)


class InstanceNorm2d(nn.InstanceNorm2d, StandIn):
    """Here on the fused operator, unless it tracks running statistics."""

    _smallest = _SMALLEST

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, (N, C, H, W) or (C, H, W)."""
        return forward_instance_norm(self, input)


class InstanceNorm3d(nn.InstanceNorm3d, StandIn):
    """Here on the fused operator, unless it tracks running statistics."""

    _smallest = _SMALLEST

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, (N, C, D, H, W) or (C, D, H, W)."""
        return forward_instance_norm(self, input)


class _Activated(nn.Module):
    """What the layers with an activation share."""

    activation: str
    negative_slope: float

    def _set_activation(self, activation: str, negative_slope: float) -> None:
        activation_code(activation)
        self.activation, self.negative_slope = activation, negative_slope

    def extra_repr(self) -> str:
        """Describe the layer: torch's text, then the activation."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation}{slope}"

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}; use a norm layer followed by the activation "
            "instead: gf.fuse(model) fuses the two just the same"
        )


class GroupNormAct(_Activated, nn.GroupNorm):
    """Group norm and activation over (N, C, *), as one operator.

    A :class:`torch.nn.GroupNorm` in every respect, its ``state_dict`` included, whose output may be modulated for
    each sample and channel, and has gone through the activation: the block of diffusion models and their
    autoencoders. Wu and He 2018, arXiv:1803.08494.

    Args:
        num_groups: Into how many groups of consecutive channels to divide the channels.
        num_channels: Channels C.
        eps: Added to the variance.
        affine: Learn a weight and a bias per channel.
        device: Of the parameters.
        dtype: Likewise.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        negative_slope: Slope of ``"leaky_relu"`` below zero.
        **kwargs: Whatever else this version's :class:`torch.nn.GroupNorm` takes.

    Raises:
        ValueError: The activation is unknown, or the groups do not divide the channels.

    Example:
        >>> import torch, genimg_fast as gf
        >>> layer = gf.nn.GroupNormAct(32, 64)
        >>> layer(torch.randn(8, 64, 16, 16)).shape
        torch.Size([8, 64, 16, 16])
        >>> scale, shift = torch.randn(2, 8, 64)  # of an embedding of the time, say
        >>> layer(torch.randn(8, 64, 16, 16), scale=scale, shift=shift).shape
        torch.Size([8, 64, 16, 16])
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str = "silu",
        negative_slope: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, **kwargs)
        self._set_activation(activation, negative_slope)

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Normalise ``input``, modulate, add ``residual`` if given, apply the activation."""
        return forward_group_norm(
            self, input, self.activation, self.negative_slope, residual, scale, shift
        )  # fmt: skip


class InstanceNormAct2d(_Activated, nn.InstanceNorm2d):
    """Instance norm and activation over (N, C, H, W), as one operator.

    A :class:`torch.nn.InstanceNorm2d` in every respect whose output has gone through the activation: the block of
    image translation and style transfer. Ulyanov et al. 2016, arXiv:1607.08022.

    Args:
        num_features: Channels C.
        eps: Added to the variance.
        momentum: Share of a batch in the running statistics.
        affine: Learn a weight and a bias per channel.
        track_running_stats: Keep running statistics for evaluation; such a layer is not fused.
        device: Of parameters and statistics.
        dtype: Likewise.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        negative_slope: Slope of ``"leaky_relu"`` below zero.

    Raises:
        ValueError: The activation is unknown, or the input has the wrong number of dimensions.

    Example:
        >>> import torch, genimg_fast as gf
        >>> layer = gf.nn.InstanceNormAct2d(64, activation="leaky_relu", negative_slope=0.2)
        >>> layer(torch.randn(1, 64, 16, 16)).shape
        torch.Size([1, 64, 16, 16])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str = "relu",
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self._set_activation(activation, negative_slope)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise ``input``, add ``residual`` if given, apply the activation."""
        return forward_instance_norm(self, input, self.activation, self.negative_slope, residual)


class ConditionalInstanceNormAct2d(_Activated, nn.InstanceNorm2d):
    """Instance norm with a scale and a shift for each style, and an activation, as one operator.

    Dumoulin et al. 2017, arXiv:1610.07629: one network for many styles, whose mixtures are styles, too.

    Args:
        num_features: Channels C.
        num_styles: Number of styles, or classes.
        eps: Added to the variance.
        device: Of the parameters.
        dtype: Likewise.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        negative_slope: Slope of ``"leaky_relu"`` below zero.

    Attributes:
        scale: What each style's normalised values are scaled by, less one: (num_styles, C), zeros at first.
        shift: What is then added: (num_styles, C), zeros at first.

    Raises:
        ValueError: The activation is unknown, the input has the wrong number of dimensions, or the styles are no
            numbers of any, nor shares of each.

    Example:
        >>> import torch, genimg_fast as gf
        >>> layer = gf.nn.ConditionalInstanceNormAct2d(64, 10)
        >>> x = torch.randn(2, 64, 16, 16)
        >>> layer(x, torch.tensor([3, 7])).shape
        torch.Size([2, 64, 16, 16])
        >>> layer(x, torch.full((2, 10), 0.1)).shape  # a tenth of each
        torch.Size([2, 64, 16, 16])
    """

    def __init__(
        self,
        num_features: int,
        num_styles: int,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str = "relu",
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(num_features, eps, device=device, dtype=dtype)
        if num_styles < 1:
            raise ValueError(f"num_styles must be at least 1, got {num_styles}")
        self.num_styles = num_styles
        self.scale = nn.Parameter(torch.zeros(num_styles, num_features, device=device, dtype=dtype))
        self.shift = nn.Parameter(torch.zeros(num_styles, num_features, device=device, dtype=dtype))
        self._set_activation(activation, negative_slope)

    def forward(  # type: ignore[override]
        self, input: Tensor, style: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        """Normalise ``input``, (N, C, H, W), in each sample's style, and apply the activation.

        Args:
            input: (N, C, H, W).
            style: Numbers of styles, int64 of shape (N,); or shares of each style, (N, num_styles).
            residual: Shape of ``input``; added before the activation.
        """
        scale, shift = (self._of_style(values, style, len(input)) for values in (self.scale, self.shift))
        return forward_instance_norm(
            self, input, self.activation, self.negative_slope, residual, scale, shift
        )  # fmt: skip

    def _of_style(self, values: Tensor, style: Tensor, samples: int) -> Tensor:
        check_type(style, "style")
        if style.shape == (samples,) and style.dtype == torch.int64:
            if style.is_cpu and samples > 0 and not 0 <= int(style.min()) <= int(style.max()) < self.num_styles:
                found = f"{style.min()}..{style.max()}"
                raise ValueError(f"styles must lie in 0..{self.num_styles - 1}, got {found}")
            return values[style]
        if style.shape == (samples, self.num_styles) and style.is_floating_point():
            return style.to(values.dtype) @ values
        raise ValueError(
            f"style must be int64 of shape ({samples},), or shares of shape ({samples}, {self.num_styles}), "
            f"got {style.dtype} of shape {tuple(style.shape)}"
        )
