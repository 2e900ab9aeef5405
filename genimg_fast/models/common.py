"""What several models share."""

from collections.abc import Iterable

import torch
from torch import Tensor

from genimg_fast import nn
from genimg_fast._images import check_values


def check_sizes(**sizes: int) -> None:
    """Raise a ValueError that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ValueError that lists the choices if ``value`` is none of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_images(images: Tensor, c_dim: int, image_size: int) -> None:
    """Raise a ValueError unless ``images`` are of shape (batch, c_dim, image_size, image_size), in [-1, 1]."""
    if images.shape[1:] != (c_dim, image_size, image_size):
        last = images.shape[1:] == (image_size, image_size, c_dim)
        raise ValueError(
            f"expected images of shape (batch, {c_dim}, {image_size}, {image_size}), got {tuple(images.shape)}"
            + (": its channels are last, take permute(0, 3, 1, 2)" if last else "")
        )
    check_values(images)


def check_labels(labels: Tensor | None, batch: int, num_classes: int) -> None:
    """Raise a ValueError unless a model with ``num_classes`` classes, 0 for none, gets the labels it needs."""
    if num_classes == 0:
        if labels is not None:
            raise ValueError("labels are for class-conditional models, and this one is not")
    elif labels is None:
        raise ValueError(f"this model is class-conditional: labels of shape ({batch},) are needed")
    elif labels.dtype != torch.int64 or labels.shape != (batch,):
        raise ValueError(
            f"labels must be int64 of shape ({batch},), got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    elif labels.is_cpu and not torch.compiler.is_compiling() and batch > 0:  # a GPU's would have to be waited for
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= num_classes:
            raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {lowest}..{highest}")


def labels_to_sample(labels: Tensor | int | None, n: int, num_classes: int, device: torch.device) -> Tensor | None:
    """Return the labels of ``n`` samples: those given, one class for all, or all classes in order by default."""
    if labels is None and num_classes > 0:
        return torch.arange(n, device=device) * num_classes // n
    if isinstance(labels, int):
        if num_classes == 0:
            raise ValueError("labels are for class-conditional models, and this one is not")
        if not 0 <= labels < num_classes:
            raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {labels}")
        return torch.full((n,), labels, device=device)
    return labels


def group_norm_act(width: int) -> nn.GroupNormAct:
    """Make a group norm with SiLU, of up to 32 groups: of four channels or a multiple, or all in one group.

    Of fewer channels, on small maps, a norm would leave little.
    """
    groups = next((g for g in (32, 16, 8, 4, 2) if width % (4 * g) == 0), 1)
    return nn.GroupNormAct(groups, width)


def conv_encoder(in_channels: int, channels: int, n_blocks: int, out_channels: int) -> nn.Sequential:
    """Make the encoder of the VAEs: strided convolutions down to 4x4, and one more down to 1x1."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, channels, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
    ]
    for width in (channels * 2**block for block in range(n_blocks - 1)):
        layers += [
            nn.Conv2d(width, width * 2, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width * 2),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(channels * 2 ** (n_blocks - 1), out_channels, 4))


def conv_decoder(in_channels: int, channels: int, n_blocks: int, out_channels: int) -> nn.Sequential:
    """Make the decoder of the VAEs, from vectors to images: the encoder's mirror image."""
    width = channels * 2 ** (n_blocks - 1)
    layers: list[nn.Module] = [
        nn.Unflatten(1, (in_channels, 1, 1)),
        nn.ConvTranspose2d(in_channels, width, 4, bias=False),
        nn.BatchNorm2d(width),
        nn.LeakyReLU(0.2, inplace=True),
    ]
    for _ in range(n_blocks - 1):
        layers += [
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        width //= 2
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1))
