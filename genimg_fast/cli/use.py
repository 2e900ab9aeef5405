"""Commands that use a trained model: ``genimg-fast sample``, ``reconstruct``, ``interpolate`` and ``latent``."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genimg_fast._evaluating import evaluating
from genimg_fast.cli.arguments import (
    Parser,
    add_command,
    add_data_root,
    add_seed_and_device,
    at_least,
    check_image_file,
)
from genimg_fast.data import ImageDataset, load_dataset
from genimg_fast.data.optional import optional_import
from genimg_fast.models import BaseVAE, interpolate_latents
from genimg_fast.training import load_run, plot_latents, save_animation, save_grid

_ANIMATIONS = (".gif", ".webp")


def add(commands: Any) -> None:
    """Add the commands."""

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, examples: str, out: str, out_help: str
    ) -> Parser:
        new = add_command(commands, name, run, text, examples)
        new.add_argument("RUN", type=Path, help="run folder, or checkpoint")
        new.add_argument("--out", type=Path, metavar="FILE", default=Path(out), help=out_help)
        return new

    sample = command("sample", _sample, "Generate images with a trained model.", """
        genimg-fast sample runs/00000-dcgan-digits --n 64 --seed 1 --out grid.png
        genimg-fast sample runs/00001-cvae-digits --n 100
        genimg-fast sample runs/00001-cvae-digits --class 7
    """, "grid.png", "image file to write")  # fmt: skip
    sample.add_argument("--n", type=at_least(1), metavar="N", default=64, help="number of images")
    sample.add_argument("--class", dest="class_name", metavar="NAME|N",
                        help="class to generate, of a class-conditional model; default: all in order")  # fmt: skip
    add_seed_and_device(sample)

    reconstruct = command("reconstruct", _reconstruct, "Show images, each beside its reconstruction.", """
        genimg-fast reconstruct runs/00000-vae-digits --n 36
        genimg-fast reconstruct runs/00000-vae-digits --data photos/ --out photos.png
    """, "reconstructions.png", "image file to write")  # fmt: skip
    reconstruct.add_argument("--n", type=at_least(1), metavar="N", default=36, help="number of images")
    _add_data(reconstruct)
    add_seed_and_device(reconstruct)

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
    add_seed_and_device(interpolate)

    latent = command("latent", _latent, "Plot where a VAE's encoder puts images, coloured by class.", """
        genimg-fast latent runs/00000-vae-digits --out latent.png
    """, "latent.png", "image file to write")  # fmt: skip
    latent.add_argument("--n", type=at_least(1), metavar="N", default=2000, help="number of images, at most")
    _add_data(latent)
    add_seed_and_device(latent)


def _add_data(parser: Parser) -> None:
    parser.add_argument("--data", metavar="NAME|FOLDER", help="real images; default: those of the training")
    add_data_root(parser)


def _sample(args: argparse.Namespace) -> int:
    check_image_file(args.parser, args.out)
    model, config = _load(args)
    generator = torch.Generator().manual_seed(args.seed)
    if args.class_name is None:
        images = model.sample(args.n, generator=generator)
    else:
        images = model.sample(args.n, generator=generator, labels=_class(args, model, config))
    return _write(args, lambda: save_grid(images, args.out))


def _reconstruct(args: argparse.Namespace) -> int:
    check_image_file(args.parser, args.out)
    model, dataset = _load_vae_and_data(args)
    images, labels = _choose(args, dataset)
    reconstructions = model.reconstruct(images, labels if model.num_classes > 0 else None)
    return _write(args, lambda: save_grid(torch.cat([images, reconstructions], dim=3), args.out))


def _interpolate(args: argparse.Namespace) -> int:
    check_image_file(args.parser, args.out)
    model, config = _load(args)
    if isinstance(model, BaseVAE):
        dataset = _load_data(args, model, config)
        first, second = _pairs(args, dataset, same_class=model.num_classes > 0)
        (a, labels), (b, _) = (_to(args, dataset[indices]) for indices in (first, second))
        class_labels = labels if model.num_classes > 0 else None
        images = model.interpolate(a, b, steps=args.steps, mode=args.mode, labels=class_labels)
    else:
        generator = torch.Generator().manual_seed(args.seed)
        a, b = torch.randn(2, args.n, model.generator.z_dim, generator=generator).to(args.device)
        path = interpolate_latents(a, b, args.steps, args.mode)
        with torch.no_grad(), evaluating(model):
            images = model(path.flatten(0, 1)).unflatten(0, path.shape[:2])
    if args.out.suffix.lower() in _ANIMATIONS:
        return _write(args, lambda: save_animation(images, args.out))
    return _write(args, lambda: save_grid(images.flatten(0, 1), args.out, columns=args.steps))


def _latent(args: argparse.Namespace) -> int:
    optional_import("matplotlib")
    check_image_file(args.parser, args.out)
    model, dataset = _load_vae_and_data(args)
    if model.z_dim < 2:
        args.parser.error("argument RUN: its latents have a single dimension, and a plot needs two")
    args.n = min(args.n, len(dataset))
    images, labels = _choose(args, dataset)
    with torch.no_grad(), evaluating(model):
        conditions = labels.split(256) if model.num_classes > 0 else [None] * len(images.split(256))
        mu = torch.cat([
            model.encode(*batch)[0] for batch in zip(images.split(256), conditions, strict=True)
        ])  # fmt: skip
    return _write(args, lambda: plot_latents(mu, labels, dataset.class_names, args.out))


def _load(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:  # the attributes of a Module are not typed
    with args.parser.blaming("RUN"):
        model, config = load_run(args.RUN)
    return model.to(args.device), config


def _load_data(args: argparse.Namespace, model: BaseVAE, config: dict[str, Any]) -> ImageDataset:
    with args.parser.blaming("--data"):
        dataset = load_dataset(
            args.data or config["data"], image_size=model.image_size, channels=model.c_dim, root=args.data_root
        )
    if 0 < model.num_classes < len(dataset.class_names):
        args.parser.error(
            f"argument --data: has {len(dataset.class_names)} classes, and the model knows {model.num_classes}"
        )
    return dataset


def _load_vae_and_data(args: argparse.Namespace) -> tuple[BaseVAE, ImageDataset]:
    parser: Parser = args.parser
    model, config = _load(args)
    if not isinstance(model, BaseVAE):
        parser.error(f"argument RUN: {config['model']} has no encoder; this is for VAEs")
    return model, _load_data(args, model, config)


def _choose(args: argparse.Namespace, dataset: ImageDataset) -> tuple[Tensor, Tensor]:
    """Take ``--n`` images at random."""
    if args.n > len(dataset):
        args.parser.error(f"argument --n: must be at most {len(dataset)}, the number of images")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed))
    return _to(args, dataset[order[: args.n]])


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
    if not isinstance(model, BaseVAE) or model.num_classes == 0:
        parser.error(f"argument --class: {config['model']} is not class-conditional")
    names: list[str] = config["classes"]
    if args.class_name in names:
        return names.index(args.class_name)
    if args.class_name.isdecimal() and int(args.class_name) < len(names):
        return int(args.class_name)
    parser.error(f"argument --class: must be one of {', '.join(names)}, got {args.class_name!r}")


def _write(args: argparse.Namespace, write: Callable[[], None]) -> int:
    with args.parser.blaming("--out"):
        write()
    print(args.out)
    return 0
