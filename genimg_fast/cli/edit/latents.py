"""Images changed through the latents of a trained model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from genimg_fast._evaluating import evaluating
from genimg_fast.cli.arguments import blaming
from genimg_fast.cli.edit.pictures import PictureFile
from genimg_fast.cli.runs import Look, Output, Session, check_out, load_with_settings, write
from genimg_fast.cli.sampling import class_number
from genimg_fast.data.decode import images_among, read_image
from genimg_fast.data.files import list_folder
from genimg_fast.editing import (
    attribute_direction,
    mix as mix_latents,
    project as project_images,
    vary as vary_latents,
)
from genimg_fast.editing.latents import Latents
from genimg_fast.options import Folder, NonNegativeFloat, NonNegativeInt, OptionError, PositiveInt, Reader
from genimg_fast.training import Picture
from genimg_fast.training.outputs import form_of

ClassName = Annotated[str, Reader(str, "NAME|N")]
_AT_A_TIME = 64


@dataclass(frozen=True, kw_only=True)
class Search:
    """How images become latents.

    Args:
        class_: Class of the images, of a class-conditional model.
        steps: Steps of the search for latents; default: none with an encoder, else 400.
    """

    class_: ClassName | None = None
    steps: NonNegativeInt | None = None


class _Run:
    """A run whose model has latents, with the class that ``--class`` names."""

    def __init__(self, run: Path, search: Search, session: Session) -> None:
        self.model, self.config = load_with_settings(run, session.device)
        self.session, self.steps, name = session, search.steps, search.class_
        self.label = None if name is None else class_number(name, self.model, self.config)
        if self.label is None and getattr(self.model, "num_classes", 0) > 0:
            raise OptionError("class_", f"must be given: {self.config['model']} is class-conditional")
        with blaming("run", (ValueError,)):
            self.latents = Latents(self.model, self.labels(1))

    def labels(self, n: int) -> Tensor | None:
        return None if self.label is None else torch.full((n,), self.label, device=self.session.find_device())

    def read(self, files: list[Path], option: str) -> Tensor:
        """Read images as the model has them: cut to a square, of its size, in [-1, 1]."""
        with blaming(option, (OSError, ValueError)):
            read = [read_image(file, self.latents.image_size, self.latents.c_dim) for file in files]
        return (torch.stack(read).to(self.session.find_device()).float() / 127.5) - 1

    def project(self, images: Tensor) -> Tensor:
        generator = self.session.generator()
        return torch.cat(
            [
                project_images(
                    self.model, part, labels=self.labels(len(part)), steps=self.steps, generator=generator,
                    progress=True,
                )
                for part in images.split(_AT_A_TIME)
            ]
        )  # fmt: skip

    def decode(self, z: Tensor) -> Tensor:
        with torch.no_grad(), evaluating(self.model):
            return Latents(self.model, self.labels(len(z))).decode(z)


def project(
    image: PictureFile,
    run: Path,
    *,
    out: Output = "projection.png",
    search: Search,
    look: Look,
    session: Session,
) -> int:
    """Show an image beside the nearest one that a trained model makes.

    Args:
        image: The image; it is cut to a square, and takes the model's size.
        run: Run folder, or checkpoint, of a GAN, a VAE ....
        out: Picture to write, or FOLDER/, or .npz.
        search: How images become latents.
        look: What pictures look like.
        session: Random numbers, and the device.

    Example:
        genimg-fast edit project seven.png runs/00000-dcgan-digits
        genimg-fast edit project seven.png runs/00001-vae-digits --steps 200
    """
    check_out(out)
    model = _Run(run, search, session)
    images = model.read([image], "image")
    made = model.decode(model.project(images))
    error = (made - images).square().mean().item()
    print(f"mean squared error {error:.4f}, of values in [-1, 1]")
    return write([Picture(images={"image": images, "projection": made})], out, n=1, look=look)


def vary(
    image: PictureFile,
    run: Path,
    *,
    out: Output = "variations.png",
    n: PositiveInt = 8,
    strength: NonNegativeFloat = 0.5,
    search: Search,
    look: Look,
    session: Session,
) -> int:
    """Make variations of an image with a trained model.

    Args:
        image: The image; it is cut to a square, and takes the model's size.
        run: Run folder, or checkpoint, of a GAN, a VAE ....
        out: Picture to write, or FOLDER/, or .npz.
        n: Number of variations.
        strength: From 0, the same, to 1, anything.
        search: How images become latents.
        look: What pictures look like.
        session: Random numbers, and the device.

    Example:
        genimg-fast edit vary seven.png runs/00001-vae-digits --n 16 --strength 0.3
    """
    check_out(out)
    model = _Run(run, search, session)
    images = model.read([image], "image")
    z = model.project(images)
    given, generator = model.labels(1), session.generator()
    varied = vary_latents(model.model, z, n, strength=strength, labels=given, generator=generator)
    made = torch.cat([images, model.decode(z), model.decode(varied)])
    labels = ["image", "projection", *(str(k) for k in range(1, n + 1))]
    return _write(made, labels, out, look)


def attribute(
    image: PictureFile,
    run: Path,
    *,
    from_: Folder,
    to: Folder,
    strength: list[float] = (-1.0, 0.0, 0.5, 1.0, 1.5),  # type: ignore[assignment]
    method: Literal["mean", "linear"] = "mean",
    out: Output = "attribute.png",
    search: Search,
    look: Look,
    session: Session,
) -> int:
    """Give an image more, or less, of what one folder of images has and another has not.

    Args:
        image: The image; it is cut to a square, and takes the model's size.
        run: Run folder, or checkpoint, of a GAN, a VAE ....
        from_: Folder of images without the attribute.
        to: Folder of images with it.
        strength: How much: 0 changes nothing, 1 as much as lies between the two folders.
        method: The difference of the folders' means, or the normal of the plane between them.
        out: Picture to write, or FOLDER/, or .npz.
        search: How images become latents.
        look: What pictures look like.
        session: Random numbers, and the device.

    Example:
        genimg-fast edit attribute seven.png runs/00001-vae-digits --from upright/ --to slanted/ --strength 0 1 2
    """
    check_out(out)
    model = _Run(run, search, session)
    images = model.read([image], "image")
    without, having = (model.project(model.read(_images_of(f, o), o)) for f, o in ((from_, "from_"), (to, "to")))
    if torch.equal(without.mean(0), having.mean(0)):
        raise OptionError("to", f"must hold other images than {str(from_)!r}")
    direction = attribute_direction(without, having, method=method)
    z = model.project(images)
    made = model.decode(torch.cat([z + each * direction for each in strength]))
    labels = ["image", *(f"{each:g}" for each in strength)]
    return _write(torch.cat([images, made]), labels, out, look)


def mix(
    run: Path,
    *,
    images: list[PictureFile],
    weights: list[NonNegativeFloat] | None = None,
    out: Output = "mixture.png",
    search: Search,
    look: Look,
    session: Session,
) -> int:
    """Mix images into one, through their latents.

    Args:
        run: Run folder, or checkpoint, of a GAN, a VAE ....
        images: The images; they are cut to squares, and take the model's size.
        weights: Share of each; default: all the same.
        out: Picture to write, or FOLDER/, or .npz.
        search: How images become latents.
        look: What pictures look like.
        session: Random numbers, and the device.

    Example:
        genimg-fast edit mix runs/00001-vae-digits --images three.png eight.png --weights 1 2
    """
    check_out(out)
    model = _Run(run, search, session)
    given = model.read(images, "images")
    z = mix_latents(model.model, model.project(given), weights=weights, labels=model.labels(len(given)))
    labels = [*(file.stem for file in images), "mixture"]
    return _write(torch.cat([given, model.decode(z)]), labels, out, look)


def _write(row: Tensor, labels: list[str], out: str, look: Look) -> int:
    """Write a row of images: as files, or in an array, one by one."""
    if form_of(out) == "picture":
        return write([Picture(images=row[None], column_labels=labels)], out, n=1, look=look)
    return write([Picture(images=row)], out, n=len(row), look=look)


def _images_of(folder: Path, option: str) -> list[Path]:
    with blaming(option, (OSError,)):
        files = images_among(list_folder(folder)[1])
    if not files:
        raise OptionError(option, f"must hold images, got {str(folder)!r} without any")
    return files
