"""The cases of whole networks, and of whole training steps."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from genimg_fast._fold import fold_batch_norm
from genimg_fast._fuse import fuse, unfuse
from genimg_fast.bench import loops
from genimg_fast.bench.case import Case, Step
from genimg_fast.bench.entries import OURS, Entry
from genimg_fast.bench.loops import Setting
from genimg_fast.data.optional import optional_import
from genimg_fast.models import (
    DCGAN,
    MLPVAE,
    VAE,
    VQVAE,
    WGAN,
    ConditionalDCGAN,
    CycleGAN,
    FramePredictor,
    Pix2Pix,
    ResidualGAN,
    ResidualVAE,
)
from genimg_fast.training import (
    CycleGANTrainer,
    FramePredictorTrainer,
    GANTrainer,
    Pix2PixTrainer,
    Recipe,
    VAETrainer,
    VQVAETrainer,
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


def cyclegan_generator() -> nn.Module:
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
    "CycleGAN generator B1 128x128": (cyclegan_generator, (1, 3, 128, 128), True),
    "AutoencoderKL B1 64x64": (_Autoencoder, (1, 3, 64, 64), False),
}


def _network(build: Callable[[], nn.Module], shape: tuple[int, ...], layout: str, device: str) -> Case:
    """Forward and backward pass of a network of others, after gf.fuse."""
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    model = build().to(device).train().to(memory_format=memory_format)
    images = torch.randn(shape, device=device).to(memory_format=memory_format)
    return Case({OURS: fuse(copy.deepcopy(model)), "eager": model}, (images,), passes=("both",))


def _dcgan_generator() -> nn.Module:
    return DCGAN(z_dim=100, c_dim=3, channels=64, n_blocks=4).generator


_EVALUATED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18 B4 96x96": (_resnet18, (4, 3, 96, 96)),
    "DCGAN-64 generator B64": (_dcgan_generator, (64, 100)),
}


def _evaluated(build: Callable[[], nn.Module], shape: tuple[int, ...], folds: bool, device: str) -> Case:
    """Evaluation of a network after gf.fuse; or of that with batch norms folded, beside it without."""
    model = build().to(device).eval().requires_grad_(False)
    input = torch.randn(shape, device=device)
    fused, plain = fuse(copy.deepcopy(model)), unfuse(model)
    contenders: dict[str, Callable[..., Any]] = {OURS: fused, "eager": plain}
    if folds:
        # Folded weights are rounded once more: a function, as a module would be compared as a copy in float64.
        contenders = {OURS: partial(fold_batch_norm(fused, input)), "fused": fused, "eager": plain}
    return Case(contenders, (input,), passes=("forward",))


# "float32" is what a trainer does by default, in the memory format that is faster.
_RECIPES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32 NCHW": {"channels_last": False},
    "bf16 channels_last": {"channels_last": True, "precision": "bf16"},
}


def step_case(
    make: Callable[[], Any], trainer: Callable[..., Any], loop: Callable[..., loops.Step],
    shape: Sequence[int], classes: int, options: dict[str, Any], device: str,
) -> Case:  # fmt: skip
    """A training step of this package's trainer, and of the loop that people start from.

    That loop runs as it is published (``"eager"``), compiled (``"compile-float32"``), and compiled with the
    precision and the memory format that ours has (``"compile"``). All have to train like the first; the trainer,
    where it does something otherwise, like that loop with this done likewise.

    Args:
        make: Makes the model, with the same weights every time.
        trainer: Of this package.
        loop: One of :mod:`genimg_fast.bench.loops`.
        shape: Of the batch.
        classes: Number of classes of the images, if the model knows them, else 0.
        options: Of the recipe.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        The case.
    """
    images = torch.rand(*shape, device=device).mul_(2).sub_(1)
    data = (images, torch.arange(shape[0], device=device) % classes) if classes else (images,)

    def looped(setting: Setting) -> Step:
        torch.manual_seed(0)
        model = make()
        return Step(loop(model, setting, *data), [model])

    def compiled(recipe: Recipe) -> Callable[[], Any]:
        step = looped(Setting(device, True, recipe))
        # What a compiler makes of dropout draws other numbers: there is nothing to compare it with.
        return step.run if _has_dropout(step.networks[0]) else step

    torch.manual_seed(0)
    stepper = trainer(make().to(device), recipe=Recipe(**options, ema=0, cuda_graph=device == "cuda"))
    recipe = stepper.recipe
    alike = Setting(device, recipe=Recipe(channels_last=recipe.channels_last), alike=True)
    # Dropout draws in the order of the memory format.
    otherwise = loop in (loops.vae, loops.wgan, loops.cyclegan) or _has_dropout(stepper.model)

    contenders: dict[str, Callable[..., Any]] = {
        OURS: Step(partial(stepper.step, *data), [stepper.model], partial(looped, alike) if otherwise else None),
        "eager": looped(Setting(device)),
        "compile": compiled(recipe),
    }
    if recipe.channels_last or recipe.precision != "fp32":
        contenders["compile-float32"] = compiled(Recipe())
    precision = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    return Case(contenders, passes=("step",), images=shape[0], precision=precision)


def _has_dropout(model: nn.Module) -> bool:
    return any(isinstance(module, _DropoutNd) for module in model.modules())


def dcgan_case(
    blocks: int, options: dict[str, Any], device: str, batch: int | None = None, channels: int = 64
) -> Case:
    """A step of the DCGAN of images of ``4 << blocks`` pixels a side.

    Args:
        blocks: Doublings of the generator's resolution.
        options: Of the recipe.
        device: ``"cpu"`` or ``"cuda"``.
        batch: Images; default: 64, on a GPU 128.
        channels: Width of the networks.

    Returns:
        The case.
    """
    batch = batch or (64 if device == "cpu" else 128)
    return step_case(
        partial(DCGAN, z_dim=100, c_dim=3, channels=channels, n_blocks=blocks), GANTrainer, loops.gan,
        (batch, 3, 4 << blocks, 4 << blocks), 0, options, device,
    )  # fmt: skip


# Model, trainer, loop, shape of the batch (of pairs: side by side), classes, and whether the short list has it.
_STEPS: dict[str, tuple[Callable[[], Any], Callable[..., Any], Callable[..., Any], tuple[int, ...], int, bool]] = {
    "WGAN-GP 32x32 B64": (
        partial(WGAN, z_dim=100, c_dim=3, channels=64, n_blocks=3),
        partial(GANTrainer, loss="wasserstein", gp=10.0), loops.wgan, (64, 3, 32, 32), 0, False,
    ),
    "ResidualGAN-GP 32x32 B64": (
        partial(ResidualGAN, z_dim=100, c_dim=3, channels=32),
        partial(GANTrainer, loss="wasserstein", gp=10.0), loops.wgan, (64, 3, 32, 32), 0, False,
    ),
    "cDCGAN 32x32 B64": (
        partial(ConditionalDCGAN, z_dim=100, c_dim=1, channels=32, n_blocks=3, num_classes=10),
        GANTrainer, loops.gan, (64, 1, 32, 32), 10, False,
    ),
    "DCGAN 32x32 B64 (the demo's)": (
        partial(DCGAN, z_dim=20, c_dim=1, channels=32, n_blocks=3),
        GANTrainer, loops.gan, (64, 1, 32, 32), 0, True,
    ),
    "Pix2Pix 64x64 B1, instance norm": (
        partial(Pix2Pix, channels=32, image_size=64, norm="instance"),
        Pix2PixTrainer, loops.pix2pix, (1, 3, 64, 128), 0, False,
    ),
    "Pix2Pix 64x64 B4, batch norm": (
        partial(Pix2Pix, channels=32, image_size=64, norm="batch"),
        Pix2PixTrainer, loops.pix2pix, (4, 3, 64, 128), 0, False,
    ),
    "CycleGAN 64x64 B1": (
        partial(CycleGAN, channels=32, image_size=64), CycleGANTrainer, loops.cyclegan, (1, 3, 64, 128), 0, False,
    ),
    "VAE 32x32 B64": (
        partial(VAE, z_dim=32, c_dim=1, channels=32, n_blocks=3), VAETrainer, loops.vae, (64, 1, 32, 32), 0, True,
    ),
    "ResidualVAE 32x32 B64": (
        partial(ResidualVAE, z_dim=32, c_dim=1, channels=32, n_blocks=3),
        VAETrainer, loops.vae, (64, 1, 32, 32), 0, False,
    ),
    "MLPVAE 28x28 B100": (
        partial(MLPVAE, z_dim=50, c_dim=1, image_size=28), VAETrainer, loops.vae, (100, 1, 28, 28), 0, False,
    ),
    "VQVAE 32x32 B64": (
        partial(VQVAE, c_dim=3, channels=64),
        partial(VQVAETrainer, restart=0.0), loops.vqvae, (64, 3, 32, 32), 0, False,
    ),
    "FramePredictor 32x32 T10 B16": (
        FramePredictor, FramePredictorTrainer, loops.frames, (16, 10, 1, 32, 32), 0, False,
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
    for name, (build, shape) in _EVALUATED.items():
        for way in ("evaluation", "folded"):
            evaluated = partial(_evaluated, build, shape, way == "folded")
            yield Entry(f"{name} {way} float32", "models", "float32", False, evaluated)
    for recipe, options in _RECIPES.items():
        dtype = "bfloat16" if "bf16" in recipe else "float32"
        for blocks in (3, 4, 5):
            short = blocks == 4 and recipe != "float32 NCHW"
            name = f"DCGAN-{4 << blocks} step {recipe}"
            yield Entry(name, "models", dtype, short, partial(dcgan_case, blocks, options), step=True)
        for name, (make, trainer, loop, shape, classes, short) in _STEPS.items():
            build_step = partial(step_case, make, trainer, loop, shape, classes, options)
            yield Entry(f"{name} step {recipe}", "models", dtype, short and not options, build_step, step=True)
