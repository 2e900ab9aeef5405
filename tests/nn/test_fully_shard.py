"""FSDP2: parameters in shards, over two processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import genimg_fast as gf
from genimg_fast.training.processes import process_group, rank

# The largest network here, a quarter as wide as by default; every kind of batch norm and recurrent layer.
MODELS = {
    "pix2pix": (lambda: gf.models.UNetGenerator(3, 3, channels=16, image_size=256), (1, 3, 256, 256)),
    "layers": (lambda: Layers(), (3, 2, 8, 8)),
}


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolutions = gf.nn.Sequential(
            gf.nn.Conv2d(2, 4, 3, padding=1), gf.nn.BatchNorm2d(4), gf.nn.LeakyReLU(0.2), gf.nn.BatchNormAct2d(4)
        )
        self.moving = gf.nn.ConvLSTM2d(4, 3, 3)
        self.recurrent = nn.ModuleList([gf.nn.RNN(8, 8), gf.nn.GRU(8, 8, bidirectional=True), gf.nn.LSTM(16, 6)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.moving(self.convolutions(x)[:, None])[0].mean((1, 3))  # the batch as a sequence
        for layer in self.recurrent:
            y, _ = layer(y)
        return y


def found(name: str, shard: bool) -> dict[str, Tensor]:
    """Outputs and gradients of a model; every process has the same images, so that their mean is that of one."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model = build()
    x = torch.rand(shape) * 2 - 1
    if shard:
        for layer in model.modules():  # each with parameters of its own is a unit, as well as the whole
            if layer is not model and list(layer.parameters(recurse=False)):
                fully_shard(layer)
        fully_shard(model)
    output = model(x)
    output.square().mean().backward()
    gradients = {key: p.grad.full_tensor() if shard else p.grad for key, p in model.named_parameters()}
    return {"output": output.detach(), **gradients}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    file = tmp_path_factory.mktemp("sharded") / "found.pt"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, __file__, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(file)


@pytest.mark.parametrize("name", MODELS)
def test_sharded_is_as_whole(name: str, sharded: dict[str, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(sharded[name], found(name, shard=False), rtol=1e-5, atol=1e-7)


if __name__ == "__main__":
    with process_group(torch.device("cpu")):
        results = {name: found(name, shard=True) for name in MODELS}
        if rank() == 0:
            torch.save(results, Path(sys.argv[1]))
