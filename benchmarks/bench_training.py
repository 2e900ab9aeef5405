"""A whole training step of a DCGAN of 64x64 images, against the loop of PyTorch's example: `make bench`.

One row: `pytest benchmarks/bench_training.py -k recipe`. Images are random, nothing is averaged or written.
"""

import pytest
import torch
from harness import DEVICE, OURS, Row
from torch import nn

import genimg_fast as gf
from genimg_fast.training import GANTrainer, Recipe

BATCH = 128 if DEVICE == "cuda" else 64
RECIPES = {
    "float32": Recipe(ema=0),
    "recipe": Recipe(precision="bf16", channels_last=True, cuda_graph=DEVICE == "cuda", ema=0),
}


def dcgan():
    torch.manual_seed(0)
    return gf.models.DCGAN(z_dim=100, c_dim=3, channels=64, n_blocks=4).to(DEVICE)


def example(images):
    """The step of github.com/pytorch/examples, dcgan/main.py, with torch.nn's layers, in float32."""
    model = gf.unfuse(dcgan())
    generator, discriminator = model.generator, model.discriminator
    optimizer_g, optimizer_d = (
        torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for network in (generator, discriminator)
    )
    loss = nn.BCELoss()

    def judge(images, label):
        output = discriminator(images).sigmoid()
        return loss(output, torch.full((len(images),), label, device=DEVICE)), output.mean()

    def step():
        discriminator.zero_grad()
        loss_real, mean_real = judge(images, 1.0)
        loss_real.backward()
        fake = generator(torch.randn(len(images), 100, device=DEVICE))
        loss_fake, mean_fake = judge(fake.detach(), 0.0)
        loss_fake.backward()
        optimizer_d.step()
        generator.zero_grad()
        loss_g, mean_g = judge(fake, 1.0)
        loss_g.backward()
        optimizer_g.step()
        return [value.item() for value in (loss_real + loss_fake, loss_g, mean_real, mean_fake, mean_g)]

    return step


def trained(model, recipe, images):
    trainer = GANTrainer(model, recipe=recipe)
    return lambda: trainer.step(images)


@pytest.mark.parametrize("name", RECIPES)
def test_dcgan_step(name, compare):
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, 64, 64, device=DEVICE) * 2 - 1
    recipe = RECIPES[name]
    torch._dynamo.reset()
    compiled = Recipe(precision=recipe.precision, channels_last=recipe.channels_last, compile=True, ema=0)
    contenders = {
        OURS: trained(dcgan(), recipe, images),
        "eager": example(images),
        "compile": trained(gf.unfuse(dcgan()), compiled, images),
    }
    for function in contenders.values():  # CUDA graphs are recorded in the fourth step
        for _ in range(4):
            function()
    description = "DCGAN-64 step, " + ("float32" if name == "float32" else "bf16, channels_last")
    compare(Row("training", f"{description}, batch {BATCH}", "step", 0), contenders)
