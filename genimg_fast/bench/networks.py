"""The cases of whole networks, and of whole training steps."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genimg_fast._fuse import fuse, unfuse
from genimg_fast.bench.case import Case
from genimg_fast.bench.dcgan_loop import dcgan, example
from genimg_fast.bench.entries import OURS, Entry
from genimg_fast.data.optional import optional_import
from genimg_fast.models import DCGAN, MLPVAE, VAE, WGAN, ConditionalDCGAN, FramePredictor, Pix2Pix
from genimg_fast.training import (
    FramePredictorTrainer,
    GANTrainer,
    Pix2PixTrainer,
    Recipe,
    VAETrainer,
)


class _Block(nn.Module):
    """Two convolutions with instance norm, and the way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(width), nn.ReLU(True),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


def _cyclegan() -> nn.Module:
    """The generator of CycleGAN (Zhu et al. 2017, arXiv:1703.10593) for images of 128x128: six blocks."""
    first = nn.Conv2d(3, 64, 7, padding=3, padding_mode="reflect")
    layers: list[nn.Module] = []
    for convolution in (first, nn.Conv2d(64, 128, 3, 2, 1), nn.Conv2d(128, 256, 3, 2, 1)):
        layers += [convolution, nn.InstanceNorm2d(convolution.out_channels), nn.ReLU(True)]
    layers += [_Block(256) for _ in range(6)]
    for outputs in (128, 64):
        layers += [nn.ConvTranspose2d(2 * outputs, outputs, 3, 2, 1, 1), nn.InstanceNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.Conv2d(64, 3, 7, padding=3, padding_mode="reflect"), nn.Tanh())


def _resnet18() -> nn.Module:
    return optional_import("torchvision").models.resnet18()


class _Autoencoder(nn.Module):
    """Stable Diffusion's (Rombach et al. 2022, arXiv:2112.10752), from image to image."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = optional_import("diffusers", "zoo").AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x).sample


_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "resnet18 B16 96x96": (_resnet18, (16, 3, 96, 96), True),
    "resnet18 B4 96x96": (_resnet18, (4, 3, 96, 96), False),
    "CycleGAN generator B1 128x128": (_cyclegan, (1, 3, 128, 128), True),
    "AutoencoderKL B1 64x64": (_Autoencoder, (1, 3, 64, 64), False),
}


def _network(build: Callable[[], nn.Module], shape: tuple[int, ...], layout: str, device: str) -> Case:
    """Forward and backward pass of a network of others, after gf.fuse."""
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    model = build().to(device).train().to(memory_format=memory_format)
    images = torch.randn(shape, device=device).to(memory_format=memory_format)
    return Case({OURS: fuse(copy.deepcopy(model)), "eager": model}, (images,), passes=("both",))


_RECIPES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32 channels_last": {"channels_last": True},
    "bf16 channels_last": {"channels_last": True, "precision": "bf16"},
}


def _dcgan(blocks: int, options: dict[str, Any], device: str) -> Case:
    """A step of a DCGAN by this package's trainer, by the example's loop, and by that one compiled."""
    batch = 128 if device != "cpu" else 64
    recipe = Recipe(**options, cuda_graph=device != "cpu", ema=0)
    images = torch.rand(batch, 3, 4 << blocks, 4 << blocks, device=device) * 2 - 1

    trainer = GANTrainer(dcgan(device, n_blocks=blocks), recipe=recipe)
    contenders: dict[str, Callable[..., Any]] = {
        OURS: lambda: trainer.step(images),
        "eager": example(images),
        "compile": example(images, recipe),
    }
    return Case(contenders, passes=("step",), images=batch)


def _trainer(
    make: Callable[[], Any], trainer: Callable[..., Any], batch: Callable[[str], Any], device: str
) -> Case:
    """A step of this package's trainer: with its layers, and with torch.nn's."""

    def stepping(plain: bool) -> Callable[[], Any]:
        torch.manual_seed(0)
        model = make()
        stepper = trainer((unfuse(model) if plain else model).to(device), recipe=Recipe(ema=0))
        torch.manual_seed(1)
        data = batch(device)
        return lambda: stepper.step(*data)

    images = len(batch("cpu")[0])
    return Case({OURS: stepping(False), "eager": stepping(True)}, passes=("step",), images=images)


def _pictures(n: int, channels: int, side: int, classes: int = 0) -> Callable[[str], Any]:
    def make(device: str) -> Any:
        images = torch.rand(n, channels, side, side).mul(2).sub(1).to(device)
        return (images, torch.arange(n, device=device) % classes) if classes else (images,)

    return make


def _pairs(n: int, side: int) -> Callable[[str], Any]:
    return lambda device: tuple(torch.rand(2, n, 3, side, side).mul(2).sub(1).to(device))


def _frames(n: int, steps: int, side: int) -> Callable[[str], Any]:
    return lambda device: (torch.rand(n, steps, 1, side, side).mul(2).sub(1).to(device),)


_STEPS: dict[str, tuple[Callable[[], Any], Callable[..., Any], Callable[[str], Any], bool]] = {
    "WGAN-GP 32x32 B64": (
        lambda: WGAN(z_dim=100, c_dim=3, channels=64, n_blocks=3),
        partial(GANTrainer, loss="wasserstein", gp=10.0), _pictures(64, 3, 32), False,
    ),
    "cDCGAN 32x32 B64": (
        lambda: ConditionalDCGAN(z_dim=100, c_dim=1, channels=32, n_blocks=3, num_classes=10),
        GANTrainer, _pictures(64, 1, 32, 10), False,
    ),
    "DCGAN 32x32 B64 (the demo's)": (
        lambda: DCGAN(z_dim=100, c_dim=1, channels=16, n_blocks=3), GANTrainer, _pictures(64, 1, 32), True,
    ),
    "Pix2Pix 64x64 B1, instance norm": (
        lambda: Pix2Pix(channels=32, image_size=64, norm="instance"), Pix2PixTrainer, _pairs(1, 64), False,
    ),
    "Pix2Pix 64x64 B4, batch norm": (
        lambda: Pix2Pix(channels=32, image_size=64, norm="batch"), Pix2PixTrainer, _pairs(4, 64), False,
    ),
    "VAE 32x32 B64": (
        lambda: VAE(z_dim=32, c_dim=1, channels=32, n_blocks=3), VAETrainer, _pictures(64, 1, 32), True,
    ),
    "MLPVAE 28x28 B100": (
        lambda: MLPVAE(z_dim=50, c_dim=1, image_size=28), VAETrainer, _pictures(100, 1, 28), False,
    ),
    "FramePredictor 16x16 T10 B32": (
        lambda: FramePredictor(), FramePredictorTrainer, _frames(32, 10, 16), False,
    ),
}  # fmt: skip


def entries() -> Iterator[Entry]:
    """List the cases of networks and of training steps, by name."""
    for name, (build, shape, short) in _NETWORKS.items():
        for layout in ("NCHW", "channels_last"):
            yield Entry(
                f"{name} float32 {layout}", "models", "float32", short and layout == "NCHW",
                partial(_network, build, shape, layout),
            )  # fmt: skip
    for blocks in (3, 4, 5):
        for recipe, options in _RECIPES.items():
            dtype = "bfloat16" if "bf16" in recipe else "float32"
            short = blocks == 4 and recipe != "float32 channels_last"
            yield Entry(
                f"DCGAN-{4 << blocks} step {recipe}", "models", dtype, short, partial(_dcgan, blocks, options)
            )
    for name, (make, trainer, batch, short) in _STEPS.items():
        yield Entry(f"{name} step float32", "models", "float32", short, partial(_trainer, make, trainer, batch))
