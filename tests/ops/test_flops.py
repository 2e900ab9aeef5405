"""torch.utils.flop_counter sees this package's convolutions as it sees PyTorch's."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import genimg_fast as gf

# Each with its input, and an operator that it has to run on.
LAYERS: dict[str, tuple[Callable[[Any], torch.nn.Module], tuple[int, ...], Any]] = {
    "4x4": (lambda nn: nn.Conv2d(32, 64, 4, 2, 1), (2, 32, 8, 8), "winograd_conv2d"),
    "3x3": (lambda nn: nn.Conv2d(32, 64, 3, 1, 1), (2, 32, 8, 12), "winograd_conv2d"),
    "4x4, back": (lambda nn: nn.ConvTranspose2d(32, 64, 4, 2, 1), (2, 32, 4, 4), "winograd_conv_transpose2d"),
    "3x3, back": (lambda nn: nn.ConvTranspose2d(32, 64, 3, 1, 1), (2, 32, 4, 6), "winograd_conv_transpose2d"),
    "from an image": (lambda nn: nn.Conv2d(3, 24, 4, 2, 1), (2, 3, 12, 8), "image_conv_from"),
    "to an image": (lambda nn: nn.ConvTranspose2d(24, 3, 4, 2, 1), (2, 24, 5, 6), "image_conv_to"),
    "to an image, turned": (lambda nn: nn.Conv2d(24, 3, 3, 1, 1), (2, 24, 5, 6), "image_conv_to"),
    "whole image": (lambda nn: nn.Conv2d(64, 8, 4), (2, 64, 4, 4), None),
    "many weights": (lambda nn: nn.Conv2d(256, 256, 4, 3, 1), (1, 256, 5, 5), None),
    "many weights, transposed": (lambda nn: nn.ConvTranspose2d(256, 256, 4, 3, 1), (1, 256, 2, 2), None),
}  # fmt: skip
# Of those with a pixel left over, gradients of gradients are larger convolutions in PyTorch.
ODD: dict[str, tuple[Callable[[Any], torch.nn.Module], tuple[int, ...], Any]] = {
    "from an odd image": (lambda nn: nn.Conv2d(3, 24, 4, 2, 1), (2, 3, 12, 9), "image_conv_from"),
    "to an odd image": (lambda nn: nn.ConvTranspose2d(24, 3, 5, 2, 1, 1), (2, 24, 5, 6), "image_conv_to"),
}


def counts_of(model: torch.nn.Module, x: Tensor, *, second_order: bool = False) -> dict[Any, int]:
    """Operations of a forward and a backward pass, by operator; with a gradient of a gradient if wanted."""
    x = x.clone().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        if second_order:
            model(x).tanh().sum().backward(create_graph=True)
            x.grad.square().sum().backward()
        else:
            model(x).square().sum().backward()
    return counter.get_flop_counts()["Global"]


@pytest.mark.filterwarnings("ignore:Using backward")  # no cycle outlives the test
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("name", "second_order"), [*((name, False) for name in LAYERS | ODD), *((name, True) for name in LAYERS)]
)
def test_layers_count_as_torchs(name: str, second_order: bool, memory_format: torch.memory_format) -> None:
    make, shape, operator = (LAYERS | ODD)[name]
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    ours, theirs = (make(nn).to(memory_format=memory_format) for nn in (gf.nn, torch.nn))
    with gf.backend("native"):
        found = counts_of(ours, x, second_order=second_order)
    if operator is None:  # a product of PyTorch's
        assert torch.ops.aten.mm in found
    else:
        assert getattr(torch.ops.genimg_fast, operator) in found
    assert sum(found.values()) == sum(counts_of(theirs, x, second_order=second_order).values()) > 0


def test_a_gan_counts_as_torchs() -> None:
    """Its generator and discriminator, with activations in the operators, layer by layer."""
    model = gf.models.DCGAN(z_dim=8, c_dim=3, channels=32, n_blocks=3)
    noise = torch.randn(2, 8)
    found = []
    for each in (model, gf.unfuse(model)):
        with FlopCounterMode(display=False) as counter:
            each.discriminator(each.generator(noise)).sum().backward()
        found.append({name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()})
    assert found[0] == found[1]


@pytest.mark.parametrize("first", ["genimg_fast", "torch.utils.flop_counter"])
def test_formulas_are_there_whoever_is_imported_first(first: str) -> None:
    """And the counter, which imports Triton, is not imported by the package."""
    code = (
        "import sys, importlib\n"
        f"importlib.import_module({first!r})\n"
        "print('torch.utils.flop_counter' in sys.modules)\n"
        "import torch, genimg_fast\n"
        "from torch.utils.flop_counter import flop_registry\n"
        "print(torch.ops.genimg_fast.image_conv_weight in flop_registry)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(first != "genimg_fast"), "True"]


def test_formulas_are_there_however_the_counter_is_imported() -> None:
    """It was looked for, its import failed, and both modules were executed again."""
    code = (
        "import importlib.util, torch, genimg_fast, torch.utils._pytree as tree\n"
        "importlib.util.find_spec('torch.utils.flop_counter')\n"
        "importlib.reload(genimg_fast.ops._flops)\n"
        "kept = tree.tree_map\n"
        "del tree.tree_map\n"
        "try:\n"
        "    import torch.utils.flop_counter\n"
        "except ImportError:\n"
        "    print('failed')\n"
        "tree.tree_map = kept\n"
        "import torch.utils.flop_counter as counter\n"
        "print(torch.ops.genimg_fast.image_conv_weight in counter.flop_registry)\n"
        "importlib.reload(genimg_fast.ops._flops)\n"
        "importlib.reload(counter)\n"
        "print(torch.ops.genimg_fast.image_conv_weight in counter.flop_registry)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["failed", "True", "True"]
