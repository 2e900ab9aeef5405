"""What gf.fuse reaches in public models, and whether their numbers stay torch's.

    python benchmarks/eval_fuse.py [NAME ...] [--steps 3] [--out eval_fuse.json]

Needs torchvision; models of timm, segmentation-models-pytorch and diffusers (pip install ".[zoo]") are taken
where those are installed; the last three are a DCGAN's, CycleGAN's and Pix2Pix's generator of torch.nn's layers.
A model runs in training mode and its operators are watched. Pairs are the batch and instance norms whose result
goes straight into a ReLU, LeakyReLU or SiLU, and into nothing else; sums are those whose result goes into an
addition and from there into such an activation; group norms are those whose result goes into one. The table says
how many of them are no longer there after gf.fuse: one operator does it.

Then a fused copy and the model take steps of SGD. The other columns are the largest relative error of the
outputs of all steps, of the last gradients, of the buffers, and of the outputs in evaluation afterwards: in
float64, against the model; behind a slash is what torch itself is off by when the images of a batch stand in the
opposite order, as deep networks with random weights magnify the last bit. Exit status 1 if an error is above 1e-12
and above twice that. Then in float32, against the model in float64, and behind the slash the model's own error: in
some runs rounding turns the sign of what a ReLU gets, of ours or of torch's, which is 10 to 100 times as much as
other errors. So the networks are judged together, by the median of our error over torch's.
"""

import argparse
import copy
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
WHAT = ("outputs", "gradients", "buffers", "evaluation")
LEAST = 1e-12  # what is less is no error
TIMES = {"outputs": 2.0, "gradients": 3.0, "buffers": 2.0, "evaluation": 2.0}  # torch's own error in float32


class Calls(TorchDispatchMode):
    """Notes every operator with the tensors that it takes and gives."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[int], list[int]]] = []
        self.kept: list[Tensor] = []  # so that an id is one tensor's

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        taken, given = ([t for t in tree_leaves(values) if isinstance(t, Tensor)] for values in (args, result))
        self.kept += taken + given
        self.calls.append((func.overloadpacket.__name__, [id(t) for t in taken], [id(t) for t in given]))
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


def train(model: nn.Module, x: Tensor, steps: int) -> list[list[Tensor]]:
    """Outputs of steps of SGD; gradients of the last; buffers; outputs in evaluation after them."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    outputs = []
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        found = tensors(call(model.train(), x))
        outputs += [t.detach() for t in found]
        torch.stack([t.square().mean() for t in found]).sum().backward()
        if step < steps - 1:
            optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        evaluated = tensors(call(model.eval(), x))
    return [outputs, gradients, [b.double() for b in model.buffers()], evaluated]


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


Errors = list[tuple[float, float]]  # of each of WHAT: ours, and torch's


def compare(fused: nn.Module, model: nn.Module, x: Tensor, steps: int) -> dict[str, Errors]:
    """Errors of the fused model; in float64 against torch, in float32 against torch in float64.

    With them are torch's own: in float64 of images in the opposite order.
    """
    try:
        torchs = train(copy.deepcopy(model).double(), x.double(), steps)
    except RuntimeError as problem:  # some make float32 tensors on their way
        print(f"not in float64, by itself: {problem}")
        return {}
    reordered = train(copy.deepcopy(model).double(), x.double().flip(0), steps)
    for part in (0, 3):  # outputs
        reordered[part] = [t.flip(0) for t in reordered[part]]
    trained = {
        "float64": (train(copy.deepcopy(fused).double(), x.double(), steps), reordered),
        "float32": (train(fused, x, steps), train(model, x, steps)),
    }
    return {
        dtype: [(error(a, right), error(b, right)) for a, b, right in zip(ours, its, torchs, strict=True)]
        for dtype, (ours, its) in trained.items()
    }


def misses(rows: dict[str, dict[str, Errors]]) -> list[str]:
    """Say what is farther from right than it may be.

    Args:
        rows: Errors of each model, by dtype.
    """
    found, trained = [], {name: errors for name, errors in rows.items() if errors}
    for name, errors in trained.items():
        for what, (ours, torchs) in zip(WHAT, errors["float64"], strict=True):
            if not ours <= max(LEAST, 2 * torchs):
                found.append(f"{name}: {what} in float64: {ours:.1e}, torch {torchs:.1e}")
    for k, what in enumerate(WHAT):
        pairs = [errors["float32"][k] for errors in trained.values()]
        times = [ours / torchs for ours, torchs in pairs if torchs > 0]
        if not times:
            continue
        middle = statistics.median(times)
        print(f"float32, {what}: {middle:.2f} times torch's error in the median of {len(times)}")
        if not middle <= TIMES[what]:
            found.append(f"{what} in float32: {middle:.2f} times torch's error")
    return found


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
    print(f"| Model | norms | pairs | sums | group norms | {' | '.join(WHAT)} | float32: {' | '.join(WHAT)} |")
    print("|---|--:|--:|--:|--:|" + "--:|" * 8)
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
                    if "dropout" in type(layer).__name__.lower() or type(layer).__name__ == "StochasticDepth":
                        layer.p = 0.0  # else images in another order would lose other values
                errors = compare(fused, model, x, args.steps)
            rows[name] = {"before": before, "after": after, "errors": errors}
            shown = [f"{ours:.0e} / {its:.0e}" for values in errors.values() for ours, its in values] or [""] * 8
            reached = " | ".join(f"{a} of {b}" for a, b in zip(done, before[1:], strict=True))
            print(f"| {name} | {before.norms} | {reached} | {' | '.join(shown)} |", flush=True)
    shares = " | ".join(f"{total[k]} of {total[k + 1]}" for k in (1, 3, 5))
    print(f"| all {len(rows)} | {total[0]} | {shares} |" + " |" * 8)
    all_errors = {name: row["errors"] for name, row in rows.items()}
    for k, what in enumerate(WHAT):
        exact = [errors["float64"][k][0] <= LEAST for errors in all_errors.values() if errors]
        print(f"float64, {what}: torch's to 1e-12 in {sum(exact)} of {len(exact)}")
    missed = misses(all_errors)
    print(f"{len(missed)} farther from right than they may be", *missed, sep="\n")
    if args.out:
        with open(args.out, "w") as file:
            json.dump({"machine": {**facts("cpu"), "commit": commit()}, "models": rows}, file, indent=2)
    sys.exit(len(missed) > 0)


if __name__ == "__main__":
    main()
