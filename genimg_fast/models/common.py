"""What several models share."""

from collections.abc import Iterable

from genimg_fast import nn


def check_sizes(**sizes: int) -> None:
    """Raise a ValueError that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ValueError that lists the choices if ``value`` is none of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


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
