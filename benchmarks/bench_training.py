"""A whole training step of a DCGAN of 64x64 images, against the loop of PyTorch's example: `make bench`.

"x eager" is that loop as it is, in float32; "x compile" the same with compiled networks, fused Adam, and the
precision and memory format of the row. One row: `pytest benchmarks/bench_training.py -k bf16`. Images are random,
nothing is averaged or written.
"""

import pytest
import torch
import torch.nn.functional as F
from harness import DEVICE, OURS, Row
from torch import nn

import genimg_fast as gf
from genimg_fast.training import GANTrainer, Recipe

BATCH = 128 if DEVICE == "cuda" else 64
GRAPH = DEVICE == "cuda"
RECIPES = {
    "float32": Recipe(cuda_graph=GRAPH, ema=0),
    "float32, channels_last": Recipe(channels_last=True, cuda_graph=GRAPH, ema=0),
    "bf16, channels_last": Recipe(precision="bf16", channels_last=True, cuda_graph=GRAPH, ema=0),
}


def dcgan():
    torch.manual_seed(0)
    return gf.models.DCGAN(z_dim=100, c_dim=3, channels=64, n_blocks=4).to(DEVICE)


def judge(discriminator, images, label):
    """Binary cross-entropy after a sigmoid, and the mean output."""
    output = discriminator(images).sigmoid()
    return nn.BCELoss()(output, torch.full((len(images),), label, device=DEVICE)), output.mean()


def judge_logits(discriminator, images, label):
    """The same in one function, which autocast allows."""
    logits = discriminator(images)
    loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
    return loss, logits.detach().sigmoid().mean()


def example(images, recipe=None):
    """The step of github.com/pytorch/examples, dcgan/main.py, with torch.nn's layers; with a recipe, compiled."""
    model = gf.unfuse(dcgan())
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
        networks = [torch.compile(network) for network in networks]
    generator, discriminator = networks

    def step():
        optimizer_d.zero_grad()
        with torch.autocast(DEVICE, precision, enabled=precision == torch.bfloat16):
            loss_real, mean_real = judged(discriminator, images, 1.0)
        loss_real.backward()
        with torch.autocast(DEVICE, precision, enabled=precision == torch.bfloat16):
            fake = generator(torch.randn(len(images), 100, device=DEVICE))
            loss_fake, mean_fake = judged(discriminator, fake.detach(), 0.0)
        loss_fake.backward()
        optimizer_d.step()
        optimizer_g.zero_grad()
        with torch.autocast(DEVICE, precision, enabled=precision == torch.bfloat16):
            loss_g, mean_g = judged(discriminator, fake, 1.0)
        loss_g.backward()
        optimizer_g.step()
        return [value.item() for value in (loss_real + loss_fake, loss_g, mean_real, mean_fake, mean_g)]

    return step


@pytest.mark.parametrize("name", RECIPES)
def test_dcgan_step(name, compare):
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, 64, 64, device=DEVICE) * 2 - 1
    torch._dynamo.reset()
    trainer = GANTrainer(dcgan(), recipe=RECIPES[name])
    contenders = {
        OURS: lambda: trainer.step(images),
        "eager": example(images),
        "compile": example(images, RECIPES[name]),
    }
    for function in contenders.values():  # a CUDA graph is recorded in the fourth step
        for _ in range(4):
            function()
    compare(Row("training", f"DCGAN-64 B{BATCH} {name}", "step", 0), contenders)
