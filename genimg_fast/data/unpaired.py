"""Images of two kinds for translation between them, of which no two belong together."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genimg_fast.data.adapt import as_batched
from genimg_fast.data.dataset import batches, content_hash, identify, pieces
from genimg_fast.data.sources import load_dataset
from genimg_fast.options import NonNegativeFloat, NonNegativeInt

# What the folders of the two kinds are called: in general, and in the data sets of CycleGAN's authors.
_FOLDERS = (("A", "B"), ("trainA", "trainB"))


class UnpairedImages:
    """Images of two kinds, A | B side by side in one image as pairs are, but drawn without regard to each other.

    An epoch has as many as there are of the larger kind; each kind is shuffled by itself, and starts again when
    it is through.

    Args:
        a: Images of one kind, in whatever form :func:`as_batched` takes that has indices.
        b: Images of the other kind, of the same shape.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch, genimg_fast as gf
        >>> a, b = torch.zeros(10, 1, 8, 8), torch.ones(6, 1, 8, 8)
        >>> images, _ = next(gf.data.batches(gf.data.UnpairedImages(a, b), 4))
        >>> images.shape
        torch.Size([4, 1, 8, 16])
    """

    def __init__(self, a: Any, b: Any) -> None:
        self.a: Any = as_batched(a)
        self.b: Any = as_batched(b)
        first = torch.zeros(1, dtype=torch.int64)
        both: list[Any] = [self.a, self.b]
        shapes = [tuple(each[first][0].shape[1:]) for each in both]
        if shapes[0] != shapes[1]:
            raise ValueError(f"images of both kinds must have the same shape, got {shapes[0]} and {shapes[1]}")

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.a.device

    def __len__(self) -> int:
        return max(len(self.a), len(self.b))

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        """Get images, number k of either kind side by side.

        Args:
            index: One index, a slice, or a tensor of indices on the data's device.

        Returns:
            float32 images in [-1, 1], of shape (n, channels, height, 2 * width), and zeros for labels; without the
            first dimension for a single index.
        """
        # Negative ones, masks and those out of range are what they are of the whole, not of either kind.
        index = torch.arange(len(self), device=self.device)[index]
        return _side_by_side(*(each[index % len(each)] for each in (self.a, self.b)))

    def pieces(self, indices: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Get images piece by piece, read ahead where they are not in memory."""
        indices = list(indices)
        halves = (pieces(each, [index % len(each) for index in indices]) for each in (self.a, self.b))
        return (_side_by_side(*both) for both in zip(*halves, strict=True))

    def batches(
        self, batch_size: int, *, seed: int = 0, start: int = 0, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over batches, each kind shuffled by itself; see :func:`batches`."""
        # Two seeds, or kinds of one size would keep their pairs for ever.
        halves = [
            batches(each, batch_size, seed=of_kind, start=start, part=part, parts=parts)
            for each, of_kind in ((self.a, 2 * seed), (self.b, 2 * seed + 1))
        ]
        return (_side_by_side(*both) for both in zip(*halves, strict=True))

    def split(self, share: float, *, seed: int = 0) -> tuple["UnpairedImages", "UnpairedImages"]:
        """Hold a share of the images of either kind out; see :meth:`ImageDataset.split`."""
        kept, held_out = zip(*(each.split(share, seed=seed) for each in (self.a, self.b)), strict=True)
        return UnpairedImages(*kept), UnpairedImages(*held_out)

    def identify(self) -> dict[str, Any]:
        """Get what a run notes of its data: see :func:`genimg_fast.data.dataset.identify`."""
        found = [identify(each) for each in (self.a, self.b)]
        hashes, files = ([each[name] for each in found] for name in ("sha256", "files"))
        return {
            "sha256": None if None in hashes else content_hash(*hashes),
            "files": None if None in files else [each for names in files for each in names],
        }

    @property
    def storage(self) -> str:
        """Where the images are, in words."""
        both = dict.fromkeys(each.storage for each in (self.a, self.b))
        return "; ".join(both)

    def to(self, device: torch.device | str) -> "UnpairedImages":
        """Get the same data on another device."""
        return UnpairedImages(self.a.to(device), self.b.to(device))


def _side_by_side(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([a[0], b[0]], -1), torch.zeros_like(a[1])


def load_unpaired(
    paths: str | Path | Sequence[str | Path],
    *,
    image_size: int,
    channels: int | None = None,
    crops: int = 0,
    seed: int = 0,
    skip_broken: bool = False,
    memory: NonNegativeFloat | None = None,
    cache: str | Path | None = "cache",
    workers: NonNegativeInt | None = None,
) -> UnpairedImages:
    """Load images of two kinds, A and B, of which no two belong together.

    Args:
        paths: Two folders, A and B, each what :func:`load_dataset` reads, classes apart; or one folder with the
            subfolders ``A`` and ``B``, or ``trainA`` and ``trainB``.
        image_size: Height and width, in pixels.
        channels: 1 (grey) or 3 (RGB); by default, 1 if all images are grey.
        crops: Number of random crops to take of either kind; 0 for whole images.
        seed: Decides where they are.
        skip_broken: Whether to leave out, with a warning that names it, a file that cannot be read.
        memory: GB that decoded images of either kind may take in memory; by default a quarter of the machine's,
            shared by the processes on it.
        cache: Folder for decoded images that take more than that; none: decode them whenever they are needed.
        workers: Processes that decode, and read ahead; by default one for each processor, up to 8.

    Returns:
        The images, on the CPU.

    Raises:
        ValueError: If there are not two folders, or images of one kind cannot be loaded.
        OSError: If a folder cannot be read, or the cache cannot be written.

    Example:
        >>> from pathlib import Path
        >>> import torch, genimg_fast as gf
        >>> for kind in ("horses", "zebras"):
        ...     Path(kind).mkdir()
        ...     gf.training.save_grid(torch.zeros(1, 1, 16, 16), f"{kind}/0.png", plain=True)
        >>> gf.data.load_unpaired(["horses", "zebras"], image_size=16)[torch.tensor([0])][0].shape
        torch.Size([1, 1, 16, 32])
    """
    kinds = find_kinds(paths)

    def load(path: str | Path, channels: int | None) -> Any:
        return load_dataset(
            path, image_size=image_size, channels=channels, crops=crops, seed=seed, skip_broken=skip_broken,
            memory=memory, cache=cache, workers=workers,
        )  # fmt: skip

    found = [load(kind, channels) for kind in kinds]
    most = max(each.images.shape[1] for each in found)
    return UnpairedImages(
        *(
            each if each.images.shape[1] == most else load(kind, most)
            for kind, each in zip(kinds, found, strict=True)
        )
    )


def find_kinds(paths: str | Path | Sequence[str | Path]) -> tuple[str | Path, str | Path]:
    """Find the sources of the two kinds that :func:`load_unpaired` is given.

    Raises:
        ValueError: If they are not two.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if len(given) == 2:
        return given[0], given[1]
    if len(given) != 1:
        raise ValueError(f"paths must be two folders, or one with two, got {len(given)}")
    if not Path(given[0]).is_dir():
        raise ValueError(f"there is no folder {given[0]}")
    found = kinds_in(given[0])
    if found is None:
        raise ValueError(f"{given[0]} has no subfolders A and B, or trainA and trainB: name two folders, A and B")
    return found


def kinds_in(folder: str | Path) -> tuple[Path, Path] | None:
    """Find the subfolders of a folder that hold images of two kinds, if it has them."""
    pairs = [(Path(folder) / a, Path(folder) / b) for a, b in _FOLDERS]
    return next(((a, b) for a, b in pairs if a.is_dir() and b.is_dir()), None)
