"""A whole training step of a DCGAN of 64x64 images, against the loop of PyTorch's example: `make bench`.

"x eager" is that loop as it is, in float32; "x compile" the same with compiled networks, fused Adam, and the
precision and memory format of the row. One row: `pytest benchmarks/bench_training.py -k bf16`. Images are random,
nothing is averaged or written.
"""

import pytest
import torch
from dcgan_loop import dcgan, example
from harness import DEVICE, OURS, Row

from genimg_fast.training import GANTrainer, Recipe

BATCH = 128 if DEVICE == "cuda" else 64
GRAPH = DEVICE == "cuda"
RECIPES = {
    "float32": Recipe(cuda_graph=GRAPH, ema=0),
    "float32, channels_last": Recipe(channels_last=True, cuda_graph=GRAPH, ema=0),
    "bf16, channels_last": Recipe(precision="bf16", channels_last=True, cuda_graph=GRAPH, ema=0),
}


@pytest.mark.parametrize("name", RECIPES)
def test_dcgan_step(name, compare):
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, 64, 64, device=DEVICE) * 2 - 1
    torch._dynamo.reset()
    trainer = GANTrainer(dcgan(DEVICE), recipe=RECIPES[name])
    contenders = {
        OURS: lambda: trainer.step(images),
        "eager": example(images),
        "compile": example(images, RECIPES[name]),
    }
    for function in contenders.values():  # a CUDA graph is recorded in the fourth step
        for _ in range(4):
            function()
    compare(Row("training", f"DCGAN-64 B{BATCH} {name}", "step", 0), contenders)
