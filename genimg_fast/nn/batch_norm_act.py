"""Batch norm layers on the fused operator, alone and with an activation."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from genimg_fast.nn.stands_for import StandIn, is_leaf, leaf
from genimg_fast.ops._activations import activation_code
from genimg_fast.ops._dispatch import PLAIN_TENSORS, is_transformed
from genimg_fast.ops.batch_norm_act import batch_norm_act
from genimg_fast.ops.batch_norm_act.operator import update_running_statistics

WAITING: dict[int, Any] = {}
"""Calls of layers that have not run yet, by the layers' ids; see :mod:`genimg_fast.nn.pending`."""


def forward_batch_norm(
    module: nn.modules.batchnorm._BatchNorm,
    input: Tensor,
    activation: str = "identity",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    """Do what torch's batch norm layers do in ``forward``, and the activation with it.

    Args:
        module: Supplies parameters, running statistics and mode.
        input: (N, C, *).
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        negative_slope: Slope of ``"leaky_relu"`` below zero.
        residual: Shape of ``input``; added before the activation.

    Returns:
        Shape of ``input``.
    """
    if is_leaf(module, input):
        return leaf(module, input, residual)
    if WAITING and not torch.compiler.is_compiling() and id(module) in WAITING:
        WAITING[id(module)].settle()
    module._check_input_dim(input)
    running_mean, running_var = running_statistics(module)
    weight, bias = weight_and_bias(module)
    training = module.training or (running_mean is None and running_var is None)
    momentum = 0.0 if module.momentum is None else module.momentum
    counter: Tensor | None = None
    averages: tuple[Tensor, Tensor] | None = None
    if module.training:
        counter = module.num_batches_tracked
        if not module.track_running_stats:
            running_mean = running_var = None
        elif counter is not None:
            counter.add_(1)
            if module.momentum is None:
                # A cumulative average needs the number of batches: on the CPU it is at hand, unless recorded.
                recorded = torch.compiler.is_compiling() or is_transformed(counter)
                if type(counter) in PLAIN_TENSORS and counter.is_cpu and not recorded:
                    momentum = 1.0 / counter.item()
                elif running_mean is not None and running_var is not None and input.numel() > 0:
                    # Taking this batch's statistics alone (momentum 1) and averaging on the device keeps the
                    # number from being read back at every step. Nothing to average leaves the statistics alone.
                    averages = running_mean, running_var
                    momentum, wide = 1.0, running_mean.dtype
                    if wide == input.dtype:  # of 16 bits: float32 instead holds a variance beyond float16
                        wide = torch.promote_types(wide, torch.float32)
                    running_mean, running_var = (torch.zeros_like(t, dtype=wide) for t in averages)
                    weight = None if weight is None else weight.to(wide)
                    bias = None if bias is None else bias.to(wide)
    output = batch_norm_act(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        module.eps,
        activation=activation,
        negative_slope=negative_slope,
        residual=residual,
    )
    if averages is not None and counter is not None and running_mean is not None and running_var is not None:
        share = counter.to(running_mean.dtype).reciprocal()
        update_running_statistics(averages, (running_mean, running_var), share)
    return output


def normalise_again(
    module: nn.modules.batchnorm._BatchNorm,
    input: Tensor,
    activation: str,
    negative_slope: float,
    residual: Tensor | None,
) -> Tensor:
    """Do once more what :func:`forward_batch_norm` did, and leave the running statistics alone."""
    statistics = running_statistics(module)
    training = module.training or statistics == (None, None)
    if training:
        statistics = (None, None)
    return batch_norm_act(
        input, *statistics, *weight_and_bias(module), training, 0.0, module.eps,
        activation=activation, negative_slope=negative_slope, residual=residual,
    )  # fmt: skip


def running_statistics(module: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor | None, Tensor | None]:
    """Return a layer's running mean and variance, past what looking them up does in ``BatchNormAct``."""
    buffers = module._buffers
    if "running_mean" in buffers and "running_var" in buffers:
        return buffers["running_mean"], buffers["running_var"]
    return module.running_mean, module.running_var  # parametrised, or made something else by the user


def weight_and_bias(module: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return a layer's weight and bias; ``nn.Module`` takes half a microsecond to look up each."""
    parameters = module._parameters
    if "weight" in parameters and "bias" in parameters:
        return parameters["weight"], parameters["bias"]
    return module.weight, module.bias  # as for running statistics


_SMALLEST = (1, 1e-5, 0.1, True, True, "meta")


class BatchNorm1d(nn.BatchNorm1d, StandIn):
    """Here on the fused operator."""

    _smallest = _SMALLEST

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, (N, C) or (N, C, L)."""
        return forward_batch_norm(self, input)


class BatchNorm2d(nn.BatchNorm2d, StandIn):
    """Here on the fused operator."""

    _smallest = _SMALLEST

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, (N, C, H, W)."""
        return forward_batch_norm(self, input)


class BatchNorm3d(nn.BatchNorm3d, StandIn):
    """Here on the fused operator."""

    _smallest = _SMALLEST

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, (N, C, D, H, W)."""
        return forward_batch_norm(self, input)


class _RefusesReplacement:
    """Stops those of torch's tools that would put another layer in place of one and drop its activation.

    They take every batch norm layer, ours included. Looking up an attribute is the only thing that they do to a
    layer that can stop them; for everyone else it is where it was.
    """

    def __init__(self, *tools: str) -> None:
        """Refuse the attribute to code of these modules, those below included."""
        self.tools = tools

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, layer: _BatchNormAct | None, owner: type) -> Any:
        if layer is None:
            raise AttributeError(self.name)
        if not torch.compiler.is_compiling() and layer.__dict__.get("activation", "identity") != "identity":
            caller = sys._getframe(1)
            module = caller.f_globals.get("__name__", "")
            if f"{module}.".startswith(self.tools):
                raise RuntimeError(
                    f"{module}.{caller.f_code.co_name} would drop the activation of {owner.__name__}; use a "
                    "BatchNorm layer followed by the activation in genimg_fast.nn.Sequential instead: it is fused "
                    "just the same and can be replaced"
                )
        return layer.__getattr__(self.name)


class _BatchNormAct(nn.modules.batchnorm._BatchNorm):
    """What the three layers share; see :class:`BatchNormAct2d`."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **kwargs)
        activation_code(activation)
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise ``input``, add ``residual`` if given, apply the activation."""
        return forward_batch_norm(self, input, self.activation, self.negative_slope, residual)

    def extra_repr(self) -> str:
        """Describe the layer: torch's text, then the activation."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation}{slope}"

    qconfig = _RefusesReplacement("torch.nn.modules.batchnorm.")  # convert_sync_batchnorm
    running_var = _RefusesReplacement("torch.nn.utils.fusion.", "torch.utils.mkldnn.", "torch.ao.")

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}; use a BatchNorm layer followed by the "
            "activation in genimg_fast.nn.Sequential instead: it is fused just the same and compiles"
        )


class BatchNormAct1d(_BatchNormAct, BatchNorm1d):
    """Batch norm and activation over (N, C) or (N, C, L); see :class:`BatchNormAct2d`.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.nn.BatchNormAct1d(64, activation="relu")(torch.randn(8, 64)).shape
        torch.Size([8, 64])
    """


class BatchNormAct2d(_BatchNormAct, BatchNorm2d):
    """Batch norm and activation over (N, C, H, W), as one operator.

    A :class:`torch.nn.BatchNorm2d` in every respect, its ``state_dict`` included, whose output has gone through
    the activation.

    Args:
        num_features: Channels C.
        eps: Added to the variance.
        momentum: Share of a batch in the running statistics; None for a cumulative average.
        affine: Learn a weight and a bias per channel.
        track_running_stats: Keep running statistics for evaluation.
        device: Of parameters and statistics.
        dtype: Likewise.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        negative_slope: Slope of ``"leaky_relu"`` below zero.
        **kwargs: Whatever else this version's :class:`torch.nn.BatchNorm2d` takes.

    Raises:
        ValueError: The activation is unknown, or the input has the wrong number of dimensions.

    Example:
        >>> import torch, genimg_fast as gf
        >>> layer = gf.nn.BatchNormAct2d(64, activation="leaky_relu", negative_slope=0.2)
        >>> layer(torch.randn(8, 64, 16, 16)).shape
        torch.Size([8, 64, 16, 16])
    """


class BatchNormAct3d(_BatchNormAct, BatchNorm3d):
    """Batch norm and activation over (N, C, D, H, W); see :class:`BatchNormAct2d`.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.nn.BatchNormAct3d(16, activation="relu")(torch.randn(2, 16, 4, 8, 8)).shape
        torch.Size([2, 16, 4, 8, 8])
    """
