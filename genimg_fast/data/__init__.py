"""Data sets of images and of sequences of images, and reproducible batches from them."""

from genimg_fast.data.augment import Augmented
from genimg_fast.data.dataset import BatchedDataset, ImageDataset, batches
from genimg_fast.data.sequences import FrameFolders, MovingDigits, load_sequences
from genimg_fast.data.sources import load_dataset, load_pairs

__all__ = [
    "Augmented",
    "BatchedDataset",
    "FrameFolders",
    "ImageDataset",
    "MovingDigits",
    "batches",
    "load_dataset",
    "load_pairs",
    "load_sequences",
]
