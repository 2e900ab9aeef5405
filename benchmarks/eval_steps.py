"""What bounds training steps on the CPU: convolutions.

    python benchmarks/eval_steps.py layers    # the speed of PyTorch's, by layer, dtype and memory format
    python benchmarks/eval_steps.py products  # those of few pixels against matrix products
    python benchmarks/eval_steps.py outputs   # those with stride 1 to an image, against ours
    python benchmarks/eval_steps.py bf16      # those of bfloat16 against kernels on the machine's products of it
    python benchmarks/eval_steps.py formats   # steps of all kinds of models in both memory formats
    python benchmarks/eval_steps.py bound     # steps, and the gain if all but PyTorch's convolutions took no time

One thread, and the least of its processor time in interleaved rounds, which other processes disturb less than the
time that passes. That, in more threads, has ``genimg-fast bench models``.
"""

import argparse
import copy
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import genimg_fast as gf
from genimg_fast.bench.catalog import find
from genimg_fast.bench.entries import OURS
from genimg_fast.models import (
    DCGAN,
    VAE,
    VQVAE,
    WGAN,
    ConditionalDCGAN,
    CycleGAN,
    FramePredictor,
    Pix2Pix,
    ResidualGAN,
    ResidualVAE,
    Restorer,
)
from genimg_fast.ops.bf16_conv import bf16_conv, bf16_conv_weight
from genimg_fast.ops.product_conv import product_conv
from genimg_fast.training import (
    CycleGANTrainer,
    FramePredictorTrainer,
    GANTrainer,
    Pix2PixTrainer,
    Recipe,
    RestorationTrainer,
    VAETrainer,
    VQVAETrainer,
)
from genimg_fast.training.trainer import is_faster_channels_last

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
PASSES = {"forward": None, "input gradient": (True, False, False), "weight gradient": (False, True, False)}
_Key = TypeVar("_Key", bound=Hashable)

wasserstein = partial(GANTrainer, loss="wasserstein", gp=10.0)
# Model, trainer, shape of a batch.
STEPS: dict[str, tuple[Callable[[], Any], Callable[..., Any], tuple[int, ...]]] = {
    "DCGAN-64, batch 64": (partial(DCGAN, 100, 3, 64, n_blocks=4), GANTrainer, (64, 3, 64, 64)),
    "the demo's DCGAN-32, batch 64": (partial(DCGAN, 20, 1, 32, n_blocks=3), GANTrainer, (64, 1, 32, 32)),
    "DCGAN-128, 32 channels, batch 16": (partial(DCGAN, 100, 3, 32, n_blocks=5), GANTrainer, (16, 3, 128, 128)),
    "cDCGAN-32, batch 64": (partial(ConditionalDCGAN, 10, c_dim=1, channels=32), GANTrainer, (64, 1, 32, 32)),
    "WGAN-GP-32, batch 64": (partial(WGAN, c_dim=3, channels=64), wasserstein, (64, 3, 32, 32)),
    "ResGAN-32, batch 64": (partial(ResidualGAN, c_dim=3, channels=32), wasserstein, (64, 3, 32, 32)),
    "VAE-32, batch 64": (partial(VAE, c_dim=1, channels=32), VAETrainer, (64, 1, 32, 32)),
    "residual VAE-32, batch 64": (
        partial(ResidualVAE, c_dim=1, channels=32, n_blocks=3), VAETrainer, (64, 1, 32, 32),
    ),
    "VQVAE-64, batch 16": (partial(VQVAE, c_dim=3, image_size=64), VQVAETrainer, (16, 3, 64, 64)),
    "Pix2Pix-64, batch norm, batch 4": (
        partial(Pix2Pix, channels=32, image_size=64, norm="batch"), Pix2PixTrainer, (4, 3, 64, 128),
    ),
    "Pix2Pix-64, instance norm, batch 1": (
        partial(Pix2Pix, channels=32, image_size=64, norm="instance"), Pix2PixTrainer, (1, 3, 64, 128),
    ),
    "CycleGAN-64, batch 1": (partial(CycleGAN, channels=32, image_size=64), CycleGANTrainer, (1, 3, 64, 128)),
    "frame predictor, batch 16": (FramePredictor, FramePredictorTrainer, (16, 10, 1, 32, 32)),
    "restorer-64, batch 8": (Restorer, RestorationTrainer, (8, 3, 64, 64)),
}  # fmt: skip
# Images, channels of the image and of the features, pixels a side of the image, kernel, stride, padding.
LAYERS = {
    "a discriminator's last, 512→1 at 4": (64, 512, 1, 4, 4, 1, 0),
    "a wide one, 512→100 at 4": (64, 512, 100, 4, 4, 1, 0),
    "DCGAN-64's widest, 256→512 at 8": (64, 256, 512, 8, 4, 2, 1),
    "DCGAN-128's widest, 512→1024 at 8": (64, 512, 1024, 8, 4, 2, 1),
    "a U-Net's, 512→512 at 8, batch 8": (8, 512, 512, 8, 4, 2, 1),
    "a U-Net's, 512→512 at 4, batch 8": (8, 512, 512, 4, 4, 2, 1),
    "a U-Net's, 512→512 at 2, batch 8": (8, 512, 512, 2, 4, 2, 1),
    "a U-Net's, 256→256 at 2, batch 1": (1, 256, 256, 2, 4, 2, 1),
}
# Images, channels of the features and of the image, pixels a side, kernel, padding.
OUTPUTS = {
    "a residual GAN's, 32→3 at 32, batch 64": (64, 32, 3, 32, 3, 1),
    "64→3 at 64, batch 8": (8, 64, 3, 64, 3, 1),
    "64→1 at 64, batch 8": (8, 64, 1, 64, 3, 1),
    "128→3 at 128": (1, 128, 3, 128, 3, 1),
    "64→3 at 256": (1, 64, 3, 256, 3, 1),
    "a style network's 7x7, 32→3 at 128": (1, 32, 3, 134, 7, 0),
    "a patch discriminator's 4x4, 256→1 at 8, batch 4": (4, 256, 1, 8, 4, 1),
}
# The same of layers of more pixels; batches of 64.
BF16_LAYERS = (
    (64, 128, 32, 4, 2, 1),
    (128, 256, 16, 4, 2, 1),
    (256, 512, 8, 4, 2, 1),
    (32, 64, 16, 4, 2, 1),
    (64, 128, 8, 4, 2, 1),
    (512, 1024, 8, 4, 2, 1),
    (512, 512, 4, 4, 2, 1),
    (128, 128, 32, 3, 1, 1),
    (256, 256, 16, 3, 1, 1),
    (512, 512, 4, 3, 1, 1),
)
BOUND = ("DCGAN-64 step float32", "DCGAN-64 step bf16 channels_last", "DCGAN 32x32 B64 (the demo's) step float32")


def seconds(calls: Mapping[_Key, Callable[[], Any]], budget: float = 4.0, rounds: int = 4) -> dict[_Key, float]:
    """Time calls in turns, at least some rounds, until a budget of time that passes is used up."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    ends = time.perf_counter() + budget
    while rounds > 0 or time.perf_counter() < ends:
        for key, call in calls.items():
            start = time.thread_time()
            call()
            best[key] = min(best[key], time.thread_time() - start)
        rounds -= 1
    return best


def convolve(x: Tensor, w: Tensor, g: Tensor | None, layer: Any, mask: tuple[bool, bool, bool] | None) -> Any:
    """Run one of PyTorch's three passes of a layer."""
    aten, zeros = torch.ops.aten, layer.output_padding
    if mask is None:
        return aten.convolution(x, w, None, layer.stride, layer.padding, (1, 1), layer.transposed, zeros, 1)
    return aten.convolution_backward(
        g, x, w, None, layer.stride, layer.padding, (1, 1), layer.transposed, zeros, 1, mask
    )


def show_layers() -> None:
    """Print the speed of the passes of a DCGAN's layers, in GFLOP/s."""
    print(f"| layer | dtype | format | {' | '.join(PASSES)} |\n|---|---|---|--:|--:|--:|")
    for name in list(STEPS)[:2]:
        make, _, shape = STEPS[name]
        model, seen = make(), dict[Any, tuple[tuple[int, ...], tuple[int, ...]]]()

        def note(layer: Any, inputs: Any, output: Tensor, seen: Any = seen) -> None:
            seen[layer] = tuple(inputs[0].shape), tuple(output.shape)

        handles = [
            layer.register_forward_hook(note)
            for layer in model.modules()
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))
        ]
        model.discriminator(model.generator(torch.randn(shape[0], model.generator.z_dim)))
        for handle in handles:
            handle.remove()
        for layer, (inputs, outputs) in seen.items():
            calls: dict[Any, Callable[[], Any]] = {}
            for dtype, kind in DTYPES.items():
                for layout, memory_format in FORMATS.items():
                    x, w, g = (
                        torch.randn(s).to(kind).contiguous(memory_format=memory_format)
                        for s in (inputs, layer.weight.shape, outputs)
                    )
                    for word, mask in PASSES.items():
                        calls[dtype, layout, word] = partial(convolve, x, w, g, layer, mask)
            took = seconds(calls, 2.0, 8)
            features = inputs if layer.transposed else outputs
            operations = 2 * features[0] * features[2] * features[3] * layer.weight.numel()
            what = f"{inputs[1]}→{outputs[1]} at {inputs[2]}{', transposed' if layer.transposed else ''}"
            for dtype in DTYPES:
                for layout in FORMATS:
                    rates = [f"{operations / took[dtype, layout, word] / 1e9:.0f}" for word in PASSES]
                    print(f"| {what} | {dtype} | {layout} | {' | '.join(rates)} |", flush=True)


def show_products() -> None:
    """Print the time of both passes of layers of few pixels, by PyTorch and by products."""
    print("| layer | dtype | NCHW: ms | gain by products | channels_last: ms | gain by products |")
    print("|---|---|--:|--:|--:|--:|")
    for name, (n, inputs, outputs, side, kernel, stride, padding) in LAYERS.items():
        for dtype, kind in DTYPES.items():
            calls: dict[Any, Callable[[], Any]] = {}
            for layout, memory_format in FORMATS.items():
                x, w = (
                    torch.randn(s).to(kind).contiguous(memory_format=memory_format).requires_grad_()
                    for s in ((n, inputs, side, side), (outputs, inputs, kernel, kernel))
                )
                numbers = (None, (stride, stride), (padding, padding))
                g = torch.randn_like(F.conv2d(x, w, *numbers))

                def both(run: Any, x: Tensor = x, w: Tensor = w, g: Tensor = g, numbers: Any = numbers) -> None:
                    output = run(x, w, *numbers)
                    torch.autograd.grad(F.conv2d(x, w, *numbers) if output is None else output, (x, w), g)

                calls |= {
                    (layout, "torch"): partial(both, F.conv2d),
                    (layout, "ours"): partial(both, product_conv),
                }
            took = seconds(calls, 2.0)
            cells = [
                f"{took[layout, 'torch'] * 1e3:.2f} | {took[layout, 'torch'] / took[layout, 'ours']:.1f}"
                for layout in FORMATS
            ]
            print(f"| {name} | {dtype} | {' | '.join(cells)} |", flush=True)


def show_outputs() -> None:
    """Print the time of layers that make an image: forward, and forward and backward."""
    passes = "forward", "forward and backward"
    print("| layer | dtype | format | forward: ms | gain | forward and backward: ms | gain |")
    print("|---|---|---|--:|--:|--:|--:|")
    for name, (n, inputs, outputs, side, kernel, padding) in OUTPUTS.items():
        for dtype, kind in DTYPES.items():
            for layout, memory_format in FORMATS.items():
                theirs = torch.nn.Conv2d(inputs, outputs, kernel, padding=padding)
                theirs.to(kind, memory_format=memory_format)
                x = torch.randn(n, inputs, side, side).to(kind, memory_format=memory_format).requires_grad_()
                calls: dict[Any, Callable[[], Any]] = {}
                for whose, layer in (("torch", theirs), ("ours", gf.fuse(copy.deepcopy(theirs)))):
                    leaves = [x, *layer.parameters()]
                    g = torch.randn_like(layer(x))

                    def both(layer: Any = layer, x: Tensor = x, leaves: Any = leaves, g: Tensor = g) -> None:
                        torch.autograd.grad(layer(x), leaves, g)

                    calls |= {(whose, passes[0]): torch.no_grad()(partial(layer, x)), (whose, passes[1]): both}
                took = seconds(calls, 1.0, 8)
                cells = [
                    f"{took['torch', p] * 1e3:.2f} | {took['torch', p] / took['ours', p]:.1f}" for p in passes
                ]
                print(f"| {name} | {dtype} | {layout} | {' | '.join(cells)} |", flush=True)


def show_bf16() -> None:
    """Print the time of convolutions in bfloat16 and channels_last, by PyTorch, and the gain by our kernels."""
    print("| layer | forward: ms | gain | input gradient: ms | gain | weight gradient: ms | gain |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for inputs, outputs, side, kernel, steps, around in BF16_LAYERS:
        layer = torch.nn.Conv2d(inputs, outputs, kernel, steps, around)
        x, w = (
            torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)
            for shape in ((64, inputs, side, side), layer.weight.shape)
        )
        stride, padding = (steps, steps), (around, around)
        g = torch.randn_like(F.conv2d(x, w, None, stride, padding))
        calls: dict[Any, Callable[[], Any]] = {
            (word, "torch"): partial(convolve, x, w, g, layer, mask) for word, mask in PASSES.items()
        }
        own = (
            partial(bf16_conv, x, w, stride, padding),
            partial(bf16_conv, g, w, stride, padding, x.shape[2:]),
            partial(bf16_conv_weight, x, g, (kernel, kernel), stride, padding),
        )
        took = seconds(calls | {(word, "ours"): call for word, call in zip(PASSES, own, strict=True)}, 3.0, 8)
        cells = [
            f"{took[word, 'torch'] * 1e3:.2f} | {took[word, 'torch'] / took[word, 'ours']:.2f}" for word in PASSES
        ]
        name = f"{inputs}→{outputs} at {side}, {kernel}x{kernel}, stride {steps}"
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def show_formats() -> None:
    """Print the time of steps in both memory formats, and which one a trainer takes."""
    print("| step | float32 NCHW: ms | gain in channels_last | bf16 NCHW: ms | gain in channels_last | taken |")
    print("|---|--:|--:|--:|--:|---|")
    for name, (make, trainer, shape) in STEPS.items():
        torch.manual_seed(0)
        data = torch.rand(shape).mul_(2).sub_(1), torch.zeros(shape[0], dtype=torch.int64)

        def step(precision: Any, last: bool, make: Any = make, trainer: Any = trainer, data: Any = data) -> Any:
            recipe = Recipe(precision=precision, channels_last=last, ema=0)
            return partial(trainer(make(), recipe=recipe).step, *data)

        calls = {
            (dtype, last): step(p, last)
            for dtype, p in (("float32", "fp32"), ("bf16", "bf16"))
            for last in (False, True)
        }
        took = seconds(calls)
        cells = [
            f"{took[dtype, False] * 1e3:.0f} | {took[dtype, False] / took[dtype, True]:.2f}" for dtype in DTYPES
        ]
        taken = "channels_last" if is_faster_channels_last(make()) else "NCHW"
        print(f"| {name} | {' | '.join(cells)} | {taken} |", flush=True)


class Convolutions(TorchDispatchMode):
    """Keeps PyTorch's convolutions that run, with what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("aten::convolution"):
            kept = [arg.detach().clone() if isinstance(arg, Tensor) else arg for arg in args]
            self.calls.append(partial(func, *kept))
        return func(*args, **(kwargs or {}))


def show_bound() -> None:
    """Print the time of steps, and of PyTorch's convolutions in them alone."""
    print("| step | loop: ms | ours: ms | gain | its convolutions by PyTorch: ms | gain with the rest free |")
    print("|---|--:|--:|--:|--:|--:|")
    for name in BOUND:
        contenders = find(name).case("cpu").contenders
        took = seconds({key: contenders[key] for key in (OURS, "eager")}, 10.0)
        with gf.backend("reference"), Convolutions() as found:
            contenders[OURS]()
        with torch.no_grad():
            alone = sum(seconds(dict(enumerate(found.calls))).values())
        ours, loop = took[OURS], took["eager"]
        cells = f"{loop * 1e3:.0f} | {ours * 1e3:.0f} | {loop / ours:.2f} | {alone * 1e3:.0f} | {loop / alone:.2f}"
        print(f"| {name} | {cells} |", flush=True)


def main() -> None:
    shows = {
        "layers": show_layers, "products": show_products, "outputs": show_outputs, "bf16": show_bf16,
        "formats": show_formats,
        "bound": show_bound,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=shows)
    torch.set_num_threads(1)
    shows[parser.parse_args().what]()


if __name__ == "__main__":
    main()
