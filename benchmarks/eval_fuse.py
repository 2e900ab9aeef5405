"""What gf.fuse reaches in public models, and whether their numbers stay torch's.

    python benchmarks/eval_fuse.py [NAME ...] [--steps 3] [--out eval_fuse.json]

Needs torchvision; models of timm, segmentation-models-pytorch and diffusers (pip install ".[zoo]") are taken
where those are installed; the last three are a DCGAN's, CycleGAN's and Pix2Pix's generator of torch.nn's layers.
A model runs in training mode and its operators are watched. Pairs are the batch and instance norms whose result
goes straight into a ReLU, LeakyReLU or SiLU, and into nothing else; sums are those whose result goes into an
addition and from there into such an activation; group norms are those whose result goes into one. The table says
how many of them are no longer there after gf.fuse: one operator does it.

Then a fused copy takes steps of SGD. The other columns are its largest relative error in the outputs of the
first step, the outputs of all steps, the last gradients, the buffers, and the outputs in evaluation afterwards,
against the model itself in float64. Behind the slash is torch's own: the largest of the model trained in ways that
differ by rounding alone, in the same dtype. A network with random weights may magnify the last bit, and where that
turns the sign of what one ReLU gets, gradients are off by 100 or 1000 times as much at once: one run says little
of how far torch is from right. So ways are tried until the fused copy's errors are at most twice torch's (three
times for gradients); the last column tells how many were, and exit status 1 that for some network none of 12 was
enough. What is below 1e-12 in float64, or below four times float32's epsilon, is no error.
"""

import argparse
import copy
import itertools
import json
import statistics
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import genimg_fast as gf
from genimg_fast.bench.machine import commit, facts
from genimg_fast.bench.networks import cyclegan_generator

NORMS = {"native_batch_norm", "cudnn_batch_norm", "_batch_norm_with_update"}
ACTIVATIONS = {"relu", "relu_", "leaky_relu", "leaky_relu_", "silu", "silu_"}


class Ours(NamedTuple):
    """An operator of this package: its place for the activation, and what stands for it where there is none."""

    activation: int
    torchs: str


OURS = {
    "batch_norm_act_train": Ours(8, "native_batch_norm"),
    "batch_norm_act_train_functional": Ours(5, "native_batch_norm"),
    "batch_norm_act_eval": Ours(7, "native_batch_norm"),
    "group_norm_act": Ours(8, "native_group_norm"),
}
BY_NAME = {
    "torchvision": {
        "resnet18": 96, "resnet50": 96, "vgg16_bn": 64, "densenet121": 96, "mobilenet_v2": 96,
        "mobilenet_v3_large": 96,
        "googlenet": 96, "inception_v3": 160, "shufflenet_v2_x1_0": 96, "mnasnet1_0": 96, "efficientnet_b0": 96,
        "regnet_y_400mf": 96, "convnext_tiny": 64, "deeplabv3_resnet50": 96, "fcn_resnet50": 96,
        "lraspp_mobilenet_v3_large": 96, "r3d_18": 48, "raft_small": 128,
    },
    "timm": {
        "resnet18": 96, "resnet50": 96, "resnetv2_50x1_bit": 96, "resnetv2_50": 96, "efficientnet_b0": 96,
        "convnext_atto": 96, "hrnet_w18_small": 96, "dla34": 96, "vgg11_bn": 96, "darknet53": 96,
        "regnetx_002": 96,
        "ghostnet_100": 96, "repvgg_a0": 96, "dpn68": 96, "tresnet_m": 96, "nfnet_f0": 96, "densenet121": 96,
        "seresnet18": 96, "res2net50_26w_4s": 96, "legacy_xception": 96, "cspresnet50": 96,
    },
    "smp": {"Unet": 64, "DeepLabV3Plus": 64, "FPN": 64, "Linknet": 64, "PSPNet": 64},
    "diffusers": {"AutoencoderKL": 32},
    "torch.nn": {"DCGAN generator": 64, "CycleGAN generator": 64, "Pix2Pix generator": 64},
}  # fmt: skip
WHAT = ("first outputs", "outputs", "gradients", "buffers", "evaluation")
TIMES = {"float64": (2.0, 2.0, 2.0, 2.0, 2.0), "float32": (2.0, 2.0, 3.0, 2.0, 2.0)}  # torch's error, at most
LEAST = {"float64": 1e-12, "float32": 4 * torch.finfo(torch.float32).eps}  # what is less is no error
WAYS = 12
IMAGES = {"first outputs", "outputs", "evaluation"}  # what has a row for each image of the batch
ROUNDING = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm)


class Calls(TorchDispatchMode):
    """Notes every operator with the tensors that it takes and gives.

    It has numbers for them and keeps none of them, for what others have is not added to in an operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[int], list[int]]] = []
        self.numbers: dict[int, int] = {}  # by the id, which the next tensor may have when one is gone
        self.last = 0

    def number(self, tensor: Tensor, is_new: bool) -> int:
        if is_new or id(tensor) not in self.numbers:
            self.last += 1
            self.numbers[id(tensor)] = self.last
        return self.numbers[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        takes = [self.number(t, False) for t in taken]
        result = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        gives = [self.number(t, all(t is not other for other in taken)) for t in given]
        name = func.overloadpacket.__name__
        if name in OURS and args[OURS[name].activation] == 0:  # none: what is behind it still runs by itself
            normalised = gives if args[1] is None else [-len(self.calls)]  # no tensor's number
            self.calls.append((OURS[name].torchs, takes, normalised))
            if args[1] is not None:
                self.calls.append(("add", [normalised[0], self.number(args[1], False)], gives))
        else:
            self.calls.append((name, takes, gives))
        return result


class Counts(NamedTuple):
    norms: int
    pairs: int
    sums: int
    groups: int


def count(model: nn.Module, x: Tensor) -> Counts:
    """Count the batch norms of a copy of the model that run by themselves, and those that could run with more."""
    model = copy.deepcopy(model)
    with Calls() as watched:
        call(model, x)
    calls = watched.calls

    def users(position: int) -> list[int]:
        result, found = calls[position][2][0], []
        for j in range(position + 1, len(calls)):
            if result in calls[j][1] and calls[j][0] != "clone":  # which the backward of a SiLU in place keeps
                # Instance norm is a batch norm of another shape.
                found += users(j) if calls[j][0] == "view" else [j]
        return found

    norms = pairs = sums = groups = 0
    for position, (name, _, _) in enumerate(calls):
        if name == "native_group_norm":
            groups += any(calls[j][0] in ACTIVATIONS for j in users(position)[:1])
        if name not in NORMS:
            continue
        norms += 1
        using = users(position)
        if not using:
            continue
        first = calls[using[0]][0]
        if first in ACTIVATIONS:
            pairs += len(using) == 1 or first.endswith("_")
        elif first in ("add", "add_"):
            behind = users(using[0])
            sums += bool(behind) and calls[behind[0]][0] in ACTIVATIONS
    return Counts(norms, pairs, sums, groups)


def tensors(output: Any) -> list[Tensor]:
    """The tensors of whatever a model returns."""
    output = getattr(output, "sample", output) if not isinstance(output, Tensor) else output
    output = output if isinstance(output, (Tensor, tuple, list, dict)) else vars(output)
    return [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]


Run = dict[str, list[Tensor]]  # a training's tensors, by what they are


def train(model: nn.Module, x: Tensor, steps: int) -> Run:
    """Take steps of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    outputs: list[list[Tensor]] = []
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        found = tensors(call(model.train(), x))
        outputs.append([t.detach() for t in found])
        torch.stack([t.square().mean() for t in found]).sum().backward()
        if step < steps - 1:
            optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        evaluated = tensors(call(model.eval(), x))
    found = [
        outputs[0],
        [t for ts in outputs for t in ts],
        gradients,
        [b.double() for b in model.buffers()],
        evaluated,
    ]
    return dict(zip(WHAT, found, strict=True))


def reversed_batch(model: nn.Module, x: Tensor, steps: int) -> Run:
    """Train with the images of the batch in the opposite order."""
    run = train(model, x.flip(0), steps)
    return {what: [t.flip(0) for t in ts] if what in IMAGES else ts for what, ts in run.items()}


def rounded_at_random(model: nn.Module, x: Tensor, steps: int, seed: int) -> Run:
    """Train with the results of convolutions, products and norms moved to a neighbour or left, at random.

    Vignes, "A stochastic arithmetic for reliable scientific computation", 1993.
    """
    generator = torch.Generator().manual_seed(seed)

    def move(layer: nn.Module, args: Any, result: Tensor) -> Tensor:
        way = torch.randint(-1, 2, result.shape, generator=generator)
        return result + result.detach() * (way * (torch.finfo(result.dtype).eps / 2))

    for layer in model.modules():
        if isinstance(layer, ROUNDING):
            layer.register_forward_hook(move)
    return train(model, x, steps)


def ways(model: nn.Module, x: Tensor, steps: int) -> Iterator[Run]:
    """Train copies of a model in ways that are the same but for rounding; the first is the plain one.

    Every other of the later ones is without oneDNN, by other kernels, which sum in another order. channels_last is
    none of them: in it, PyTorch 2.14's backward pass of a 1x1 convolution of images with stride 2 breaks memory.
    """
    yield train(copy.deepcopy(model), x, steps)
    yield reversed_batch(copy.deepcopy(model), x, steps)
    for seed in itertools.count():
        with torch.backends.mkldnn.flags(enabled=seed % 2 == 1):
            run = rounded_at_random(copy.deepcopy(model), x, steps, seed)
        yield run


def error(ours: list[Tensor], torchs: list[Tensor]) -> float:
    """The largest relative error of the tensors' norms; against the largest norm where one is near 0."""
    largest = max((t.norm().item() for t in torchs), default=1.0)
    return max(
        (
            (a - b).norm().item() / max(b.norm().item(), 1e-4 * largest, 1e-30)
            for a, b in zip(ours, torchs, strict=True)
        ),
        default=0.0,
    )


class Errors(NamedTuple):
    """Of each part of a training: ours, and torch's in each way that was tried."""

    ours: list[float]
    torchs: list[list[float]]

    def largest(self) -> list[float]:
        return [max(errors) for errors in zip(*self.torchs, strict=True)]

    def missed(self, dtype: str) -> list[str]:
        """The parts in which ours is farther from right than it may be."""
        rows = zip(WHAT, TIMES[dtype], self.ours, self.largest(), strict=True)
        return [what for what, times, ours, its in rows if not ours <= max(LEAST[dtype], times * its)]


def compare(fused: nn.Module, model: nn.Module, x: Tensor, steps: int) -> dict[str, Errors]:
    """Errors against the model in float64, by dtype."""
    exactly = ways(copy.deepcopy(model).double(), x.double(), steps)
    try:
        exact = next(exactly)
    except RuntimeError as problem:  # some make float32 tensors on their way
        print(f"not in float64, by itself: {problem}")
        return {}

    def errors(run: Run) -> list[float]:
        return [error(run[what], exact[what]) for what in WHAT]

    found = {}
    for dtype, runs in (("float64", exactly), ("float32", ways(model, x, steps))):
        ours = errors(train(copy.deepcopy(fused).to(getattr(torch, dtype)), x.to(getattr(torch, dtype)), steps))
        found[dtype] = Errors(ours, [])
        for run in itertools.islice(runs, WAYS):
            found[dtype].torchs.append(errors(run))
            if not found[dtype].missed(dtype):
                break
    return found


def summary(rows: dict[str, dict[str, Errors]]) -> list[str]:
    """Print what holds for all models; return what is farther from right than it may be.

    Args:
        rows: Errors of each model, by dtype.
    """
    missed, trained = [], {name: errors for name, errors in rows.items() if errors}
    for dtype, least in LEAST.items():
        by_name = {name: errors[dtype] for name, errors in trained.items()}
        for k, what in enumerate(WHAT):
            none = sum(errors.ours[k] <= least for errors in by_name.values())
            times = [
                errors.ours[k] / errors.torchs[0][k] for errors in by_name.values() if errors.torchs[0][k] > 0
            ]
            print(f"{dtype}, {what}: below {least:.1e} in {none} of {len(by_name)}")
            if times:
                median, most = statistics.median(times), max(times)
                print(f"    of the first of torch's ways {median:.2f} times in the median, {most:.2f} at most")
        more = {name: len(errors.torchs) for name, errors in by_name.items() if len(errors.torchs) > 1}
        print(
            f"{dtype}: one of torch's ways sufficed for {len(by_name) - len(more)} of {len(by_name)}; more: {more}"
        )
        for name, errors in by_name.items():
            for what in errors.missed(dtype):
                k = WHAT.index(what)
                missed.append(f"{name}: {what} in {dtype}: {errors.ours[k]:.1e}, torch {errors.largest()[k]:.1e}")
    return missed


def build(library: str, name: str) -> nn.Module:
    """Make a model with random weights."""
    if library == "torchvision":
        import torchvision

        given: dict[str, Any] = {"googlenet": {"init_weights": False}, "raft_small": {}}.get(name, {})
        if name == "inception_v3":
            given = {"init_weights": False, "aux_logits": False}
        if "resnet50" in name or "lraspp" in name:
            given = {"weights_backbone": None} if name != "resnet50" else {}
        return torchvision.models.get_model(name, weights=None, **given)
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=10)
    if library == "torch.nn":
        if name == "CycleGAN generator":
            return cyclegan_generator()
        if name == "Pix2Pix generator":
            return gf.unfuse(gf.models.UNetGenerator(3, 3, channels=16, image_size=64, norm="instance"))
        return gf.unfuse(gf.models.DCGAN(c_dim=3, channels=16, n_blocks=4).generator)
    if library == "smp":
        import segmentation_models_pytorch as smp

        return getattr(smp, name)("resnet18", encoder_weights=None)
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8,
    )  # fmt: skip


def models() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Name, model and its input."""
    for library, sizes in BY_NAME.items():
        for name, size in sizes.items():
            torch.manual_seed(0)
            try:
                model = build(library, name)
            except ImportError:
                print(f"{library} is not installed")
                break
            x = torch.randn(4 if size > 64 and name != "raft_small" else 2, 3, size, size)
            if name == "r3d_18":
                x = torch.randn(2, 3, 4, size, size)
            if name == "DCGAN generator":
                x = torch.randn(16, model.z_dim)
            yield f"{library} {name}", model, x


def call(model: nn.Module, x: Tensor) -> Any:
    if type(model).__name__ == "RAFT":
        return model(x, x.flip(-1), num_flow_updates=2)
    return model(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of models' names; default: all")
    parser.add_argument("--steps", type=int, default=3, help="steps of training; 0 to count alone")
    parser.add_argument("--out", help="a JSON file for the figures")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: dict[str, Any] = {}
    total = [0] * 7
    parts = [*WHAT, "ways"]
    print(f"| Model | norms | pairs | sums | group norms | {' | '.join(parts)} | float32: {' | '.join(parts)} |")
    print("|---|--:|--:|--:|--:|" + "--:|" * 2 * len(parts))
    with gf.backend("native"):
        for name, model, x in models():
            if args.names and not any(part in name for part in args.names):
                continue
            model.train()
            fused = gf.fuse(copy.deepcopy(model))
            before, after = (count(m, x) for m in (model, fused))
            done = [a - b for a, b in zip(before[1:], after[1:], strict=True)]
            counted = (before.norms, *(n for pair in zip(done, before[1:], strict=True) for n in pair))
            total = [a + b for a, b in zip(total, counted, strict=True)]
            errors: dict[str, Errors] = {}
            if args.steps > 0 and before.norms + before.groups > 0:
                for layer in (*fused.modules(), *model.modules()):
                    # Else images in another order would lose other values.
                    if "dropout" in type(layer).__name__.lower() or type(layer).__name__ == "StochasticDepth":
                        layer.p = 0.0
                    if hasattr(layer, "drop_rate"):
                        layer.drop_rate = 0.0
                errors = compare(fused, model, x, args.steps)
            rows[name] = {"before": before, "after": after, "errors": errors}
            shown = []
            for dtype in LEAST:
                pairs = zip(errors[dtype].ours, errors[dtype].largest(), strict=True) if errors else ()
                shown += [f"{ours:.0e} / {its:.0e}" for ours, its in pairs] or [""] * len(WHAT)
                shown.append(str(len(errors[dtype].torchs)) if errors else "")
            reached = " | ".join(f"{a} of {b}" for a, b in zip(done, before[1:], strict=True))
            print(f"| {name} | {before.norms} | {reached} | {' | '.join(shown)} |", flush=True)
    shares = " | ".join(f"{total[k]} of {total[k + 1]}" for k in (1, 3, 5))
    print(f"| all {len(rows)} | {total[0]} | {shares} |" + " |" * 2 * len(parts))
    missed = summary({name: row["errors"] for name, row in rows.items()})
    print(f"{len(missed)} farther from right than they may be", *missed, sep="\n")
    if args.out:
        with open(args.out, "w") as file:
            json.dump({"machine": {**facts("cpu"), "commit": commit()}, "models": rows}, file, indent=2)
    sys.exit(len(missed) > 0)


if __name__ == "__main__":
    main()
