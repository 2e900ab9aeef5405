"""Kinds of training data: what reads them, which of its options the user has, and what a run says about them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from genimg_fast._signatures import Option, options_of
from genimg_fast.data import (
    Augmented,
    FrameFolders,
    ImageDataset,
    UnpairedImages,
    load_dataset,
    load_pairs,
    load_sequences,
    load_unpaired,
)
from genimg_fast.data.cache import CacheError
from genimg_fast.data.clips import TooFewFramesError, identify_clips
from genimg_fast.data.dataset import identify
from genimg_fast.data.decode import UnreadableError
from genimg_fast.data.sources import side_of_images, side_of_pairs
from genimg_fast.data.stored import StoredImages
from genimg_fast.data.unpaired import find_kinds
from genimg_fast.options import ConvImageSize, Folder, OptionError, Probability, Reader, about_option, integers


@dataclass(frozen=True)
class Follows:
    """The default of an option that follows from other options, or from the data.

    Args:
        words: What it is, for the help.
        value: Computes it from the options; None if that takes the data.

    Example:
        >>> from genimg_fast.training.data_kinds import Follows
        >>> Follows("all steps", lambda options: options["steps"]).value({"steps": 100})
        100
    """

    words: str
    value: Callable[[Mapping[str, Any]], Any] = lambda options: None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Data, and what there is to say about them.

    Args:
        dataset: Images, or sequences of them.
        what: Their name: "images".
        config: What decides the data, for ``config.json``.
        decided: Options that follow from the data.
        notes: Lines for the user, about these.
        more: How to get more of them from the same source, if there is a way.
    """

    dataset: Any
    what: str
    config: dict[str, Any]
    decided: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    more: str = ""


class DataKind(ABC):
    """A kind of data: a function that reads it, whose parameters are options of the user's.

    Attributes:
        reads: The function.
        names: Names of options, by the parameter's, where they differ.
        kinds: Types of parameters, where an option's is narrower.
        omits: Parameters that are no options.
        defaults: Of options, where they differ.
        augments: Whether what is read are images that :class:`genimg_fast.data.Augmented` may change.
    """

    reads: ClassVar[Callable[..., Any]]
    names: ClassVar[Mapping[str, str]] = {"name_or_path": "data", "path": "data", "channels": "c_dim"}
    kinds: ClassVar[Mapping[str, Any]] = {"channels": Literal[1, 3] | None}
    omits: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {}
    augments: ClassVar[bool] = False

    def options(self) -> dict[str, Option]:
        """Get the options, by name."""
        found = {option.name: option for option in self._parameters().values()}
        return found | (options_of(Augmented) if self.augments else {})

    def _parameters(self) -> dict[str, Option]:
        """Get the option of each parameter."""
        return {
            parameter: replace(option, name=self.names.get(parameter, parameter), positional=False)
            for parameter, option in options_of(type(self).reads, kinds=self.kinds).items()
            if parameter not in self.omits
        }

    def read(self, options: Mapping[str, Any], **arguments: Any) -> Any:
        """Call the function with the values of options; ``arguments`` stand for some of its parameters.

        Raises:
            OptionError: If the function names the option that is to blame.
            ValueError: If there are no such data, or they cannot be read.
            OSError: Likewise.
        """
        parameters = self._parameters()
        given = {parameter: options[option.name] for parameter, option in parameters.items()}
        try:
            return type(self).reads(**{**given, **arguments})
        except CacheError as error:
            raise OptionError("cache", str(error)) from error
        except UnreadableError as error:
            raise ValueError(f"{error}; --skip-broken leaves it out") from error
        except ValueError as error:
            raise about_option(error, {p: option.name for p, option in parameters.items()}) or error from None

    def sources(self, options: Mapping[str, Any]) -> list[str]:
        """Get what the data is read from: names, files or folders."""
        data = options["data"]
        return [data] if isinstance(data, str) else list(data)

    def augmented(self, dataset: Any, options: Mapping[str, Any]) -> Any:
        """Let the images of a data set change at random, if the options say so."""
        if not self.augments or not (options["flip"] or options["shift"] > 0):
            return dataset
        return Augmented(dataset, flip=options["flip"], shift=options["shift"])

    @abstractmethod
    def load(self, options: Mapping[str, Any]) -> Loaded:
        """Read what the options say; raise what :meth:`read` does."""


class Images(DataKind):
    """Images with classes."""

    reads = staticmethod(load_dataset)
    names: ClassVar = {**DataKind.names, "root": "data_root"}
    kinds: ClassVar = {
        **DataKind.kinds,
        "name_or_path": Annotated[str, Reader(str, "NAME|FOLDER")],
        "root": Folder,
        "cache": Folder | None,
    }
    defaults: ClassVar = {"data": "digits"}
    augments = True

    def load(self, options: Mapping[str, Any]) -> Loaded:
        """Read images."""
        dataset: ImageDataset = self.read(options)
        config = {
            "classes": dataset.class_names,
            **{name: options[name] for name in ("crops", "flip", "shift", "skip_broken")},
            **_storage(options),
            **identify(dataset, dataset.labels),  # shows other data when the run is resumed
        }
        more = "--crops cuts more from them" if Path(options["data"]).is_dir() else ""
        return Loaded(dataset=dataset, what="images", config=config, notes=_where(dataset), more=more)


class Pairs(DataKind):
    """Images that belong together, side by side."""

    side = 256  # pixels of either image, unless they are smaller
    reads = staticmethod(load_pairs)
    kinds: ClassVar = {
        **DataKind.kinds,
        "path": Annotated[str, Reader(str, "FOLDER")],
        "image_size": ConvImageSize | None,
        "cache": Folder | None,
    }
    defaults: ClassVar = {"image_size": Follows(f"{side}, or near to that of smaller pairs")}

    def load(self, options: Mapping[str, Any]) -> Loaded:
        """Read pairs, at a size near to theirs unless one is asked for."""
        size: int | None = options["image_size"]
        notes: tuple[str, ...] = ()
        if size is None:
            side = side_of_pairs(options["data"]) or self.side
            size = min(self.side, 2 ** max(3, round(math.log2(side))))
            if size < self.side:
                notes = (f"image size {size} instead of {self.side}: the pairs have {side} pixels a side",)
        dataset: ImageDataset = self.read(options, image_size=size)
        notes += _where(dataset)
        config = {"skip_broken": options["skip_broken"], **_storage(options), **identify(dataset)}
        return Loaded(dataset=dataset, what="images", config=config, decided={"image_size": size}, notes=notes)


class Unpaired(DataKind):
    """Images of two kinds."""

    side = 256  # pixels of either image, unless they are smaller
    reads = staticmethod(load_unpaired)
    names: ClassVar = {**DataKind.names, "paths": "data"}
    kinds: ClassVar = {
        **DataKind.kinds,
        "paths": list[Annotated[str, Reader(str, "FOLDER")]],
        "image_size": ConvImageSize | None,
        "cache": Folder | None,
    }
    defaults: ClassVar = {"image_size": Follows(f"{side}, or near to that of smaller images")}
    augments = True

    def load(self, options: Mapping[str, Any]) -> Loaded:
        """Read images of both kinds, at a size near to theirs unless one is asked for."""
        size: int | None = options["image_size"]
        notes: tuple[str, ...] = ()
        if size is None:
            try:
                kinds = find_kinds(options["data"])
            except ValueError as error:
                raise about_option(error, {"paths": "data"}) or error from None
            side = min(side_of_images(kind) or self.side for kind in kinds)
            size = min(self.side, 2 ** max(3, round(math.log2(side))))
            if size < self.side:
                notes = (f"image size {size} instead of {self.side}: the images have {side} pixels a side",)
        dataset: UnpairedImages = self.read(options, image_size=size)
        notes += tuple(dict.fromkeys(_where(dataset.a) + _where(dataset.b)))
        config = {
            **{name: options[name] for name in ("crops", "flip", "shift", "skip_broken")},
            **_storage(options),
            **dataset.identify(),
        }
        notes += (f"{len(dataset.a)} images of kind A, {len(dataset.b)} of kind B",)
        return Loaded(dataset=dataset, what="images", config=config, decided={"image_size": size}, notes=notes)

    def augmented(self, dataset: UnpairedImages, options: Mapping[str, Any]) -> UnpairedImages:
        """Let the images of either kind change at random, if the options say so."""
        return UnpairedImages(*(DataKind.augmented(self, kind, options) for kind in (dataset.a, dataset.b)))


class Sequences(DataKind):
    """Sequences of frames."""

    frames = 20  # unless all clips are shorter
    reads = staticmethod(load_sequences)
    kinds: ClassVar = {
        **DataKind.kinds,
        "name_or_path": Annotated[str, Reader(str, "NAME|FOLDER|FILE")],
        "frames": Annotated[int, integers(2, 100_000)] | None,
        "speed": list[Probability],
        "cache": Folder | None,
    }
    omits: ClassVar = frozenset({"train"})
    defaults: ClassVar = {
        "data": "moving-digits",
        "frames": Follows(f"{frames}, or all there are"),
        "speed": [0.1],
    }

    def load(self, options: Mapping[str, Any]) -> Loaded:
        """Read sequences, as long as the longest clip unless a length is asked for."""
        if len(options["speed"]) > 2:
            raise OptionError("speed", f"takes one number or two, got {len(options['speed'])}")
        speed = min(options["speed"]), max(options["speed"])
        notes: tuple[str, ...] = ()
        frames = options["frames"] or self.frames
        try:
            try:
                dataset = self.read(options, frames=frames, speed=speed)
            except TooFewFramesError as error:
                if options["frames"] is not None or error.longest < 2:
                    raise
                notes = (f"sequences of {error.longest} frames instead of {frames}: no clip is longer (--frames)",)
                frames = error.longest
                dataset = self.read(options, frames=frames, speed=speed)
        except TooFewFramesError as error:
            raise OptionError("frames", str(error)) from error
        config: dict[str, Any] = {"frames": frames, "speed": list(speed)}
        more = ""
        if isinstance(dataset, FrameFolders):  # moving digits follow from the settings
            config |= {**_storage(options), **identify_clips(dataset)}
            notes += _where(dataset)
            more = "with fewer --frames there are more of them"
        return Loaded(
            dataset=dataset, what=f"sequences of {frames} frames", config=config, decided={"frames": frames},
            notes=notes, more=more,
        )  # fmt: skip


def _where(dataset: ImageDataset | FrameFolders) -> tuple[str, ...]:
    """Say where images are that are not in memory."""
    told = f"images of {' x '.join(map(str, dataset.images.shape))} bytes are {dataset.storage}"
    return (told,) if isinstance(dataset.images, StoredImages) else ()


def _storage(options: Mapping[str, Any]) -> dict[str, Any]:
    """Get where images are to be, for the commands that use the run."""
    cache = options["cache"]
    return {
        "memory": options["memory"],
        "cache": None if cache is None else str(cache),
        "workers": options["workers"],
    }


images, pairs, sequences, unpaired = Images(), Pairs(), Sequences(), Unpaired()
