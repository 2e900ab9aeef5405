"""Features of sets of images, kept in files for the next time."""

import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from genimg_fast._images import check_layout, check_values
from genimg_fast.data import ImageDataset
from genimg_fast.data.dataset import content_hash
from genimg_fast.data.progress import bar
from genimg_fast.metrics.networks import FeatureNetwork

_BATCH = 256


class Features(NamedTuple):
    """What a network makes of images.

    Attributes:
        features: One vector for each image, (n, dim).
        logits: Class logits, (n, num_classes).

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.metrics.Features(torch.zeros(10, 64), torch.zeros(10, 0)).features.shape
        torch.Size([10, 64])
    """

    features: Tensor
    logits: Tensor


@torch.no_grad()
def extract_features(images: Iterable[Tensor], network: FeatureNetwork) -> Features:
    """Compute the features of images that come in batches.

    Args:
        images: Batches in [-1, 1], on the network's device if it has parameters.
        network: What makes the features.

    Returns:
        Features and logits of all images, on that device.

    Raises:
        ValueError: If images are integers, have their channels last or, on the CPU, are far outside [-1, 1].

    Example:
        >>> import torch, genimg_fast as gf
        >>> found = gf.metrics.extract_features(torch.zeros(10, 1, 32, 32).split(4), gf.metrics.RandomNetwork())
        >>> found.features.shape
        torch.Size([10, 64])
    """
    features, logits = [torch.zeros(0, network.dim)], [torch.zeros(0, network.num_classes)]
    for batch in images:
        check_layout(batch)
        check_values(batch)
        for kept, new in zip((features, logits), network(batch), strict=True):
            kept.append(new)
    return Features(*(torch.cat(kept[1:] or kept) for kept in (features, logits)))


def real_features(
    dataset: ImageDataset, network: FeatureNetwork, *, cache: str | Path | None = None, progress: bool = False
) -> Features:
    """Compute the features of a data set, or take them from the last time.

    Args:
        dataset: The images.
        network: What makes the features.
        cache: Folder of files named by a hash of the images and of the network's weights; None to compute always.
            A damaged file is replaced.
        progress: Whether to show a progress bar, if stderr is a terminal.

    Returns:
        Features and logits, on the network's device.

    Raises:
        OSError: If a file cannot be read or written.

    Example:
        >>> import torch, genimg_fast as gf
        >>> data = gf.data.ImageDataset(torch.randint(0, 256, (10, 1, 16, 16), dtype=torch.uint8))
        >>> gf.metrics.real_features(data, gf.metrics.RandomNetwork(), cache="features").features.shape
        torch.Size([10, 64])
    """
    weights = list(network.state_dict().values())
    device = next((value.device for value in weights), dataset.device)

    def compute() -> dict[str, Tensor]:
        pieces = bar(torch.arange(len(dataset)).split(_BATCH), "features of real images", "batch", progress)
        return extract_features((images.to(device) for images, _ in dataset.pieces(pieces)), network)._asdict()

    if cache is None:
        return Features(**compute())
    digest = content_hash(network.identity, dataset.images, *weights)
    found = cached(Path(cache) / f"features-{digest[:32]}.pt", {"features", "logits"}, compute)
    return Features(**{name: value.to(device) for name, value in found.items()})


def cached(file: Path, names: set[str], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Take tensors from a file if it is there and whole; else compute them and write it.

    Args:
        file: The file, named by what its content depends on.
        names: Of the tensors.
        compute: Makes them.

    Returns:
        The tensors by name; those of a file are on the CPU.

    Raises:
        OSError: If the file cannot be read or written.
    """
    if file.is_file():
        content = io.BytesIO(file.read_bytes())
        try:
            found = torch.load(content, map_location="cpu", weights_only=True)
            if found.keys() == names and all(isinstance(value, Tensor) for value in found.values()):
                return found
        except Exception:  # torch.load documents none; a damaged file raises half a dozen of them
            pass
    found = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")  # other processes may write the same file
    torch.save(found, temporary)
    temporary.replace(file)
    return found
