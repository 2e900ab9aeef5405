"""FSDP2, parameters in shards over two processes; and DistributedDataParallel of what gf.fuse changed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import genimg_fast as gf
from genimg_fast.training.processes import process_group, rank

# The largest network here, a quarter as wide as by default; every kind of batch norm and recurrent layer.
MODELS = {
    "pix2pix": (lambda: gf.models.UNetGenerator(3, 3, channels=16, image_size=256), (1, 3, 256, 256)),
    "layers": (lambda: Layers(), (3, 2, 8, 8)),
    "fused": (lambda: gf.fuse(Residual()), (3, 4, 8, 8)),
}
WAYS = {"sharded": tuple(MODELS), "replicated": ("fused",)}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.project, self.project_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += self.project_norm(self.project(x))
        return out.relu()


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


def found(name: str, way: str = "") -> dict[str, Tensor]:
    """Outputs and gradients of a model; every process has the same images, so that their mean is that of one."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model = build()
    x = torch.rand(shape) * 2 - 1
    if way == "sharded":
        for layer in model.modules():  # each with parameters of its own is a unit, as well as the whole
            if layer is not model and list(layer.parameters(recurse=False)):
                fully_shard(layer)
        fully_shard(model)
    parallel = DistributedDataParallel(model) if way == "replicated" else model
    output = parallel(x)
    output.square().mean().backward()
    gradients = {key: p.grad.full_tensor() if way == "sharded" else p.grad for key, p in model.named_parameters()}
    return {"output": output.detach(), **gradients}


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Tensor]]:
    file = tmp_path_factory.mktemp("processes") / "found.pt"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, __file__, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(file)


@pytest.mark.parametrize(("way", "name"), [(way, name) for way, names in WAYS.items() for name in names])
def test_two_processes_are_as_one(
    way: str, name: str, in_two_processes: dict[tuple[str, str], dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(in_two_processes[way, name], found(name), rtol=1e-5, atol=1e-7)


if __name__ == "__main__":
    with process_group(torch.device("cpu")):
        results = {(way, name): found(name, way) for way, names in WAYS.items() for name in names}
        if rank() == 0:
            torch.save(results, Path(sys.argv[1]))
