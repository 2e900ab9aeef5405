"""The step of github.com/pytorch/examples, dcgan/main.py, that whole steps of ours are compared with."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg_fast._fuse import unfuse
from genimg_fast.models import DCGAN
from genimg_fast.training import Recipe


def dcgan(device: str | torch.device, channels: int = 64, n_blocks: int = 4) -> DCGAN:
    """Make the networks of images of ``4 << n_blocks`` pixels a side, with the same weights every time."""
    torch.manual_seed(0)
    return DCGAN(z_dim=100, c_dim=3, channels=channels, n_blocks=n_blocks).to(device)


def judge(discriminator: nn.Module, images: Tensor, label: float) -> tuple[Tensor, Tensor]:
    """Compute binary cross-entropy after a sigmoid, and the mean output."""
    output = discriminator(images).sigmoid()
    return nn.BCELoss()(output, torch.full((len(images),), label, device=images.device)), output.mean()


def judge_logits(discriminator: nn.Module, images: Tensor, label: float) -> tuple[Tensor, Tensor]:
    """Compute the same in one function, which autocast allows."""
    logits = discriminator(images)
    loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
    return loss, logits.detach().sigmoid().mean()


def example(
    images: Tensor, recipe: Recipe | None = None, mode: str = "default", channels: int = 64
) -> Callable[[], list[float]]:
    """Return that step on these images, with torch.nn's layers.

    Args:
        images: The batch.
        recipe: Its precision and memory format, and compiled networks and fused Adam; None: the loop as it is.
        mode: Of torch.compile.
        channels: Width of the networks.

    Returns:
        A function that takes the step and returns losses and mean outputs.
    """
    model: Any = unfuse(dcgan(images.device, channels, n_blocks=(images.shape[-1] // 4).bit_length() - 1))
    judged, precision = judge, torch.float32
    if recipe is not None:
        judged, precision = judge_logits, torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
    networks = [model.generator, model.discriminator]
    optimizer_g, optimizer_d = (
        torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=recipe is not None)
        for network in networks
    )
    if recipe is not None:
        networks = [torch.compile(network, mode=mode) for network in networks]
    generator, discriminator = networks
    autocast = partial(torch.autocast, images.device.type, precision, enabled=precision == torch.bfloat16)

    def step() -> list[float]:
        if recipe is not None:
            torch.compiler.cudagraph_mark_step_begin()
        optimizer_d.zero_grad()
        with autocast():
            loss_real, mean_real = judged(discriminator, images, 1.0)
        loss_real.backward()
        with autocast():
            fake = generator(torch.randn(len(images), 100, device=images.device))
            loss_fake, mean_fake = judged(discriminator, fake.detach(), 0.0)
        loss_fake.backward()
        optimizer_d.step()
        optimizer_g.zero_grad()
        with autocast():
            loss_g, mean_g = judged(discriminator, fake, 1.0)
        loss_g.backward()
        optimizer_g.step()
        return [value.item() for value in (loss_real + loss_fake, loss_g, mean_real, mean_fake, mean_g)]

    return step
