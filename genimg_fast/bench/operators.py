"""The cases of the operators: each shape, dtype and layout once, with what has to be moved and done at least.

Operators are looked up when a case is made: another revision, measured by ``--base``, may lack some.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg_fast import ops
from genimg_fast.bench.case import Case
from genimg_fast.bench.entries import OURS, Entry
from genimg_fast.data.optional import optional_import
from genimg_fast.nn import GRU, LSTM, RNN

SLOPE = 0.2
DTYPES = (torch.float32, torch.bfloat16)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _by_x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _laid_out(x: Tensor, layout: str) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def _layouts(shape: tuple[int, ...]) -> tuple[str, ...]:
    return ("NCHW", "channels_last") if len(shape) == 4 else ("NCHW",)


def _activated(y: Tensor, activation: str, inplace: bool) -> Tensor:
    if activation == "silu":
        return F.silu(y, inplace)
    return F.leaky_relu(y, SLOPE, inplace) if activation == "leaky_relu" else y


# Shape, activation, and whether it is in the short list.
_BATCH_NORMS = [
    ((128, 64, 32, 32), "leaky_relu", True),
    ((64, 128, 16, 16), "leaky_relu", False),
    ((64, 128, 16, 16), "silu", False),
    ((128, 256, 8, 8), "leaky_relu", True),
    ((64, 512, 4, 4), "leaky_relu", False),
    ((16, 64, 128, 128), "leaky_relu", False),
    ((8, 3, 33, 65), "leaky_relu", False),
    ((256, 1024), "leaky_relu", False),
]


def batch_norm_case(shape: tuple[int, ...], dtype: torch.dtype, layout: str, activation: str, device: str) -> Case:
    """Batch norm in training and an activation, with float32 parameters, as under autocast.

    Args:
        shape: Of the data.
        dtype: Of the data.
        layout: ``"NCHW"`` or ``"channels_last"``.
        activation: ``"identity"``, ``"leaky_relu"`` or ``"silu"``.
        device: Where; on ``"meta"`` nothing is computed, and bytes are counted all the same.

    Returns:
        The case.
    """
    x = _laid_out(torch.randn(shape, device=device).to(dtype), layout).requires_grad_()
    weight = torch.rand(shape[1], device=device).add_(0.5).requires_grad_()
    bias = torch.randn(shape[1], device=device).requires_grad_()
    running = {
        wide: (torch.zeros(shape[1], device=device, dtype=wide), torch.ones(shape[1], device=device, dtype=wide))
        for wide in (torch.float32, torch.float64)
    }

    def eager(x: Tensor, weight: Tensor, bias: Tensor, inplace: bool = False) -> Tensor:
        y = F.batch_norm(x, *running[weight.dtype], weight, bias, True, 0.1, 1e-5)
        return _activated(y, activation, inplace)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        statistics = running[weight.dtype]
        return ops.batch_norm_act(
            x, *statistics, weight, bias, True, 0.1, 1e-5, activation=activation, negative_slope=SLOPE
        )

    contenders: dict[str, Callable[..., Any]] = {OURS: ours, "eager": eager}
    if activation != "silu":  # in place where backward needs no more than the result
        contenders["inplace"] = partial(eager, inplace=True)
    size, n = x.nbytes, x.numel()
    # Statistics and normalisation; backward: two sums, the activation's derivative, and the gradient.
    return Case(
        contenders, (x, weight, bias), moved={"forward": 2 * size, "both": 5 * size},
        operations={"forward": 8 * n, "both": 22 * n},
    )  # fmt: skip


# Shape, groups, activation, which norm: group norm, also with a scale and a shift per sample and channel, or
# instance norm without parameters; and whether it is in the short list.
_GROUP_NORMS = [
    ((8, 128, 64, 64), 32, "silu", "", True),
    ((8, 128, 64, 64), 32, "silu", "modulated", False),
    ((8, 256, 32, 32), 32, "silu", "", False),
    ((16, 512, 16, 16), 32, "silu", "modulated", False),
    ((32, 512, 8, 8), 32, "silu", "", False),
    ((4, 64, 128, 128), 64, "leaky_relu", "instance", True),
    ((1, 128, 256, 256), 32, "silu", "", False),
    ((16, 96, 31, 33), 1, "identity", "", False),
    ((256, 1024), 1, "identity", "", False),
    ((1, 32, 4, 4), 32, "silu", "", False),
    ((8, 512, 8, 8), 32, "silu", "", False),
    ((2, 8), 2, "silu", "", False),
    ((1, 64, 64, 64), 1, "silu", "", False),
    ((4, 64, 32, 32), 1, "silu", "", False),
]


def group_norm_case(
    shape: tuple[int, ...], groups: int, activation: str, norm: str, kind: str, layout: str, device: str
) -> Case:
    """Group norm and an activation.

    Args:
        shape: Of the data.
        groups: Of the norm.
        activation: ``"identity"``, ``"leaky_relu"`` or ``"silu"``.
        norm: ``""`` for group norm, ``"modulated"`` for one with a scale and a shift of each sample and channel
            behind it, ``"instance"`` for one group per channel, without weights.
        kind: ``"float32"``, ``"bfloat16"``, or ``"autocast"``: of bfloat16 data. Parameters are float32 on a CPU;
            on a GPU torch's group norm takes those of the data's type alone.
        layout: ``"NCHW"`` or ``"channels_last"``.
        device: As of :func:`batch_norm_case`.

    Returns:
        The case.
    """
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    parameters = torch.float32 if device == "cpu" or kind == "autocast" else dtype
    x = _laid_out(torch.randn(shape, device=device).to(dtype), layout).requires_grad_()
    weight = bias = scale = shift = None
    if norm != "instance":
        weight = torch.rand(shape[1], device=device).add_(0.5).to(parameters).requires_grad_()
        bias = torch.randn(shape[1], device=device).to(parameters).requires_grad_()
    if norm == "modulated":
        scale, shift = (torch.randn(shape[:2], device=device).to(dtype).requires_grad_() for _ in range(2))

    def eager(x: Tensor, weight: Any, bias: Any, scale: Any, shift: Any, inplace: bool = False) -> Tensor:
        y = F.instance_norm(x) if weight is None else F.group_norm(x, groups, weight, bias)
        if scale is not None:
            y = y * (1 + scale)[:, :, None, None] + shift[:, :, None, None]
        return _activated(y, activation, inplace)

    def ours(x: Tensor, weight: Any, bias: Any, scale: Any, shift: Any) -> Tensor:
        return ops.group_norm_act(
            x, groups, weight, bias, activation=activation, negative_slope=SLOPE, scale=scale, shift=shift
        )

    contenders: dict[str, Callable[..., Any]] = {OURS: ours, "eager": eager}
    if activation == "leaky_relu":
        contenders["inplace"] = partial(eager, inplace=True)
    if x.is_cuda and find_spec("liger_kernel") is not None and norm == "" and layout == "NCHW" and x.dim() == 4:
        contenders["liger"] = partial(_liger_group_norm, groups, activation)
    if kind == "autocast":
        contenders = {name: torch.autocast(device, torch.bfloat16)(f) for name, f in contenders.items()}
    size, n = x.nbytes, x.numel()
    wide = kind == "autocast" and x.is_cuda  # the result and its gradient are in float32
    return Case(
        contenders, (x, weight, bias, scale, shift),
        moved={"forward": (2 + wide) * size, "both": (5 + 2 * wide) * size},
        operations={"forward": 8 * n, "both": 22 * n},
    )  # fmt: skip


# Direction, shape of the image, channels of the features, side of the kernel, stride, activation; and whether it
# is in the short list.
_IMAGE_CONVS = [
    ("from", (64, 3, 64, 64), 64, 4, 2, "leaky_relu", True),
    ("to", (64, 3, 64, 64), 64, 4, 2, "tanh", True),
    ("from", (64, 1, 32, 32), 32, 4, 2, "leaky_relu", False),
    ("to", (64, 1, 32, 32), 32, 4, 2, "tanh", False),
    ("from", (8, 4, 128, 128), 64, 3, 1, "silu", False),
    ("to", (8, 3, 128, 128), 64, 4, 2, "sigmoid", False),
    ("from", (1, 1, 28, 28), 16, 4, 2, "leaky_relu", False),
]


def _image_conv(
    direction: str,
    shape: tuple[int, int, int, int],
    channels: int,
    side: int,
    stride: int,
    activation: str,
    dtype: torch.dtype,
    layout: str,
    device: str,
) -> Case:
    image = torch.randn(shape, device=device)
    weight = (torch.randn(channels, shape[1], side, side, device=device) / 8).to(dtype).requires_grad_()
    features = F.conv2d(image, weight.detach().float(), None, stride, 1)
    transposed = direction == "to"
    x = _laid_out((features if transposed else image).to(dtype), layout).requires_grad_()
    behind: dict[str, Callable[[Tensor], Tensor]] = {
        "leaky_relu": partial(F.leaky_relu, negative_slope=SLOPE), "silu": F.silu, "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }  # fmt: skip
    activate = behind[activation]
    convolve = F.conv_transpose2d if transposed else F.conv2d

    def eager(x: Tensor, weight: Tensor) -> Tensor:
        return activate(convolve(x, weight, None, stride, 1))

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return ops.image_conv_act(
            x, weight, None, stride, 1, transposed=transposed, activation=activation, negative_slope=SLOPE
        )

    contenders: dict[str, Callable[..., Any]] = {OURS: ours, "eager": eager}
    if activation == "leaky_relu":
        contenders["inplace"] = lambda x, weight: F.leaky_relu(convolve(x, weight, None, stride, 1), SLOPE, True)
    before = x.nbytes
    after = (image if transposed else features).numel() * x.element_size()
    products = 2 * features.numel() * weight[0].numel()
    return Case(
        contenders, (x, weight), moved={"forward": before + after, "both": 3 * before + 3 * after},
        operations={"forward": products, "both": 3 * products},
    )  # fmt: skip


def _liger_group_norm(
    groups: int, activation: str, x: Tensor, weight: Any, bias: Any, scale: None, shift: None
) -> Tensor:
    """Liger Kernel's group norm, in Triton, which knows no activation; it takes one dimension of space."""
    function = optional_import("liger_kernel.ops.group_norm").LigerGroupNormFunction
    y = function.apply(x.flatten(2), weight, bias, x.shape[1], groups, 1e-5)
    return _activated(y.view_as(x), activation, inplace=activation != "silu")


# Shapes of mu and logvar; packed: both are halves of one tensor, as an encoder's last convolution gives them.
_LATENTS = [
    ((4096, 1024), "", True),
    ((512, 512), "", False),
    ((128, 128), "", True),
    ((32, 4, 32, 32), "packed", False),
    ((100, 333), "", False),
    ((16, 8), "", False),
    ((16384, 1024), "", False),
]


def latents_case(shape: tuple[int, ...], packing: str, dtype: torch.dtype, device: str) -> Case:
    """A latent drawn from a Gaussian, and its divergence.

    Args:
        shape: Of mu and logvar.
        packing: ``"packed"`` for halves of one tensor, or ``""``.
        dtype: Of both.
        device: As of :func:`batch_norm_case`.

    Returns:
        The case.
    """
    moments = torch.randn(shape[0], 2 * shape[1], *shape[2:], device=device).to(dtype)
    inputs = (moments,) if packing else tuple(half.contiguous() for half in moments.chunk(2, dim=1))
    for t in inputs:
        t.requires_grad_()

    def of_halves(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda moments, **options: function(*moments.chunk(2, dim=1), **options)

    def ours(mu: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Any:
        return ops.reparameterize_kl(mu, logvar, noise=noise)

    # Of 16-bit data, too, the divergence is float32.
    wide = torch.promote_types(dtype, torch.float32)

    def eager(mu: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Any:
        std = torch.exp(0.5 * logvar)
        z = mu + (torch.randn_like(std) if noise is None else noise) * std
        terms, over = 1 + logvar - mu.pow(2) - logvar.exp(), tuple(range(1, mu.dim()))
        return z, -0.5 * torch.sum(terms, dim=over, dtype=torch.promote_types(mu.dtype, wide))

    def diffusers(mu: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Any:
        logvar = torch.clamp(logvar, -30.0, 20.0)
        std, var = torch.exp(0.5 * logvar), torch.exp(logvar)
        z = mu + std * (torch.randn(mu.shape, device=mu.device, dtype=mu.dtype) if noise is None else noise)
        terms, over = mu.pow(2) + var - 1.0 - logvar, tuple(range(1, mu.dim()))
        return z, 0.5 * torch.sum(terms, dim=over, dtype=torch.promote_types(mu.dtype, wide))

    contenders: dict[str, Callable[..., Any]] = {OURS: ours, "eager": eager, "diffusers": diffusers}
    if packing:
        contenders = {name: of_halves(function) for name, function in contenders.items()}
    noise = torch.randn(shape, device=device).to(dtype)
    # Philox and Box-Muller alone are about 40 operations; exponentials and the divergence 20.
    return Case(
        contenders, inputs, moved={"forward": 3 * noise.nbytes, "both": 8 * noise.nbytes},
        operations={"forward": 60 * noise.numel(), "both": 130 * noise.numel()}, fixed={"noise": noise},
    )  # fmt: skip


# Steps, batch, input size, hidden size, layers, bidirectional; and the cells of the short list.
_SEQUENCES = [
    ((16, 16, 3, 64, 3, True), "LSTM"),
    ((28, 64, 28, 64, 1, False), "RNN GRU LSTM"),
    ((64, 64, 128, 128, 1, False), "GRU LSTM"),
    ((64, 32, 256, 256, 1, False), ""),
    ((100, 8, 64, 512, 1, False), ""),
]
_CELLS = {"RNN": (nn.RNN, RNN, 1), "GRU": (nn.GRU, GRU, 3), "LSTM": (nn.LSTM, LSTM, 4)}


def sequence_case(cell: str, sizes: tuple[int, int, int, int, int, bool], dtype: torch.dtype, device: str) -> Case:
    """Recurrent layers over whole sequences.

    Args:
        cell: ``"RNN"``, ``"GRU"`` or ``"LSTM"``.
        sizes: Steps, batch, input size, hidden size, layers, and whether both ways.
        dtype: Of data and weights.
        device: As of :func:`batch_norm_case`.

    Returns:
        The case.
    """
    steps, batch, features, hidden, layers, both_ways = sizes
    theirs, own, gates = _CELLS[cell]
    options: dict[str, Any] = {"num_layers": layers, "bidirectional": both_ways, "device": device, "dtype": dtype}
    eager, ours = theirs(features, hidden, **options), own(features, hidden, **options)
    ours.load_state_dict(eager.state_dict())
    x = torch.randn(steps, batch, features, device=device, dtype=dtype, requires_grad=True)
    directions = 1 + both_ways
    data = (x.numel() + steps * batch * hidden * directions) * x.element_size()
    weights = sum(p.nbytes for p in eager.parameters())
    products = 0
    for layer in range(layers):
        width = features if layer == 0 else hidden * directions
        products += 2 * steps * batch * gates * hidden * (width + hidden) * directions
    # torch.compile leaves recurrent layers to eager PyTorch.
    return Case(
        {OURS: ours, "eager": eager}, (x,), moved={"forward": data + weights, "both": 3 * (data + weights)},
        operations={"forward": products, "both": 3 * products}, compiled=False, slack=2.0,
    )  # fmt: skip


# Shape of the finer side, channels of the coarser one, kernel, transposed; and whether it is in the short list.
_CONVOLUTIONS = [
    ((64, 64, 32, 32), 128, 4, False, True),
    ((64, 128, 16, 16), 256, 4, False, False),
    ((64, 256, 8, 8), 512, 4, False, False),
    ((64, 64, 32, 32), 128, 4, True, True),
    ((64, 128, 16, 16), 256, 4, True, False),
    ((64, 256, 8, 8), 512, 4, True, False),
    ((64, 128, 32, 32), 128, 3, False, False),
    ((64, 256, 16, 16), 256, 3, False, False),
]


def _convolution(
    shape: tuple[int, ...], channels: int, kernel: int, transposed: bool, layout: str, device: str
) -> Case:
    batch, width, *sizes = shape
    coarse = torch.Size((batch, channels, *(size // (2 if kernel == 4 else 1) for size in sizes)))
    x = _laid_out(torch.randn(coarse if transposed else shape, device=device), layout).requires_grad_()
    weight = _laid_out(torch.randn(channels, width, kernel, kernel, device=device) / 32, layout).requires_grad_()
    contenders: dict[str, Callable[..., Any]] = (
        {OURS: ops.winograd_conv_transpose2d, "eager": ops.winograd_conv_transpose2d_reference}
        if transposed
        else {OURS: ops.winograd_conv2d, "eager": ops.winograd_conv2d_reference}
    )
    # Of the direct way: with fewer products, more than all of the machine's speed is possible.
    products = 2 * coarse.numel() * width * kernel * kernel
    data = 4 * (math.prod(shape) + coarse.numel() + weight.numel())
    return Case(
        contenders, (x, weight), moved={"forward": data, "both": 3 * data},
        operations={"forward": products, "both": 3 * products},
    )  # fmt: skip


# Shape of the image, channels of the features, kernel; and whether it is in the short list.
_WEIGHT_GRADIENTS = [
    ((64, 64, 32, 32), 128, 4, True),
    ((64, 128, 16, 16), 256, 4, False),
    ((64, 256, 8, 8), 512, 4, False),
    ((64, 128, 32, 32), 128, 3, False),
]


def _weight_gradient(shape: tuple[int, ...], channels: int, kernel: int, layout: str, device: str) -> Case:
    from genimg_fast.ops.bf16_conv import bf16_conv_weight, bf16_conv_weight_reference

    batch, width, *sizes = shape
    stride = 2 if kernel == 4 else 1
    image = _laid_out(torch.randn(shape, device=device).bfloat16(), layout)
    features = torch.randn(batch, channels, *(size // stride for size in sizes), device=device).bfloat16()
    numbers: dict[str, Any] = {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "padding": (1, 1)}
    products = 2 * features.numel() * width * kernel * kernel
    return Case(
        {
            OURS: partial(bf16_conv_weight, **numbers),
            "eager": partial(bf16_conv_weight_reference, **numbers),
        },
        (image, _laid_out(features, layout)), ("forward",),
        moved={"forward": 2 * (image.numel() + features.numel() + channels * width * kernel * kernel)},
        operations={"forward": products},
    )  # fmt: skip


def _listed(dtype: torch.dtype, layout: str) -> bool:
    """Whether the short list has it: 16-bit images in channels_last alone, as the trainers lay them out."""
    return dtype == torch.float32 or layout == "channels_last"


def entries() -> Iterator[Entry]:
    """List the operators' cases, the long list, by name."""
    for shape, activation, short in _BATCH_NORMS:
        for dtype in DTYPES:
            for layout in _layouts(shape):
                name = f"batch_norm_act {_by_x(shape)} {activation} {_named(dtype)} {layout}"
                build = partial(batch_norm_case, shape, dtype, layout, activation)
                yield Entry(name, "ops", _named(dtype), short and _listed(dtype, layout), build)
    for shape, groups, activation, norm, short in _GROUP_NORMS:
        # 16-bit data has float32 parameters; under autocast, for CPUs, it stays 16-bit data: one shape shows it.
        for kind in ("float32", "bfloat16", *(("autocast",) if norm == "" and short else ())):
            for layout in _layouts(shape):
                suffix = f" {norm}" if norm else ""
                name = f"group_norm_act {_by_x(shape)}/{groups}{suffix} {activation} {kind} {layout}"
                build = partial(group_norm_case, shape, groups, activation, norm, kind, layout)
                words = "float32" if kind == "float32" else "bfloat16"
                listed = short and kind != "autocast" and _listed(getattr(torch, words), layout)
                yield Entry(name, "ops", words, listed, build)
    for direction, shape, channels, side, stride, activation, short in _IMAGE_CONVS:
        for dtype in DTYPES:
            for layout in _layouts(shape):
                window = f"{side}x{side} stride {stride}"
                name = f"image_conv_act {direction} {_by_x(shape)} {channels} {window} {activation} "
                name += f"{_named(dtype)} {layout}"
                build = partial(
                    _image_conv, direction, shape, channels, side, stride, activation, dtype, layout
                )  # fmt: skip
                yield Entry(name, "ops", _named(dtype), short and _listed(dtype, layout), build)
    for shape, packing, short in _LATENTS:
        for dtype in DTYPES:
            suffix = f" {packing}" if packing else ""
            name = f"reparameterize_kl {_by_x(shape)}{suffix} {_named(dtype)}"
            yield Entry(name, "ops", _named(dtype), short, partial(latents_case, shape, packing, dtype))
    for sizes, cells in _SEQUENCES:
        for cell in _CELLS:
            for dtype in DTYPES:
                steps, batch, features, hidden, layers, both_ways = sizes
                stack = f" L{layers}{' bidirectional' if both_ways else ''}" if layers > 1 else ""
                name = f"{cell} T{steps} B{batch} I{features} H{hidden}{stack} {_named(dtype)}"
                listed = cell in cells.split() and (dtype == torch.float32 or cell == "LSTM")
                yield Entry(name, "ops", _named(dtype), listed, partial(sequence_case, cell, sizes, dtype))
    for shape, channels, kernel, transposed, short in _CONVOLUTIONS:
        for layout in _layouts(shape):
            arrow = f"{channels}-{_by_x(shape)}" if transposed else f"{_by_x(shape)}-{channels}"
            name = f"winograd_conv{'_transpose' * transposed}2d {arrow} k{kernel} float32 {layout}"
            build = partial(_convolution, shape, channels, kernel, transposed, layout)
            yield Entry(name, "ops", "float32", short and layout == "channels_last", build)
    for shape, channels, kernel, short in _WEIGHT_GRADIENTS:
        for layout in _layouts(shape):
            name = f"bf16_conv_weight {_by_x(shape)}-{channels} k{kernel} bfloat16 {layout}"
            build = partial(_weight_gradient, shape, channels, kernel, layout)
            yield Entry(name, "ops", "bfloat16", short and layout == "channels_last", build)
