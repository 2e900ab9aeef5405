"""Parts of models as programs that run without this package: ONNX, torch.export."""

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from genimg_fast import nn
from genimg_fast._evaluating import evaluating
from genimg_fast._files import replacing
from genimg_fast._native import backend
from genimg_fast.data.optional import optional_import
from genimg_fast.models.common import check_choice
from genimg_fast.models.cyclegan import CycleGAN
from genimg_fast.models.gan import BaseGAN
from genimg_fast.models.pix2pix import Pix2Pix
from genimg_fast.models.pretrained import BaseModel, load_run
from genimg_fast.models.reconstruction import GLO, Autoencoder, into_unit_ball
from genimg_fast.models.vae import BaseVAE
from genimg_fast.models.vqvae import VQVAE

Format = Literal["onnx", "torch-export", "safetensors"]
PartName = Literal["sampler", "encoder", "decoder", "translator", "a2b", "b2a"]

_MOST_BYTES = 2**31  # of a file of ONNX
# The largest error, as a share of the largest number of an output, that can come of another order of sums.
_TOLERANCE = 1e-3
_Draw = Callable[[int, torch.Generator], Tensor]


class _Part(NamedTuple):
    """A function that a model can be exported as."""

    function: Callable[..., Any]
    inputs: dict[str, _Draw]  # how to draw some, given the size of the batch
    outputs: tuple[str, ...]


def export(
    model: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    to: Format = "onnx",
    part: PartName | None = None,
    batch: int | None = None,
) -> float:
    """Write a part of a model as a program that runs without this package, or the whole model as its weights.

    =============== ========================= ==========================================================
    part            inputs                    outputs
    =============== ========================= ==========================================================
    ``sampler``     noise from N(0, 1),       images in [-1, 1], (batch, c_dim, image_size, image_size)
                    (batch, z_dim)
    ``encoder``     images                    means and logarithms of variances, or codes, (batch, z_dim);
                                              of a VQ-VAE their numbers, int64 of shape (batch, grid, grid)
    ``decoder``     latents, or codes         images
    ``translator``  images                    images
    ``a2b, b2a``    images of one kind        images of the other
    =============== ========================= ==========================================================

    Those of a class-conditional model have classes, int64 of shape (batch,), as their last input. The program
    computes what the model does in evaluation mode, in the model's precision; it is run on random input, and
    compared with the model, before it takes its place.

    Args:
        model: The model, or what :func:`load` takes.
        path: The file, or for safetensors the folder.
        to: ``"onnx"``; ``"torch-export"``, a program for ``torch.export.load``; or ``"safetensors"``, what
            :meth:`BaseModel.save_pretrained` writes.
        part: What to export, not for safetensors; by default the sampler, the translator or ``"a2b"``.
        batch: Number of images that the program takes; any by default.

    Returns:
        The largest absolute difference between what the program and the model computed.

    Raises:
        ValueError: If the model has no such part, or an argument does not fit.
        RuntimeError: If the program computes something else, or ONNX Runtime cannot run one in this precision.
        FileNotFoundError: If there is no model.
        OSError: If the file cannot be written.
        ImportError: If a package that writes or checks the file is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.DCGAN(c_dim=1, channels=4)
        >>> gf.models.export(model, "sampler.pt2", to="torch-export") < 1e-4
        True
        >>> torch.export.load("sampler.pt2").module()(torch.randn(8, 100)).shape
        torch.Size([8, 1, 32, 32])
    """
    model, config = (model, None) if isinstance(model, nn.Module) else load_run(model)
    path = Path(path)
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if to == "safetensors":
        if batch is not None:
            raise ValueError(f"batch must be left out: safetensors hold the whole model, got {batch}")
        return _export_weights(model, config, path, part)
    check_choice("to", to, get_args(Format))
    chosen = parts(model)[choose_part(model, part)]
    weight = next(model.parameters())
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> tuple[Tensor, ...]:
        drawn = [draw(n, generator).to(weight.device) for draw in chosen.inputs.values()]
        return tuple(each.to(weight.dtype) if each.is_floating_point() else each for each in drawn)

    with evaluating(model), torch.no_grad(), backend("reference"):
        example, other = draw(batch or 2), draw(batch or 3)
        module = _Callable(model, chosen.function, example)
        shapes = None if batch else (({0: torch.export.Dim("batch")},) * len(example),)
        program = torch.export.export(module, example, dynamic_shapes=shapes)
        expected = module(*other)
        with replacing(path) as temporary:
            if to == "onnx":
                run = _save_onnx(program, temporary, chosen, shapes)
            else:
                run = _save_program(program, temporary)
            return _compare(run(other), expected)


def parts(model: nn.Module) -> dict[str, _Part]:
    """Get the parts that a model can be exported as, by name, the most useful one first."""

    def with_classes(**inputs: _Draw) -> dict[str, _Draw]:
        number = getattr(model, "num_classes", 0)
        return {**inputs, "classes": lambda n, g: torch.randint(number, (n,), generator=g)} if number else inputs

    def noise(length: int) -> _Draw:
        return lambda n, g: torch.randn(n, length, generator=g)

    def images(channels: int, size: int) -> _Draw:
        return lambda n, g: torch.rand(n, channels, size, size, generator=g) * 2 - 1

    if isinstance(model, BaseGAN):
        return {"sampler": _Part(model.forward, with_classes(noise=noise(model.generator.z_dim)), ("images",))}
    if isinstance(model, BaseVAE):
        latents = noise(model.z_dim)

        def decode(*latents: Tensor) -> Tensor:
            return model.to_images(model.decode(*latents))

        return {
            "sampler": _Part(decode, with_classes(noise=latents), ("images",)),
            "encoder": _Part(
                model.encode, with_classes(images=images(model.c_dim, model.image_size)), ("mean", "logvar")
            ),
            "decoder": _Part(decode, with_classes(latents=latents), ("images",)),
        }
    if isinstance(model, GLO):
        codes = model.codes.weight.detach()
        mean, centred = codes.mean(0), codes - codes.mean(0)
        # Its rows, combined at random, have the codes' covariance, as they themselves have, and are fewer.
        factor = torch.linalg.qr(centred / max(len(codes) - 1, 1) ** 0.5, mode="r").R.contiguous()
        return {
            "sampler": _Part(
                lambda z: model.decode(into_unit_ball(mean + z @ factor)),
                {"noise": noise(len(factor))},
                ("images",),
            ),
            "decoder": _Part(model.decode, {"codes": noise(model.z_dim)}, ("images",)),
        }
    if isinstance(model, Autoencoder):
        return {
            "encoder": _Part(model.encode, {"images": images(model.c_dim, model.image_size)}, ("codes",)),
            "decoder": _Part(model.decode, {"codes": noise(model.z_dim)}, ("images",)),
        }
    if isinstance(model, CycleGAN):
        given = {"images": images(model.c_dim, model.image_size)}
        return {
            way: _Part(partial(model.forward, direction=way), given, ("translations",)) for way in ("a2b", "b2a")
        }
    if isinstance(model, VQVAE):

        def indices(n: int, generator: torch.Generator) -> Tensor:
            grid = (n, model.grid, model.grid)
            return torch.randint(model.codebook.num_codes, grid, generator=generator)

        return {
            "encoder": _Part(model.encode, {"images": images(model.c_dim, model.image_size)}, ("codes",)),
            "decoder": _Part(model.decode, {"codes": indices}, ("images",)),
        }
    if isinstance(model, Pix2Pix):
        return {
            "translator": _Part(
                model.forward, {"images": images(model.in_channels, model.image_size)}, ("translations",)
            )
        }
    return {}


class _Callable(nn.Module):
    """A function of a model as a module, with those of the model's modules that the function runs.

    A program takes along all parameters of its module: the sampler's would hold a discriminator, too.
    """

    def __init__(self, model: nn.Module, function: Callable[..., Any], example: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.function = function
        called: set[nn.Module] = set()
        hooks = [child.register_forward_pre_hook(lambda m, _: called.add(m)) for child in model.children()]
        function(*example)
        for hook in hooks:
            hook.remove()
        for name, child in model.named_children():
            if child in called:
                self.add_module(name, child)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def choose_part(model: nn.Module, name: str | None = None) -> PartName:
    """Find the part that a name, or None for the most useful one, stands for.

    Raises:
        ValueError: If there is no such part.
    """
    found = parts(model)
    if not found:
        names = ", ".join(get_args(PartName))
        raise ValueError(f"{type(model).__name__} has no part that runs by itself: no {names}")
    if name is None:
        name = next((part for part in found if part in ("sampler", "translator", "a2b")), None)
    if name not in found:
        raise ValueError(f"part must be one of {', '.join(found)}, got {name!r}")
    return name  # type: ignore[return-value]


def _export_weights(model: nn.Module, config: dict[str, Any] | None, folder: Path, part: str | None) -> float:
    if part is not None:
        raise ValueError(f"part must be left out: safetensors hold the whole model, got {part!r}")
    if not isinstance(model, BaseModel):
        raise ValueError(f"{type(model).__name__} is no BaseModel, which alone knows its arguments")
    model.save_pretrained(folder, config=config)
    loaded = type(model).from_pretrained(folder).state_dict()
    return _compare(tuple(loaded.values()), tuple(model.state_dict().values()))


def _save_program(program: Any, path: Path) -> Callable[[tuple[Tensor, ...]], Any]:
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    return lambda inputs: loaded(*inputs)


def _save_onnx(program: Any, path: Path, part: _Part, shapes: Any) -> Callable[[tuple[Tensor, ...]], Any]:
    for package in ("onnx", "onnxscript"):
        optional_import(package, "export")
    runtime = optional_import("onnxruntime", "export")
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size >= _MOST_BYTES:
        raise ValueError(f"a file of ONNX holds less than 2 GiB, and these weights are {size / 2**30:.1f} GiB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is in the exporter, and none of the user's business
        torch.onnx.export(
            program, (), path, dynamo=True, verbose=False, external_data=False, dynamic_shapes=shapes,
            input_names=list(part.inputs), output_names=list(part.outputs),
        )  # fmt: skip
    try:
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # of classes of its own
        dtype = next(tensor.dtype for tensor in program.state_dict.values() if tensor.is_floating_point())
        hint = "" if dtype == torch.float32 else ": export model.float() instead"
        what = " ".join(str(error).replace(str(path), "the file").split())
        raise RuntimeError(f"ONNX Runtime cannot run this model in {dtype}{hint} ({what})") from error

    def run(inputs: tuple[Tensor, ...]) -> Any:
        arrays = {name: value.cpu().numpy() for name, value in zip(part.inputs, inputs, strict=True)}
        return tuple(map(torch.from_numpy, session.run(None, arrays)))

    return run


def _compare(found: Any, expected: Any) -> float:
    """Find the largest difference of outputs; raise a RuntimeError if it is more than one of rounding."""
    error = 0.0
    for ours, theirs in zip(*map(_tuple, (found, expected)), strict=True):
        difference = (ours.cpu().double() - theirs.cpu().double()).abs().max().item() if ours.numel() else 0.0
        largest = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
        if not difference <= _TOLERANCE * largest:
            raise RuntimeError(f"the exported program computes something else: it is off by {difference:.2g}")
        error = max(error, difference)
    return error


def _tuple(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)
