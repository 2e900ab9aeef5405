"""``genimg-fast reconstruct``, ``translate`` and ``latent``: what a trained model makes of images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch

from genimg_fast._evaluating import evaluating
from genimg_fast._files import replacing
from genimg_fast.cli.arguments import blaming
from genimg_fast.cli.runs import (
    ImageSource,
    Look,
    Output,
    Real,
    Session,
    batches,
    check_out,
    choose,
    folded,
    load_data,
    load_real,
    load_with_settings,
    storage_of,
    write,
)
from genimg_fast.data import ImageDataset, UnpairedImages, load_dataset, load_pairs, load_unpaired
from genimg_fast.data.dataset import identify
from genimg_fast.data.optional import optional_import
from genimg_fast.data.unpaired import kinds_in
from genimg_fast.models import VQVAE, Autoencoder, BaseVAE, CycleGAN, Pix2Pix
from genimg_fast.models.cyclegan import Direction
from genimg_fast.options import File, OptionError, PositiveInt, Reader
from genimg_fast.training import Picture, plot_latents


def reconstruct(
    run: Path,
    *,
    out: Output = "reconstructions.png",
    n: PositiveInt | None = None,
    source: ImageSource,
    look: Look,
    session: Session,
) -> int:
    """Show images, each beside its reconstruction.

    They go into a picture of all; or, as they come, however many there are, into a new or empty folder, or an
    .npz file.

    Args:
        run: Run folder, or checkpoint.
        out: Picture to write, or FOLDER/, or .npz.
        n: Number of images; default: 36, if there are so many.
        source: Where real images come from.
        look: What pictures look like.
        session: Random numbers, and the device.

    Example:
        genimg-fast reconstruct runs/00000-vae-digits --n 36
        genimg-fast reconstruct runs/00000-vae-digits --data faces/ --n 5000 --out reconstructed/
    """
    check_out(out)
    model, config = load_with_settings(run, session.device)
    _check_kind(model, config, (BaseVAE, Autoencoder, VQVAE), "VAE or an autoencoder")
    real = load_real(model, config, source)
    indices = choose(real, n, most=36, seed=session.seed)

    def made() -> Iterator[Picture]:
        for images, labels in batches(real, indices, model.image_size, session.find_device()):
            conditions = (labels,) if getattr(model, "num_classes", 0) > 0 else ()
            reconstructions = model.reconstruct(images, *conditions)
            yield Picture(images={"input": images, "output": reconstructions}, caption=real.caption())

    classes = real.dataset.class_names
    labels = real.dataset.labels[indices] if len(classes) > 1 else None
    return write(made(), out, n=len(indices), labels=labels, class_names=classes, look=look)


def translate(
    run: Path,
    *,
    out: Output = "translations.png",
    n: PositiveInt | None = None,
    dropout: bool = False,
    batch_statistics: bool = False,
    direction: Direction | None = None,
    data: Annotated[str, Reader(str, "FOLDER")] | None = None,
    look: Look,
    session: Session,
) -> int:
    """Translate images; show input, output and target, or, without pairs, the way back.

    They go into a picture of all; or, as they come, however many there are, into a new or empty folder, or an
    .npz file.

    Args:
        run: Run folder, or checkpoint.
        out: Picture to write, or FOLDER/, or .npz.
        n: Number of pairs, or images; default: 16, if there are so many.
        dropout: Whether to keep dropout on, for variation.
        batch_statistics: Whether to normalise with the statistics of these images, as the paper does; of more than
            fit into a batch, with those of each batch.
        direction: Which way a CycleGAN translates; default: a2b.
        data: Folder of pairs, for a CycleGAN of images; default: what the run held out, else what it trained on.
        look: What pictures look like.
        session: Random numbers, and the device.

    Example:
        genimg-fast translate runs/00000-pix2pix-maps --n 16
        genimg-fast translate runs/00000-pix2pix-maps --data validation/ --n 1000 --out translated/
        genimg-fast translate runs/00001-cyclegan-horses-zebras --direction b2a --data more-zebras/
    """
    check_out(out)
    model, config = load_with_settings(run, session.device)
    if isinstance(model, CycleGAN):
        for name, value in (("dropout", dropout), ("batch_statistics", batch_statistics)):
            if value:
                raise OptionError(name, "is for pix2pix, and this is a CycleGAN")
        return _translate_kind(model, config, direction or "a2b", data, n, out, look, session)
    if not isinstance(model, Pix2Pix):
        raise OptionError("run", f"{config['model']} translates no images; this is for pix2pix and cyclegan")
    learnt = config.get("direction", "a2b")
    if direction not in (None, learnt):
        raise OptionError("direction", f"must be {learnt}, which the run has learnt, got {direction}")

    def load(source: str) -> ImageDataset:
        return load_pairs(
            source, image_size=model.image_size, channels=model.in_channels,
            skip_broken=config.get("skip_broken", False), **storage_of(config),
        )  # fmt: skip

    real = load_data(config, data, load, identify)
    real = real._replace(source=f"folder {real.source}")
    indices = choose(real, n, most=16, seed=session.seed, what="pairs")
    if not batch_statistics:
        black = torch.full((1, model.in_channels, *[model.image_size] * 2), -1.0, device=session.find_device())
        model = folded(model, lambda twin: twin.translate(black))

    def made() -> Iterator[Picture]:
        for images, _ in batches(real, indices, model.image_size, session.find_device()):
            source, target = images.chunk(2, dim=3)
            if learnt == "b2a":
                source, target = target, source
            output = model.translate(source, dropout=dropout, batch_statistics=batch_statistics)
            panels = {"input": source, "output": output, "target": target}
            yield Picture(images=panels, caption=real.caption("pairs"))

    return write(made(), out, n=len(indices), look=look)


def _translate_kind(
    model: Any,
    config: dict[str, Any],
    direction: Direction,
    data: str | None,
    n: int | None,
    out: str,
    look: Look,
    session: Session,
) -> int:
    """Translate images of one kind, and back."""
    settings = {
        "image_size": model.image_size, "channels": model.c_dim,
        "skip_broken": config.get("skip_broken", False), **storage_of(config),
    }  # fmt: skip
    if data is not None and kinds_in(data) is None:
        with blaming("data"):
            real = Real(load_dataset(data, **settings), "", data)
    else:
        cut = {} if data else {"crops": config.get("crops", 0), "seed": config.get("seed", 0)}
        real = load_data(
            config, data, lambda paths: load_unpaired(paths, **settings, **cut), UnpairedImages.identify
        )
        kind = direction[0]
        real = real._replace(dataset=getattr(real.dataset, kind), source=f"kind {kind.upper()} of {real.source}")
    indices = choose(real, n, most=16, seed=session.seed)

    def made() -> Iterator[Picture]:
        for images, _ in batches(real, indices, model.image_size, session.find_device()):
            output = model.translate(images, direction=direction)
            back = model.translate(output, direction="b2a" if direction == "a2b" else "a2b")
            yield Picture(images={"input": images, "output": output, "back": back}, caption=real.caption())

    return write(made(), out, n=len(indices), look=look)


def latent(
    run: Path,
    *,
    out: File = Path("latent.png"),
    n: PositiveInt | None = None,
    source: ImageSource,
    session: Session,
) -> int:
    """Plot where a VAE's encoder puts images, coloured by class.

    Args:
        run: Run folder, or checkpoint.
        out: Image file to write.
        n: Number of images; default: 2000, if there are so many.
        source: Where real images come from.
        session: Random numbers, and the device.

    Example:
        genimg-fast latent runs/00000-vae-digits --out latent.png
    """
    optional_import("matplotlib")
    if out.suffix.lower() not in optional_import("PIL.Image").registered_extensions():
        raise OptionError("out", f"{str(out)!r} does not end like an image file, such as .png")
    model, config = load_with_settings(run, session.device)
    _check_kind(model, config, (BaseVAE,), "VAE")
    if model.z_dim < 2:
        raise OptionError("run", "its latents have a single dimension, and a plot needs two")
    real: Real = load_real(model, config, source)
    indices = choose(real, n, most=2000, seed=session.seed)
    found = []
    with torch.no_grad(), evaluating(model):
        for images, labels in batches(real, indices, model.image_size, session.find_device()):
            found.append(model.encode(images, labels if model.num_classes > 0 else None)[0])
    title, classes = real.describe(len(indices)), real.dataset.class_names
    with blaming("out"), replacing(out) as temporary:
        plot_latents(torch.cat(found), real.dataset.labels[indices], classes, temporary, title=title)
    print(out)
    return 0


def _check_kind(model: Any, config: dict[str, Any], kinds: tuple[type, ...], words: str) -> None:
    if not isinstance(model, kinds):
        raise OptionError("run", f"must be a run of a {words}, got one of {config['model']}")
