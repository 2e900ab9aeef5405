"""``genimg-fast sample`` and ``interpolate``: what a trained model makes of noise, or of latents."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from genimg_fast._evaluating import evaluating
from genimg_fast.cli.runs import (
    ClipSource,
    ImageSource,
    Look,
    Output,
    Session,
    batches,
    check_out,
    choose,
    folded,
    load_clips,
    load_real,
    load_with_settings,
    write,
)
from genimg_fast.data import ImageDataset
from genimg_fast.models import VQVAE, BaseFrameModel, BaseGAN, BaseVAE, FramePredictor, interpolate_latents
from genimg_fast.models.common import labels_to_sample
from genimg_fast.options import OptionError, PositiveInt, Reader, integers
from genimg_fast.training import Picture, draw_known_frames
from genimg_fast.training.outputs import batch_sizes, form_of
from genimg_fast.training.pictures import ANIMATIONS, SAMPLES_OF_A_CLASS, VIDEOS, class_layout
from genimg_fast.training.sequence import fillings, predictions

_USUAL_SIDE = 64  # pixels, of images of a model that does not say


def sample(
    run: Path,
    *,
    out: Output | None = None,
    n: PositiveInt | None = None,
    class_: Annotated[str, Reader(str, "NAME|N")] | None = None,
    source: ClipSource,
    look: Look,
    session: Session,
) -> int:
    """Generate images with a trained model.

    Images go into a picture of all; or, as they come, however many there are, into --out samples/, a new or empty
    folder of files named by number and class; or into --out samples.npz, as arr_0, bytes of shape (n, height,
    width, channels), with the classes as arr_1. Sequences also go into a video, .mp4 or .webm.

    Args:
        run: Run folder, or checkpoint.
        out: Picture to write, or FOLDER/, .npz, .mp4 ...; default: grid.png, or frames.gif.
        n: Number of images, or of sequences; default: 64, or 8 (of each class).
        class_: Class to generate, of a class-conditional model; default: all in order.
        source: Where real sequences come from.
        look: What pictures look like.
        session: Random numbers, and the device.

    Example:
        genimg-fast sample runs/00000-dcgan-digits --n 64 --seed 1 --out grid.png
        genimg-fast sample runs/00001-cvae-digits --n 50000 --out samples.npz
        genimg-fast sample runs/00001-cvae-digits --class 7 --n 1000 --out sevens/
        genimg-fast sample runs/00002-frame-predictor-moving-digits --out prediction.mp4
    """
    if out is not None:
        check_out(out, moves=True)
    model, config = load_with_settings(run, session.device)
    if isinstance(model, BaseFrameModel):
        if class_ is not None:
            raise OptionError("class_", f"{config['model']} is not class-conditional")
        return _sample_frames(model, config, out or "frames.gif", n, source, look, session)
    out = out or "grid.png"
    check_out(out)
    if isinstance(model, VQVAE):
        raise OptionError("run", f"{config['model']} has no prior over its codes to draw from, only reconstructs")
    if not hasattr(model, "sample"):
        raise OptionError("run", f"{config['model']} does not generate images")
    generator = session.generator()
    label = None if class_ is None else class_number(class_, model, config)
    number, labels, layout = class_layout(model, n, label=label)
    if (
        labels is not None and label is None and form_of(out) != "picture"
    ):  # which may have no room for all classes
        number = n or SAMPLES_OF_A_CLASS * model.num_classes
        labels = torch.arange(number, device=labels.device) % model.num_classes
    model = folded(model, lambda twin: twin.sample(1, generator=session.generator()))

    def made() -> Iterator[Picture]:
        start = 0
        for size in batch_sizes(number, getattr(model, "image_size", _USUAL_SIDE)):
            given = {} if labels is None else {"labels": labels[start : start + size]}
            yield Picture(images=model.sample(size, **given, generator=generator), **layout)
            start += size

    names = config.get("classes")
    return write(made(), out, n=number, labels=labels, class_names=names, look=look)


def _sample_frames(
    model: BaseFrameModel, config: dict[str, Any], out: str, n: int | None,
    source: ClipSource, look: Look, session: Session,
) -> int:  # fmt: skip
    """Show real sequences beside what the model makes of them."""
    number: int = config["frames"]
    real = load_clips(model, config, source, number, seed=session.seed, flag="data")
    indices = choose(real, n, most=8, seed=session.seed, what="sequences")
    all_known = draw_known_frames(len(indices), number, generator=session.generator())
    device = session.find_device()

    def made() -> Iterator[Picture]:
        known = iter(all_known.split(batch_sizes(len(indices), model.image_size, frames=number)))
        for frames, _ in batches(real, indices, model.image_size, device, frames=number):
            if isinstance(model, FramePredictor):
                picture = predictions(model, frames, context(config))
            else:
                picture = fillings(model, frames, next(known))
            yield replace(picture, caption=real.caption("sequences"))

    return write(made(), out, n=len(indices), look=look)


def context(config: dict[str, Any]) -> int:
    """Find how many frames a frame predictor was given in the training."""
    given: int = config["context"] or max(1, config["frames"] // 2)
    return given


def class_number(name: str, model: Any, config: dict[str, Any]) -> int:
    """Find the number of the class that ``--class`` names."""
    if getattr(model, "num_classes", 0) == 0:
        raise OptionError("class_", f"{config['model']} is not class-conditional")
    names: list[str] = config["classes"]
    if name in names:
        return names.index(name)
    if re.fullmatch("[0-9]{1,9}", name) and int(name) < len(names):
        return int(name)
    raise OptionError("class_", f"must be one of {', '.join(names)}, got {name!r}")


def interpolate(
    run: Path,
    *,
    out: Output = "interpolation.png",
    n: PositiveInt = 8,
    steps: Annotated[int, integers(2)] = 12,
    mode: Literal["linear", "spherical"] = "linear",
    source: ImageSource,
    look: Look,
    session: Session,
) -> int:
    """Morph images into others, through their latents.

    They go into a picture with a row for each pair; into an animation, .gif or .webp; into a video, .mp4 or .webm;
    or, as they come, into a new or empty folder, or an .npz file.

    Args:
        run: Run folder, or checkpoint.
        out: Picture to write, or FOLDER/, .npz, .gif, .mp4 ....
        n: Number of pairs: of images, or, for a GAN, of noise vectors.
        steps: Images from end to end.
        mode: Straight on, or keeping the length of the latent vector.
        source: Where real images come from.
        look: What pictures look like.
        session: Random numbers, and the device.

    Example:
        genimg-fast interpolate runs/00000-vae-digits --n 8 --steps 12
        genimg-fast interpolate runs/00000-vae-digits --mode spherical --out morph.mp4
    """
    check_out(out, moves=True)
    model, config = load_with_settings(run, session.device)
    generator = session.generator()
    where = session.find_device()
    sizes = batch_sizes(n, model.image_size, frames=steps)
    labels: Tensor | None = None
    if isinstance(model, BaseVAE):
        real = load_real(model, config, source)
        print(f"pairs of the {real.describe(len(real.dataset))}")
        pairs = _pairs(real.dataset, n, generator, same_class=model.num_classes > 0)
        if model.num_classes > 0:
            labels = real.dataset.labels[pairs[0]]

        def made() -> Iterator[tuple[Tensor, list[Tensor]]]:
            for first, second in zip(*(indices.split(sizes) for indices in pairs), strict=True):
                (a, classes), (b, _) = (real.dataset[indices] for indices in (first, second))
                a, b = a.to(where), b.to(where)
                given = classes.to(where) if model.num_classes > 0 else None
                yield model.interpolate(a, b, steps=steps, mode=mode, labels=given), [a, b]

    elif isinstance(model, BaseGAN):
        ends = torch.randn(2, n, model.generator.z_dim, generator=generator).to(where)
        labels = labels_to_sample(None, n, model.num_classes, where)

        def made() -> Iterator[tuple[Tensor, list[Tensor]]]:
            classes = iter([None] * len(sizes) if labels is None else labels.split(sizes))
            for a, b in zip(*(end.split(sizes) for end in ends), strict=True):
                path = interpolate_latents(a, b, steps, mode)
                given = next(classes)
                every = None if given is None else given.repeat_interleave(steps)
                with torch.no_grad(), evaluating(model):
                    yield model(path.flatten(0, 1), every).unflatten(0, path.shape[:2]), []

    else:
        raise OptionError("run", f"{config['model']} has no latents; this is for GANs and VAEs")
    pictures = (_morph(images, ends, out, steps) for images, ends in made())
    return write(pictures, out, n=n, labels=labels, class_names=config.get("classes"), look=look)


def _morph(images: Tensor, ends: list[Tensor], out: str, steps: int) -> Picture:
    """Show ways, (n, steps, ...), and the images that they lead from and to, if there are any, (n, ...)."""
    if form_of(out) != "picture":
        return Picture(images={"from": ends[0], "morph": images, "to": ends[1]} if ends else images)
    shown = [end.unsqueeze(1) for end in ends]
    if Path(out).suffix.lower() in (*ANIMATIONS, *VIDEOS):
        panels = {"morph": images}
        if ends:
            panels = {"from": shown[0].expand_as(images), **panels, "to": shown[1].expand_as(images)}
        return Picture(images=panels, bounce=True)
    labels = [f"{100 * step / (steps - 1):.0f}%" for step in range(steps)]
    if ends:
        images, labels = torch.cat([shown[0], images, shown[1]], 1), ["from", *labels, "to"]
    return Picture(images=images, column_labels=labels)


def _pairs(
    dataset: ImageDataset, n: int, generator: torch.Generator, *, same_class: bool
) -> tuple[Tensor, Tensor]:
    """Take pairs of images at random: their indices."""
    first = torch.randint(len(dataset), (n,), generator=generator)
    if not same_class:
        return first, torch.randint(len(dataset), (n,), generator=generator)
    second = []
    for label in dataset.labels[first]:
        candidates = (dataset.labels == label).nonzero()[:, 0]
        second.append(candidates[torch.randint(len(candidates), (), generator=generator)])
    return first, torch.stack(second)
