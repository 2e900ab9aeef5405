"""Small trainers of every kind, with data for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast.training import (
    AutoencoderTrainer,
    BaseTrainer,
    Callback,
    CycleGANTrainer,
    FrameFillerTrainer,
    FramePredictorTrainer,
    GANTrainer,
    GLOTrainer,
    Pix2PixTrainer,
    Recipe,
    RestorationTrainer,
    RowRNNTrainer,
    StyleTrainer,
    VAETrainer,
    VQVAETrainer,
)


class OnStep(Callback):
    """Calls a function after every step."""

    def __init__(self, function: Callable[[int, Any], None]) -> None:
        self.on_step = function


# A picture of this repository, whatever it shows.
STYLE = str(Path(__file__).parents[1] / "docs/demo-samples.png")
SIZES = {"z_dim": 8, "c_dim": 1, "channels": 4, "n_blocks": 2}
DCGAN_CONFIG = {"model": "dcgan", "model_args": SIZES, "steps": 4}
RUN_FILES = {"config.json", "stats.jsonl", "real.png", "losses.png", "checkpoint.pt"}
TRAINERS: dict[str, Callable[..., BaseTrainer]] = {
    "dcgan": lambda **o: GANTrainer(gf.models.DCGAN(**SIZES), **o),
    "cdcgan": lambda **o: GANTrainer(
        gf.models.ConditionalDCGAN(10, **SIZES, norm="spectral"), loss="hinge", r1=0.1, **o
    ),
    "wgan": lambda **o: GANTrainer(gf.models.WGAN(**SIZES), loss="wasserstein", gp=10.0, n_critic=2, **o),
    "vae": lambda **o: VAETrainer(gf.models.VAE(**SIZES, likelihood="gaussian"), **o),
    "resvae": lambda **o: VAETrainer(gf.models.ResidualVAE(**SIZES, likelihood="gaussian"), **o),
    "frame-predictor": lambda **o: FramePredictorTrainer(
        gf.models.FramePredictor(channels=4, n_blocks=2, hidden_size=4), teacher_forcing=0.0, forcing_steps=5, **o
    ),
    "frame-filler": lambda **o: FrameFillerTrainer(
        gf.models.FrameFiller(channels=4, n_blocks=2, hidden_size=4), **o
    ),
    "pix2pix": lambda **o: Pix2PixTrainer(gf.models.Pix2Pix(1, 1, channels=4, image_size=16), **o),
    "cyclegan": lambda **o: CycleGANTrainer(
        gf.models.CycleGAN(1, channels=4, image_size=16, n_residual=1), buffer_size=20, **o
    ),
    "autoencoder": lambda **o: AutoencoderTrainer(gf.models.Autoencoder(**SIZES), **o),
    "vqvae": lambda **o: VQVAETrainer(
        gf.models.VQVAE(c_dim=1, image_size=16, channels=4, num_codes=12, code_dim=3), **o
    ),
    "glo": lambda **o: GLOTrainer(gf.models.GLO(num_images=40, **SIZES), **o),
    "restorer": lambda **o: RestorationTrainer(gf.models.Restorer(c_dim=1, channels=4, depth=1), **o),
    "style-net": lambda **o: StyleTrainer(
        gf.models.StyleNet(c_dim=1, channels=4, n_residual=1), style=STYLE, style_size=24, **o
    ),
    "row-rnn": lambda **o: RowRNNTrainer(gf.models.RowRNN(image_size=16, hidden_size=8), **o),
}
ALL_OPTIONS = Recipe(
    precision="bf16", channels_last=True, grad_clip=1.0, accumulate=2, schedule="linear", decay_steps=8
)


def data_for(name: str, digits: gf.data.ImageDataset) -> Any:
    if name.startswith("frame"):
        return gf.data.MovingDigits(40, frames=5, image_size=16)
    if name == "pix2pix":  # a digit beside its negative
        return gf.data.ImageDataset(torch.cat([digits.images, -digits.images], 3), digits.labels)
    if name == "cyclegan":  # digits and negatives, 40 of each
        negatives = gf.data.ImageDataset(~digits.images[40:80])
        return gf.data.UnpairedImages(gf.data.ImageDataset(digits.images[:40]), negatives)
    if name == "glo":
        return gf.data.ImageDataset(digits.images[:40], torch.arange(40))
    return digits


def make(name: str, **options: Any) -> BaseTrainer:
    torch.manual_seed(0)
    return TRAINERS[name](**options)


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 16, 16, generator=generator) * 2 - 1, torch.arange(n) % 10
