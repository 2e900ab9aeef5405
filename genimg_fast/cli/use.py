"""Commands that use a trained model: ``genimg-fast sample``, ``reconstruct``, ``interpolate`` and others."""

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from genimg_fast._evaluating import evaluating
from genimg_fast.cli.arguments import (
    Parser,
    add_command,
    add_data_root,
    add_scale,
    add_seed_and_device,
    at_least,
    check_image_file,
    positive,
)
from genimg_fast.data import ImageDataset, load_dataset, load_pairs, load_sequences
from genimg_fast.data.dataset import content_hash
from genimg_fast.data.optional import optional_import
from genimg_fast.data.sequences import TooFewFramesError
from genimg_fast.models import (
    Autoencoder,
    BaseFrameModel,
    BaseGAN,
    BaseVAE,
    FrameFiller,
    FramePredictor,
    Pix2Pix,
    RowRNN,
    interpolate_latents,
)
from genimg_fast.models.common import labels_to_sample
from genimg_fast.training import Picture, draw_known_frames, load_run, plot_latents, save_animation, save_grid
from genimg_fast.training.pictures import ANIMATIONS, class_samples
from genimg_fast.training.run import naming
from genimg_fast.training.sequence import completions, fillings, predictions


def add(commands: Any) -> None:
    """Add the commands."""

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, examples: str, out: str | None,
        out_help: str, commands: Any = commands,
    ) -> Parser:  # fmt: skip
        new = add_command(commands, name, run, text, examples)
        new.add_argument("RUN", type=Path, help="run folder, or checkpoint")
        new.add_argument("--out", type=Path, metavar="FILE", default=out and Path(out), help=out_help)
        return new

    sample = command("sample", _sample, "Generate images with a trained model.", """
        genimg-fast sample runs/00000-dcgan-digits --n 64 --seed 1 --out grid.png
        genimg-fast sample runs/00001-cvae-digits --n 100
        genimg-fast sample runs/00001-cvae-digits --class 7
        genimg-fast sample runs/00002-frame-predictor-moving-digits --out prediction.webp
    """, None, "image file to write; default: grid.png, or frames.gif")  # fmt: skip
    sample.add_argument("--n", type=at_least(1), metavar="N",
                        help="number of images, or of sequences; default: 64, or 8 (of each class)")  # fmt: skip
    sample.add_argument("--class", dest="class_name", metavar="NAME|N",
                        help="class to generate, of a class-conditional model; default: all in order")  # fmt: skip
    sample.set_defaults(most=8)
    _add_data(sample, "real sequences that a model of frames starts from")
    _add_picture(sample)
    add_seed_and_device(sample)

    reconstruct = command("reconstruct", _reconstruct, "Show images, each beside its reconstruction.", """
        genimg-fast reconstruct runs/00000-vae-digits --n 36
        genimg-fast reconstruct runs/00000-vae-digits --data photos/ --out photos.png
    """, "reconstructions.png", "image file to write")  # fmt: skip
    _add_number(reconstruct, 36, "images")
    _add_data(reconstruct)
    _add_picture(reconstruct)
    add_seed_and_device(reconstruct)

    translate = command("translate", _translate, "Translate images; show input, output and target.", """
        genimg-fast translate runs/00000-pix2pix-maps --n 16
        genimg-fast translate runs/00000-pix2pix-maps --data validation/ --dropout --batch-statistics
    """, "translations.png", "image file to write")  # fmt: skip
    _add_number(translate, 16, "pairs")
    translate.add_argument("--dropout", action="store_true", help="keep dropout on, for variation")
    translate.add_argument("--batch-statistics", action="store_true",
                           help="normalise with the statistics of these images, as the paper does")  # fmt: skip
    _add_data(translate, "folder of pairs")
    _add_picture(translate)
    add_seed_and_device(translate)

    interpolate = command("interpolate", _interpolate, "Morph images into others, through their latents.", """
        genimg-fast interpolate runs/00000-vae-digits --n 8 --steps 12
        genimg-fast interpolate runs/00000-vae-digits --mode spherical --out morph.gif
    """, "interpolation.png", "image to write, a row for each pair; .gif, .webp: an animation")  # fmt: skip
    interpolate.add_argument("--n", type=at_least(1), metavar="N", default=8,
                             help="number of pairs: of images, or, for a GAN, of noise vectors")  # fmt: skip
    interpolate.add_argument("--steps", type=at_least(2), metavar="N", default=12, help="images from end to end")
    interpolate.add_argument("--mode", choices=["linear", "spherical"], default="linear",
                             help="straight on, or keeping the length of the latent vector")  # fmt: skip
    _add_data(interpolate)
    _add_picture(interpolate)
    add_seed_and_device(interpolate)

    latent = command("latent", _latent, "Plot where a VAE's encoder puts images, coloured by class.", """
        genimg-fast latent runs/00000-vae-digits --out latent.png
    """, "latent.png", "image file to write")  # fmt: skip
    _add_number(latent, 2000, "images")
    _add_data(latent)
    add_seed_and_device(latent)

    text = "Edit sequences of frames, or images, with a trained model."
    edit = commands.add_parser("edit", help=text, description=text)
    edits = edit.add_subparsers(title="edits", metavar="EDIT", required=True)

    def sequence_edit(
        name: str, run: Callable[[argparse.Namespace], int], text: str, examples: str, out: str, n_help: str
    ) -> Parser:
        new = command(name, run, text, examples, out,
                      "image file to write; .gif, .webp: an animation, else film strips", edits)  # fmt: skip
        _add_number(new, 8, "sequences")
        new.add_argument("--frames", type=at_least(1), metavar="N", help=n_help)
        _add_data(new, "real sequences: a folder of frames, a video ...")
        _add_picture(new)
        add_seed_and_device(new)
        return new

    continue_ = sequence_edit("continue", _continue, "Continue sequences, with a frame predictor.", """
        genimg-fast edit continue runs/00000-frame-predictor-moving-digits --steps 20
        genimg-fast edit continue runs/00000-frame-predictor-clips --data walk.gif --n 1 --out longer.gif
    """, "continued.gif", "frames that are given; default: as many as in the training")  # fmt: skip
    continue_.add_argument("--steps", type=at_least(1), metavar="N", default=10, help="frames to add")

    fill = sequence_edit("fill", _fill, "Make missing or damaged frames anew, with a frame filler.", """
        genimg-fast edit fill runs/00001-frame-filler-moving-digits --missing 5-8 12
        genimg-fast edit fill runs/00001-frame-filler-clips --data scratched/ --n 1 --frames 40 --missing 17
    """, "filled.gif", "frames in a sequence; default: as many as in the training")  # fmt: skip
    fill.add_argument("--missing", type=_frame_range, nargs="+", metavar="N|N-M", required=True,
                      help="frames to make anew, counted from 1")  # fmt: skip

    retime = sequence_edit("retime", _retime, "Change the speed of sequences, with a frame filler.", """
        genimg-fast edit retime runs/00001-frame-filler-moving-digits --speed 0.5
        genimg-fast edit retime runs/00001-frame-filler-clips --data walk.gif --n 1 --speed 0.25 --out slow.gif
    """, "retimed.gif", "frames in a sequence, before; default: as many as in the training")  # fmt: skip
    retime.add_argument("--speed", type=positive, metavar="X", default=0.5,
                        help="0.5: half the speed, with frames in between; 2: every other frame")  # fmt: skip

    complete = command("complete", _complete, "Show images, each beside a completion of its upper rows.", """
        genimg-fast edit complete runs/00000-row-rnn-digits --rows 6
    """, "completed.png", "image file to write", edits)  # fmt: skip
    _add_number(complete, 36, "images")
    complete.add_argument(
        "--rows", type=at_least(0), metavar="N", help="rows that are given; default: half of them"
    )
    _add_data(complete)
    _add_picture(complete)
    add_seed_and_device(complete)


class Real(NamedTuple):
    """Real images, or sequences, and what they are to the run."""

    dataset: Any  # an ImageDataset, or sequences
    relation: str  # "held-out", "training", or "" where nobody can tell
    source: str

    def describe(self, n: int, what: str = "images") -> str:
        """Say what ``n`` of them are."""
        return f"{n} {self.kind(what)} of {self.source}"

    def kind(self, what: str = "images") -> str:
        """Say what they are."""
        return f"{self.relation} {what}".strip()


def _add_number(parser: Parser, number: int, what: str) -> None:
    parser.set_defaults(most=number)
    parser.add_argument(
        "--n", type=at_least(1), metavar="N", help=f"number of {what}; default: {number}, if there are so many"
    )


def _add_picture(parser: Parser) -> None:
    add_scale(parser)
    parser.add_argument("--plain", action="store_true", help="leave out names, borders and the margin")


def _add_data(parser: Parser, what: str = "real images") -> None:
    parser.add_argument("--data", metavar="NAME|FOLDER",
                        help=f"{what}; default: what the run held out, else what it trained on")  # fmt: skip
    add_data_root(parser)


def _sample(args: argparse.Namespace) -> int:
    if args.out is not None:
        check_image_file(args.parser, args.out)
    model, config = _load(args)
    if isinstance(model, BaseFrameModel):
        return _sample_frames(args, model, config)
    args.out = args.out or Path("grid.png")
    if not hasattr(model, "sample"):
        args.parser.error(f"argument RUN: {config['model']} does not generate images")
    generator = torch.Generator().manual_seed(args.seed)
    label = None if args.class_name is None else _class(args, model, config)
    picture = class_samples(model, args.n, label=label, generator=generator)
    return _write_picture(args, picture, config.get("classes"))


def _reconstruct(args: argparse.Namespace) -> int:
    check_image_file(args.parser, args.out)
    model, real = _load_encoder_and_data(args, (BaseVAE, Autoencoder))
    images, labels = _choose(args, real)
    conditions = (labels,) if getattr(model, "num_classes", 0) > 0 else ()
    reconstructions = model.reconstruct(images, *conditions)
    return _write_picture(args, Picture(images={"input": images, "output": reconstructions}, caption=args.caption))


def _interpolate(args: argparse.Namespace) -> int:
    check_image_file(args.parser, args.out)
    model, config = _load(args)
    ends: list[Tensor] = []  # the images themselves, where there are any
    if isinstance(model, BaseVAE):
        real = load_real(args, model, config)
        first, second = _pairs(args, real.dataset, same_class=model.num_classes > 0)
        print(f"pairs of the {real.describe(len(real.dataset))}")
        (a, labels), (b, _) = (_to(args, real.dataset[indices]) for indices in (first, second))
        class_labels = labels if model.num_classes > 0 else None
        images = model.interpolate(a, b, steps=args.steps, mode=args.mode, labels=class_labels)
        ends = [a.unsqueeze(1), b.unsqueeze(1)]
    elif not isinstance(model, BaseGAN):
        args.parser.error(f"argument RUN: {config['model']} has no latents; this is for GANs and VAEs")
    else:
        generator = torch.Generator().manual_seed(args.seed)
        a, b = torch.randn(2, args.n, model.generator.z_dim, generator=generator).to(args.device)
        path = interpolate_latents(a, b, args.steps, args.mode)
        classes = labels_to_sample(None, args.n, model.num_classes, a.device)
        every = None if classes is None else classes.repeat_interleave(args.steps)
        with torch.no_grad(), evaluating(model):
            images = model(path.flatten(0, 1), every).unflatten(0, path.shape[:2])
    if args.out.suffix.lower() in ANIMATIONS:
        panels = {"morph": images}
        if ends:
            panels = {"from": ends[0].expand_as(images), **panels, "to": ends[1].expand_as(images)}
        return _write(args, lambda: save_animation(panels, args.out, scale=args.scale, plain=args.plain))
    labels_above = [f"{100 * step / (args.steps - 1):.0f}%" for step in range(args.steps)]
    if ends:
        images, labels_above = torch.cat([ends[0], images, ends[1]], 1), ["from", *labels_above, "to"]
    return _write(args, lambda: save_grid(
        images.flatten(0, 1), args.out, columns=images.shape[1], column_labels=labels_above,
        scale=args.scale, plain=args.plain,
    ))  # fmt: skip


def _translate(args: argparse.Namespace) -> int:
    check_image_file(args.parser, args.out)
    model, config = _load(args)
    if not isinstance(model, Pix2Pix):
        args.parser.error(f"argument RUN: {config['model']} translates no images; this is for pix2pix")

    def load(source: str) -> ImageDataset:
        return load_pairs(
            source, image_size=model.image_size, channels=model.in_channels,
            skip_broken=config.get("skip_broken", False),
        )  # fmt: skip

    real = _load_data(args, config, load, lambda pairs: content_hash(pairs.images))
    real = real._replace(source=f"folder {real.source}")
    images, _ = _choose(args, real, "pairs")
    source, target = images.chunk(2, dim=3)
    if config.get("direction") == "b2a":
        source, target = target, source
    output = model.translate(source, dropout=args.dropout, batch_statistics=args.batch_statistics)
    return _write_picture(
        args, Picture(images={"input": source, "output": output, "target": target}, caption=args.caption)
    )


def _sample_frames(args: argparse.Namespace, model: BaseFrameModel, config: dict[str, Any]) -> int:
    """Show real sequences beside what the model makes of them."""
    if args.class_name is not None:
        args.parser.error(f"argument --class: {config['model']} is not class-conditional")
    args.out = args.out or Path("frames.gif")
    frames = _sequences(args, model, config, config["frames"])
    if isinstance(model, FramePredictor):
        return _write_picture(args, replace(predictions(model, frames, _context(config)), caption=args.caption))
    known = draw_known_frames(*frames.shape[:2], generator=torch.Generator().manual_seed(args.seed))
    return _write_picture(args, replace(fillings(model, frames, known), caption=args.caption))


def _continue(args: argparse.Namespace) -> int:
    model, config = _load_frame_model(args, FramePredictor)
    frames = _sequences(args, model, config, args.frames or _context(config))
    continued = torch.cat([frames, model.rollout(frames, args.steps)], 1)
    added = torch.arange(continued.shape[1]) >= frames.shape[1]
    return _write_picture(args, Picture(images=continued, generated=added, caption=args.caption))


def _fill(args: argparse.Namespace) -> int:
    model, config = _load_frame_model(args, FrameFiller)
    frames = _sequences(args, model, config, args.frames or config["frames"])
    numbers = range(1, frames.shape[1] + 1)
    known = torch.tensor([not any(n in missing for missing in args.missing) for n in numbers], device=args.device)
    if max(missing[-1] for missing in args.missing) > len(known) or not known.any():
        args.parser.error(f"argument --missing: must leave some of the {len(known)} frames, and none behind them")
    filled = model.fill(frames, known)
    return _write_picture(args, Picture(images=filled, generated=~known, caption=args.caption))


def _retime(args: argparse.Namespace) -> int:
    model, config = _load_frame_model(args, FrameFiller)
    frames = _sequences(args, model, config, args.frames or config["frames"])
    with args.parser.blaming("--speed"):
        retimed = model.retime(frames, args.speed)
    speed = Fraction(args.speed).limit_denominator(8)  # as the model takes it
    between = torch.arange(retimed.shape[1]) * speed.numerator % speed.denominator > 0
    return _write_picture(args, Picture(images=retimed, generated=between, caption=args.caption))


def _complete(args: argparse.Namespace) -> int:
    check_image_file(args.parser, args.out)
    model, config = _load(args)
    if not isinstance(model, RowRNN):
        args.parser.error(f"argument RUN: {config['model']} cannot complete images; this is for row-rnn")
    rows = model.image_size // 2 if args.rows is None else args.rows
    if rows >= model.image_size:
        args.parser.error(f"argument --rows: must be below {model.image_size}, the height, got {rows}")
    images, _ = _choose(args, load_real(args, model, config))
    picture = completions(model, images, rows, torch.Generator().manual_seed(args.seed))
    return _write_picture(args, replace(picture, caption=args.caption))


def _latent(args: argparse.Namespace) -> int:
    optional_import("matplotlib")
    check_image_file(args.parser, args.out)
    model, real = _load_encoder_and_data(args)
    if model.z_dim < 2:
        args.parser.error("argument RUN: its latents have a single dimension, and a plot needs two")
    images, labels = _choose(args, real)
    title = real.describe(len(images))
    with torch.no_grad(), evaluating(model):
        conditions = labels.split(256) if model.num_classes > 0 else [None] * len(images.split(256))
        mu = torch.cat([
            model.encode(*batch)[0] for batch in zip(images.split(256), conditions, strict=True)
        ])  # fmt: skip
    return _write(args, lambda: plot_latents(mu, labels, real.dataset.class_names, args.out, title=title))


def _load(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:  # the attributes of a Module are not typed
    model, config = load_with_settings(args)
    return model.to(args.device), config


def load_with_settings(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Load the model of ``RUN`` and its settings; one that is missing there is an error in one line."""
    with args.parser.blaming("RUN"):
        model, config = load_run(args.RUN)
    return model, _Settings(args.parser, config)


class _Settings(dict[str, Any]):
    """The settings of a run, which may have been started from Python and say less than a command asks."""

    def __init__(self, parser: Parser, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._parser = parser

    def __missing__(self, key: str) -> NoReturn:
        self._parser.error(f"argument RUN: its config does not say {key!r}")


def _load_frame_model(args: argparse.Namespace, kind: type[BaseFrameModel]) -> tuple[Any, dict[str, Any]]:
    check_image_file(args.parser, args.out)
    model, config = _load(args)
    if not isinstance(model, kind):
        name = "frame-predictor" if kind is FramePredictor else "frame-filler"
        args.parser.error(f"argument RUN: must be a run of {name}, got one of {config['model']}")
    return model, config


def _context(config: dict[str, Any]) -> int:
    """Find how many frames a frame predictor was given in the training."""
    return config["context"] or max(1, config["frames"] // 2)


def _sequences(args: argparse.Namespace, model: BaseFrameModel, config: dict[str, Any], frames: int) -> Tensor:
    """Take ``--n`` sequences at random; of moving digits, with those that the training has not seen."""

    def load(source: str, frames: int) -> Any:
        return load_sequences(
            source, frames=frames, image_size=model.image_size, channels=model.c_dim,
            speed=tuple(config["speed"]), train=False, seed=args.seed,
        )  # fmt: skip

    flag = "--frames" if hasattr(args, "frames") else "--data"
    source = args.data or config.get("val_data") or config["data"]
    with args.parser.blaming("--data"), args.parser.blaming(flag, (TooFewFramesError,)):
        if args.data or source == "moving-digits":
            real = Real(load(source, frames), "held-out" if source == "moving-digits" else "", source)
        else:  # a split of clips depends on the number of frames that it was made for
            real = _load_data(
                args, config, lambda source: load(source, config["frames"]),
                lambda folders: content_hash(*folders.clips.values()),
            )  # fmt: skip
            real = real._replace(dataset=real.dataset.windows(frames))
    return _choose(args, real, "sequences")[0]


def _frame_range(text: str) -> range:
    """Read numbers of frames: ``7``, or ``5-8``."""
    numbers = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text)
    first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (0, 0)
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, or a range such as 5-8, got {text!r}")
    return range(first, last + 1)


def load_real(args: argparse.Namespace, model: Any, config: dict[str, Any], *, training: bool = False) -> Real:
    """Load the images of ``--data``, or those of the run: those held out, if there are any, or trained on."""
    cut = {} if args.data else {"crops": config.get("crops", 0), "seed": config.get("seed", 0)}

    def load(source: str) -> ImageDataset:
        return load_dataset(
            source,
            image_size=model.image_size,
            channels=model.c_dim,
            root=args.data_root,
            download=args.download,
            skip_broken=not args.data and config.get("skip_broken", False),
            **cut,
        )

    real = _load_data(args, config, load, lambda data: content_hash(data.images, data.labels), training=training)
    classes = config.get("classes", [])
    if getattr(model, "num_classes", 0) > 0 and set(real.dataset.class_names) <= set(classes):
        real = real._replace(dataset=real.dataset.with_classes(classes))
    if 0 < getattr(model, "num_classes", 0) < len(real.dataset.class_names):
        number = len(real.dataset.class_names)
        args.parser.error(f"argument --data: has {number} classes, and the model knows {model.num_classes}")
    return real


def _load_data(
    args: argparse.Namespace,
    config: dict[str, Any],
    load: Callable[[str], Any],
    content: Callable[[Any], str],
    *,
    training: bool = False,
) -> Real:
    """Load what ``--data`` names, or the data of the run: what it held out, if anything, or trained on.

    Args:
        args: Arguments of the command.
        config: Settings of the run.
        load: Reads a source.
        content: Computes the hash of what was read that the settings hold.
        training: Whether to take what was trained on in any case.
    """
    if args.data:
        with args.parser.blaming("--data"):
            return Real(load(args.data), "", args.data)
    other, share = None if training else config.get("val_data"), config.get("val_split")
    source = other or config["data"]
    with args.parser.blaming("--data"):
        dataset = load(source)
        same = config.get("sha256" if other is None else "val_sha256") == content(dataset)
        if share is None:
            relation = "training" if other is None else "held-out"
            return Real(dataset, relation if same else "", source)
        if not same:  # the split would be another one
            args.parser.error(
                f"argument RUN: {source} holds other images than at the training, so nobody can tell which were "
                "held out: name some with --data"
            )
        parts = dataset.split(share, seed=config["seed"])
    return Real(parts[0], "training", source) if training else Real(parts[1], "held-out", source)


def _load_encoder_and_data(args: argparse.Namespace, kinds: tuple[type, ...] = (BaseVAE,)) -> tuple[Any, Real]:
    parser: Parser = args.parser
    model, config = _load(args)
    if not isinstance(model, kinds):
        words = "VAE" if kinds == (BaseVAE,) else "VAE or an autoencoder"
        parser.error(f"argument RUN: must be a run of a {words}, got one of {config['model']}")
    return model, load_real(args, model, config)


def _choose(args: argparse.Namespace, real: Real, what: str = "images") -> tuple[Tensor, Tensor]:
    """Take ``--n`` images, or sequences, at random, by default no more than there are; say what they are."""
    dataset = real.dataset
    n = min(args.most, len(dataset)) if args.n is None else args.n
    if n > len(dataset):
        args.parser.error(f"argument --n: must be at most {len(dataset)}, the number of {what}")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed))
    print(real.describe(n, what))
    args.caption = real.kind(what) if real.relation else ""
    return _to(args, dataset[order[:n]])


def _pairs(args: argparse.Namespace, dataset: ImageDataset, *, same_class: bool) -> tuple[Tensor, Tensor]:
    """Take ``--n`` pairs of images at random: their indices."""
    generator = torch.Generator().manual_seed(args.seed)
    first = torch.randint(len(dataset), (args.n,), generator=generator)
    if not same_class:
        return first, torch.randint(len(dataset), (args.n,), generator=generator)
    second = []
    for label in dataset.labels[first]:
        candidates = (dataset.labels == label).nonzero()[:, 0]
        second.append(candidates[torch.randint(len(candidates), (), generator=generator)])
    return first, torch.stack(second)


def _to(args: argparse.Namespace, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0].to(args.device), batch[1].to(args.device)


def _class(args: argparse.Namespace, model: Any, config: dict[str, Any]) -> int:
    """Find the number of the class that ``--class`` names."""
    parser: Parser = args.parser
    if getattr(model, "num_classes", 0) == 0:
        parser.error(f"argument --class: {config['model']} is not class-conditional")
    names: list[str] = config["classes"]
    if args.class_name in names:
        return names.index(args.class_name)
    if re.fullmatch("[0-9]{1,9}", args.class_name) and int(args.class_name) < len(names):
        return int(args.class_name)
    parser.error(f"argument --class: must be one of {', '.join(names)}, got {args.class_name!r}")


def _write_picture(args: argparse.Namespace, picture: Picture, class_names: list[str] | None = None) -> int:
    return _write(
        args, lambda: picture.save(args.out, scale=args.scale, plain=args.plain, class_names=class_names)
    )


def _write(args: argparse.Namespace, write: Callable[[], None]) -> int:
    with args.parser.blaming("--out"), naming(args.out):
        write()
    print(args.out)
    return 0
