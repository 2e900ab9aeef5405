"""What the commands that use a trained model have in common: the run, real images for it, and what is written."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from genimg_fast._fold import fold
from genimg_fast.cli.arguments import Device, blaming, find_device
from genimg_fast.data import ImageDataset, load_dataset, load_sequences
from genimg_fast.data.clips import TooFewFramesError, identify_clips
from genimg_fast.data.dataset import identify, pieces, same_data
from genimg_fast.models import BaseFrameModel
from genimg_fast.options import Folder, OptionError, Reader, Seed, integers
from genimg_fast.training import Picture, load_run, save_output
from genimg_fast.training.outputs import batch_sizes, check_output

# What --data and --out of these commands take, and --scale.
Images = Annotated[str, Reader(str, "NAME|FOLDER")]
Output = Annotated[str, Reader(str, "PATH")]
Scale = Annotated[int, integers(1, 64)]


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Where a command takes real images from.

    Args:
        data: Real images; default: what the run held out, else what it trained on.
        data_root: Where downloaded data sets are.
        download: Whether to allow torchvision to download what is missing.
    """

    data: Images | None = None
    data_root: Folder = Path("data")
    download: bool = False


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """Where a command takes real sequences from.

    Args:
        data: Real sequences: a folder of frames, a video ...; default: what the run held out, else what it trained
            on.
    """

    data: Images | None = None


@dataclass(frozen=True, kw_only=True)
class Look:
    """What pictures look like.

    Args:
        scale: Enlarge pictures N times; default: until an image has 64 pixels a side.
        plain: Whether to leave out names, borders and the margin.
    """

    scale: Scale | None = None
    plain: bool = False


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a command draws random numbers from, and runs on.

    Args:
        seed: Seed of all random numbers.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; ``auto``: a GPU if there is one.
    """

    seed: Seed = 0
    device: Device = "auto"

    def find_device(self) -> torch.device:
        """Get the device."""
        return find_device(self.device)

    def generator(self) -> torch.Generator:
        """Make a generator of random numbers, always the same."""
        return torch.Generator().manual_seed(self.seed)


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

    def caption(self, what: str = "images") -> str:
        """Say what they are, if that says more than that they are images."""
        return self.kind(what) if self.relation else ""


class _Settings(dict[str, Any]):
    """The settings of a run, which may have been started from Python and say less than a command asks."""

    def __missing__(self, key: str) -> NoReturn:
        raise OptionError("run", f"its config does not say {key!r}")


def load_with_settings(run: Path, device: str = "cpu") -> tuple[Any, dict[str, Any]]:
    """Load the model of ``RUN`` and its settings; one that is missing there is an error in one line."""
    with blaming("run"):
        model, config = load_run(run)
    return model.to(find_device(device)), _Settings(config)  # the attributes of a Module are not typed


def folded(model: Any, run: Callable[[Any], Any]) -> Any:
    """Fold a model's batch norms into the layers before them; leave one that does not take that as it is.

    Args:
        model: The model, of which the command needs nothing but the results.
        run: Calls what the command will call, the same each time.

    Returns:
        A copy, or the model.
    """
    try:
        return fold(model, run)
    except RuntimeError:
        return model


def load_real(
    model: Any,
    config: dict[str, Any],
    source: ImageSource,
    *,
    training: bool = False,
) -> Real:
    """Load the images of ``--data``, or those of the run: those held out, if there are any, or trained on.

    Args:
        model: The model of the run.
        config: Its settings.
        source: What the command was given.
        training: Whether to take what was trained on in any case.
    """
    cut = {} if source.data else {"crops": config.get("crops", 0), "seed": config.get("seed", 0)}

    def load(name: str) -> ImageDataset:
        return load_dataset(
            name,
            image_size=model.image_size,
            channels=model.c_dim,
            root=source.data_root,
            download=source.download,
            skip_broken=not source.data and config.get("skip_broken", False),
            **cut,
            **storage_of(config),
        )

    def content(found: ImageDataset) -> dict[str, Any]:
        return identify(found, found.labels)

    real = load_data(config, source.data, load, content, training=training)
    classes = config.get("classes", [])
    if getattr(model, "num_classes", 0) > 0 and set(real.dataset.class_names) <= set(classes):
        real = real._replace(dataset=real.dataset.with_classes(classes))
    if 0 < getattr(model, "num_classes", 0) < len(real.dataset.class_names):
        number = len(real.dataset.class_names)
        raise OptionError("data", f"has {number} classes, and the model knows {model.num_classes}")
    return real


def storage_of(config: dict[str, Any]) -> dict[str, Any]:
    """Get where the run had its images, for the functions that load them: its cache is good for commands, too."""
    return {name: config[name] for name in ("memory", "cache", "workers") if name in config}


def load_data(
    config: dict[str, Any],
    data: str | None,
    load: Callable[[str], Any],
    content: Callable[[Any], dict[str, Any]],
    *,
    training: bool = False,
) -> Real:
    """Load what ``--data`` names, or the data of the run: what it held out, if anything, or trained on.

    Args:
        config: Settings of the run.
        data: What ``--data`` names.
        load: Reads a source.
        content: Finds what the settings hold of the identity of what was read.
        training: Whether to take what was trained on in any case.
    """
    if data:
        with blaming("data"):
            return Real(load(data), "", data)
    other, share = None if training else config.get("val_data"), config.get("val_split")
    source = other or config["data"]
    with blaming("data"):
        dataset = load(source)
        source = source if isinstance(source, str) else " ".join(source)
        prefix = "" if other is None else "val_"
        same = same_data(config, {f"{prefix}{name}": value for name, value in content(dataset).items()}, prefix)
        if share is None:
            relation = "training" if other is None else "held-out"
            return Real(dataset, relation if same else "", source)
        if not same:  # the split would be another one
            raise OptionError(
                "run",
                f"{source} holds other images than at the training, so nobody can tell which were held out: name "
                "some with --data",
            )
        parts = dataset.split(share, seed=config["seed"])
    return Real(parts[0], "training", source) if training else Real(parts[1], "held-out", source)


def load_clips(
    model: BaseFrameModel, config: dict[str, Any], source: ClipSource, frames: int, *, seed: int, flag: str
) -> Real:
    """Load the sequences of ``--data``, or those of the run; of moving digits, those that training has not seen.

    Args:
        model: The model of the run.
        config: Its settings.
        source: What the command was given.
        frames: Number of frames in a sequence.
        seed: Seed of moving digits.
        flag: The option to blame if there are no clips of so many frames.
    """

    def load(name: str, frames: int) -> Any:
        return load_sequences(
            name, frames=frames, image_size=model.image_size, channels=model.c_dim,
            speed=tuple(config["speed"]), train=False, seed=seed, **storage_of(config),
        )  # fmt: skip

    name = source.data or config.get("val_data") or config["data"]
    with blaming("data"), blaming(flag, (TooFewFramesError,)):
        if source.data or name == "moving-digits":
            return Real(load(name, frames), "held-out" if name == "moving-digits" else "", name)
        # A split of clips depends on the number of frames that it was made for.
        real = load_data(config, None, lambda name: load(name, config["frames"]), identify_clips)
        return real._replace(dataset=real.dataset.windows(frames))


def choose(real: Real, n: int | None, *, most: int, seed: int, what: str = "images") -> Tensor:
    """Choose ``--n`` images, or sequences, at random, ``most`` by default; say what they are.

    Returns:
        Their indices.
    """
    number = len(real.dataset)
    n = min(most, number) if n is None else n
    if n > number:
        raise OptionError("n", f"must be at most {number}, the number of {what}")
    print(real.describe(n, what))
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:n]


def batches(
    real: Real, indices: Tensor, image_size: int, device: torch.device, *, frames: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Load images, or sequences, and their labels, as many at a time as there is room for."""
    parts = indices.split(batch_sizes(len(indices), image_size, frames=frames))
    for images, labels in pieces(real.dataset, parts):
        yield images.to(device), labels.to(device)


def check_out(out: str, *, moves: bool = False) -> None:
    """Complain before the work about what cannot be written."""
    with blaming("out", (OSError, ValueError)):
        check_output(out, moves=moves)


def write(pictures: Iterable[Picture], out: str, *, look: Look, **options: Any) -> int:
    """Write what was made, and say where it is; the other options are those of :func:`save_output`."""

    def made() -> Iterator[Picture]:
        # What goes wrong in here has nothing to do with --out.
        try:
            yield from pictures
        except (OSError, ValueError) as error:
            failed.append(error)
            raise

    failed: list[Exception] = []
    try:
        save_output(made(), out, scale=look.scale, plain=look.plain, **options)
    except (OSError, ValueError) as error:
        if error in failed:
            raise
        raise OptionError("out", str(error)) from error
    print(out)
    return 0
