"""Forward and backward pass of whole networks of others, after gf.fuse, against eager PyTorch and torch.compile.

One network: `pytest benchmarks/bench_networks.py -k resnet18`. The autoencoder is that of Stable Diffusion, and
needs diffusers.
"""

import copy

import pytest
import torch
from harness import DEVICE, OURS, Row
from torch import Tensor, nn

import genimg_fast as gf


class Block(nn.Module):
    """Two convolutions with instance norm, and the way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(width), nn.ReLU(True),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


def cyclegan() -> nn.Module:
    """The generator of CycleGAN (Zhu et al. 2017, arXiv:1703.10593) for images of 128x128: six blocks."""
    first = nn.Conv2d(3, 64, 7, padding=3, padding_mode="reflect")
    layers: list[nn.Module] = []
    for convolution in (first, nn.Conv2d(64, 128, 3, 2, 1), nn.Conv2d(128, 256, 3, 2, 1)):
        layers += [convolution, nn.InstanceNorm2d(convolution.out_channels), nn.ReLU(True)]
    layers += [Block(256) for _ in range(6)]
    for outputs in (128, 64):
        layers += [nn.ConvTranspose2d(2 * outputs, outputs, 3, 2, 1, 1), nn.InstanceNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.Conv2d(64, 3, 7, padding=3, padding_mode="reflect"), nn.Tanh())


def resnet18() -> nn.Module:
    import torchvision

    return torchvision.models.resnet18()


class Autoencoder(nn.Module):
    """Stable Diffusion's (Rombach et al. 2022, arXiv:2112.10752), from image to image."""

    def __init__(self) -> None:
        super().__init__()
        diffusers = pytest.importorskip("diffusers")
        self.whole = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x).sample


NETWORKS = {
    "resnet18 B16 96x96": (resnet18, (16, 3, 96, 96)),
    "resnet18 B4 96x96": (resnet18, (4, 3, 96, 96)),
    "CycleGAN generator B1 128x128": (cyclegan, (1, 3, 128, 128)),
    "AutoencoderKL B1 64x64": (Autoencoder, (1, 3, 64, 64)),
}


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name, layout, compare):
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    model = build().to(DEVICE).train().to(memory_format=memory_format)
    images = torch.randn(shape, device=DEVICE).to(memory_format=memory_format)

    def step(network):
        def run():
            for parameter in network.parameters():
                parameter.grad = None
            network(images).square().mean().backward()

        return run

    torch._dynamo.reset()
    contenders = {
        OURS: step(gf.fuse(copy.deepcopy(model))),
        "eager": step(copy.deepcopy(model)),
        "compile": step(torch.compile(copy.deepcopy(model), dynamic=False)),
    }
    compare(Row("networks", f"{name} {layout}", "step", 0), contenders)


def test_evaluation_of_a_small_network(compare):
    """Where what Python does for each layer shows most."""
    torch.manual_seed(0)
    model = resnet18().to(DEVICE).eval()
    images = torch.randn(4, 3, 96, 96, device=DEVICE)

    def run(network):
        def evaluate():
            with torch.no_grad():
                network(images)

        return evaluate

    contenders = {OURS: run(gf.fuse(copy.deepcopy(model))), "eager": run(model)}
    compare(Row("networks", "resnet18 B4 96x96 NCHW", "evaluation", 0), contenders)
