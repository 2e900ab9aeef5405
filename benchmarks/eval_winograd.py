"""What convolutions with fewer products gain over PyTorch's, pass by pass, and in a DCGAN's training step.

    python benchmarks/eval_winograd.py [--threads 1] [--rounds 12] [--steps 6]

The first table has the forward pass, the gradient of the input and that of the weight at a batch of 64, in
channels_last and float32: the least times of calls in turns, the rate of PyTorch's (of direct products), and the
root mean square of the error against float64 over PyTorch's own. The second has a step of pytorch/examples'
DCGAN-64, a batch of 64, with PyTorch's layers, with these operators in its strided layers, and with
genimg_fast.nn. With one thread times are those that the process had the processor, so that others on the machine
count less.
"""

import argparse
import time
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genimg_fast.nn as gf_nn
from genimg_fast.bench.machine import commit, facts
from genimg_fast.ops import winograd_conv2d, winograd_conv_transpose2d

BATCH = 64
# Channels of the input and the output, size of the input, kernel.
SHAPES = [(64, 128, 32, 4), (128, 256, 16, 4), (256, 512, 8, 4), (128, 128, 32, 3), (256, 256, 16, 3)]
LAST = torch.channels_last


def in_turns(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the least seconds of each."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            started = clock()
            function()
            best[name] = min(best[name], clock() - started)
    return best


def passes(shape: tuple[int, int, int, int], rounds: int) -> list[str]:
    inputs, outputs, size, kernel = shape
    stride = 2 if kernel == 4 else 1
    x = torch.randn(BATCH, inputs, size, size).contiguous(memory_format=LAST)
    weight = torch.randn(outputs, inputs, kernel, kernel).div(32).contiguous(memory_format=LAST)
    grad = torch.randn_like(F.conv2d(x, weight, None, stride, 1))

    def theirs(index: int, *tensors: Tensor) -> Tensor:
        x, weight, grad = tensors
        if index == 0:
            return F.conv2d(x, weight, None, stride, 1)
        mask = [index == 1, index == 2, False]
        options = (None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, mask)
        return torch.ops.aten.convolution_backward(grad, x, weight, *options)[index - 1]

    operators = torch.ops.genimg_fast
    ours = (
        lambda: operators.winograd_conv2d(x, weight, None),
        lambda: operators.winograd_conv_transpose2d(grad, weight, None),
        lambda: operators.winograd_conv2d_weight_gradient(x, grad, kernel),
    )
    lines = []
    for index, name in enumerate(("forward", "input gradient", "weight gradient")):
        exact = theirs(index, x.double(), weight.double(), grad.double())
        ratio = (ours[index]() - exact).norm() / (theirs(index, x, weight, grad) - exact).norm()
        best = in_turns({"ours": ours[index], "theirs": lambda i=index: theirs(i, x, weight, grad)}, rounds)
        rate = 2 * grad.numel() * inputs * kernel * kernel / best["theirs"] / 1e9
        lines.append(
            f"| {inputs} to {outputs} at {size}, {kernel}x{kernel} | {name} | {best['theirs'] * 1e3:.1f} "
            f"| {rate:.0f} | {best['ours'] * 1e3:.1f} | {best['theirs'] / best['ours']:.2f} | {ratio:.2f} |"
        )
    return lines


class Down(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return winograd_conv2d(input, self.weight)


class Up(nn.ConvTranspose2d):
    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        return winograd_conv_transpose2d(input, self.weight)


def step_of(
    kinds: ModuleType, layout: torch.memory_format, down: type[nn.Conv2d], up: type[nn.ConvTranspose2d]
) -> Callable[[], None]:
    """Build a DCGAN-64 of these kinds of layers and return its training step, as pytorch/examples has it."""
    torch.manual_seed(0)
    norm, relu, leaky = kinds.BatchNorm2d, kinds.ReLU, kinds.LeakyReLU
    layers: list[nn.Module] = [kinds.ConvTranspose2d(100, 512, 4, bias=False), norm(512), relu(True)]
    for width in (512, 256, 128):
        layers += [up(width, width // 2, 4, 2, 1, bias=False), norm(width // 2), relu(True)]
    generator = kinds.Sequential(*layers, kinds.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh())
    layers = [kinds.Conv2d(3, 64, 4, 2, 1, bias=False), leaky(0.2, True)]
    for width in (64, 128, 256):
        layers += [down(width, 2 * width, 4, 2, 1, bias=False), norm(2 * width), leaky(0.2, True)]
    critic = kinds.Sequential(*layers, kinds.Conv2d(512, 1, 4, bias=False), nn.Flatten(0))
    generator, critic = generator.to(memory_format=layout), critic.to(memory_format=layout)
    optimizers = [torch.optim.Adam(m.parameters(), 2e-4, (0.5, 0.999)) for m in (generator, critic)]
    images = torch.rand(BATCH, 3, 64, 64).mul(2).sub(1).contiguous(memory_format=layout)
    ones, zeros = torch.ones(BATCH), torch.zeros(BATCH)

    def step() -> None:
        critic.zero_grad()
        F.binary_cross_entropy_with_logits(critic(images), ones).backward()
        fake = generator(torch.randn(BATCH, 100, 1, 1))
        F.binary_cross_entropy_with_logits(critic(fake.detach()), zeros).backward()
        optimizers[1].step()
        generator.zero_grad()
        F.binary_cross_entropy_with_logits(critic(fake), ones).backward()
        optimizers[0].step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12, help="calls of each pass")
    parser.add_argument("--steps", type=int, default=6, help="training steps of each kind")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = facts("cpu")
    print(f"{about['device']}, {options.threads} threads, torch {torch.__version__}, commit {commit()}\n")
    print("| | pass | PyTorch, ms | GFLOP/s | ours, ms | x | error |\n|---|---|--:|--:|--:|--:|--:|")
    for shape in SHAPES:
        print("\n".join(passes(shape, options.rounds)), flush=True)
    theirs, ours = (nn.Conv2d, nn.ConvTranspose2d), (Down, Up)
    steps = {
        "PyTorch, NCHW": step_of(nn, torch.contiguous_format, *theirs),
        "PyTorch, channels_last": step_of(nn, LAST, *theirs),
        "these operators in PyTorch, channels_last": step_of(nn, LAST, *ours),
        "all of genimg_fast.nn, NCHW": step_of(
            gf_nn, torch.contiguous_format, gf_nn.Conv2d, gf_nn.ConvTranspose2d
        ),
        "all of genimg_fast.nn, channels_last": step_of(gf_nn, LAST, gf_nn.Conv2d, gf_nn.ConvTranspose2d),
    }
    best = in_turns(steps, options.steps)
    print("\n| DCGAN-64, a step | ms | x |\n|---|--:|--:|")
    for name, seconds in best.items():
        print(f"| {name} | {seconds * 1e3:.0f} | {best['PyTorch, NCHW'] / seconds:.2f} |")


if __name__ == "__main__":
    main()
