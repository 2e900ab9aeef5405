"""Data sets of images and of sequences of images, and reproducible batches from them."""

from genimg_fast.data.adapt import as_batched
from genimg_fast.data.augment import Augmented
from genimg_fast.data.clips import FrameFolders
from genimg_fast.data.dataset import BatchedDataset, BatchStream, ImageDataset, batches
from genimg_fast.data.moving_digits import MovingDigits
from genimg_fast.data.sequences import load_sequences
from genimg_fast.data.sources import load_dataset, load_pairs
from genimg_fast.data.unpaired import UnpairedImages, load_unpaired

__all__ = [
    "Augmented",
    "BatchStream",
    "BatchedDataset",
    "FrameFolders",
    "ImageDataset",
    "MovingDigits",
    "UnpairedImages",
    "as_batched",
    "batches",
    "load_dataset",
    "load_pairs",
    "load_sequences",
    "load_unpaired",
]
