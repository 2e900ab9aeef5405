"""Batch norm over the batches of several processes, with an activation."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genimg_fast.nn.batch_norm_act import _BatchNormAct, forward_batch_norm, running_statistics
from genimg_fast.ops._activations import activate
from genimg_fast.ops.batch_norm_act.operator import update_running_statistics


class SyncBatchNormAct(_BatchNormAct):
    """Batch norm with the statistics of all processes' batches, then an optional residual and an activation.

    :class:`torch.nn.SyncBatchNorm` with an activation, on the CPU (gloo) too: processes may have batches of
    different sizes, none included. Statistics travel in one message forward and one backward, in float64; the
    arithmetic is in float32 (float64 for float64). Differentiable any number of times. In evaluation, or without
    other processes, it is a :class:`BatchNormAct2d`.

    Args:
        num_features: Channels C of an input (N, C, *).
        eps: Added to the variance.
        momentum: Share of a batch in the running statistics; None for a cumulative average.
        affine: Learn a weight and a bias per channel.
        track_running_stats: Keep running statistics for evaluation.
        process_group: The processes that share statistics; all by default.
        device: Of parameters and statistics.
        dtype: Likewise.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        negative_slope: Slope of ``"leaky_relu"`` below zero.

    Raises:
        ValueError: The activation is unknown, the input has fewer than two dimensions, or all processes together
            have a single value per channel.

    Example:
        >>> import torch, genimg_fast as gf
        >>> layer = gf.nn.SyncBatchNormAct(64, activation="relu")
        >>> layer(torch.randn(8, 64, 16, 16)).shape
        torch.Size([8, 64, 16, 16])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str = "identity",
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise ``input``, (N, C, *), add ``residual`` if given, apply the activation."""
        batch_statistics = self.training or self.running_mean is None
        if not (batch_statistics and dist.is_initialized() and dist.get_world_size(self.process_group) > 1):
            return forward_batch_norm(self, input, self.activation, self.negative_slope, residual)
        self._check_input_dim(input)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        count, mean, var = self._statistics(wide)
        if self.training and self.track_running_stats:
            self._update_running_statistics(count, mean.detach(), var.detach())
        shape = (1, -1, *[1] * (input.dim() - 2))
        mean, scale = mean.to(wide.dtype), (var + self.eps).rsqrt().to(wide.dtype)
        if self.weight is not None:
            scale = scale * self.weight
        output = (wide - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        if residual is not None:
            output = output + residual
        return activate(output, self.activation, self.negative_slope).to(input.dtype)

    def _statistics(self, input: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return number, mean and variance of all processes' values of each channel, in float64."""
        dims = [0, *range(2, input.dim())]
        number = input.numel() // self.num_features
        if number > 0:
            var, mean = torch.var_mean(input, dims, correction=0)
            local = torch.cat((mean, var)).double()
        else:  # nothing to add, but part of the graph: the other processes wait for its backward
            local = input.sum(dims).double().repeat(2)
        message = torch.cat((local.new_full((1,), number), local))
        numbers, means, variances = _Gather.apply(message, self.process_group).split(
            [1, self.num_features, self.num_features], dim=1
        )
        total = numbers.detach().sum()
        count = total.item()
        if count <= 1:
            raise ValueError("expected more than 1 value per channel when training, over all processes")
        share = numbers / total
        mean = (share * means).sum(0)
        # The variance within the processes and that between them: no difference of large numbers.
        return count, mean, (share * (variances + (means - mean).square())).sum(0)

    def _update_running_statistics(self, count: float, mean: Tensor, var: Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        mean_so_far, var_so_far = running_statistics(self)
        if mean_so_far is None or var_so_far is None:
            return
        share: Any = self.momentum
        if share is None:
            share = self.num_batches_tracked.to(mean.dtype).reciprocal()
        unbiased = var * (count / (count - 1))
        update_running_statistics((mean_so_far, var_so_far), (mean, unbiased), share)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Replace every batch norm layer, with or without activation, by one of this class.

        Args:
            module: A layer, or a model that has some; torch's layers are replaced as well.
            process_group: The processes that share statistics; all by default.

        Returns:
            The model, changed in place; or, if ``module`` is a batch norm layer itself, the new layer. Parameters
            and statistics stay the same tensors.

        Example:
            >>> import torch, genimg_fast as gf
            >>> model = gf.models.DCGAN(channels=8)
            >>> model = gf.nn.SyncBatchNormAct.convert_sync_batchnorm(model)
            >>> type(model.generator.main[1]).__name__
            'SyncBatchNormAct'
        """
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, cls):
            layer = cls(
                module.num_features,
                module.eps,
                module.momentum,
                module.affine,
                module.track_running_stats,
                process_group,
                activation=getattr(module, "activation", "identity"),
                negative_slope=getattr(module, "negative_slope", 0.01),
            )
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(layer, name, getattr(module, name))
            return layer.train(module.training)
        for name, child in module.named_children():
            setattr(module, name, cls.convert_sync_batchnorm(child, process_group))
        return module


class _Gather(torch.autograd.Function):
    """Every process's vector in every process, (processes, values)."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(vector) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, vector.contiguous(), group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _SumOfMine.apply(grad, ctx.group), None


class _SumOfMine(torch.autograd.Function):
    """The sum over all processes of the row that belongs to this one: the transpose of :class:`_Gather`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = rows.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total[dist.get_rank(group)]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(grad, ctx.group), None
