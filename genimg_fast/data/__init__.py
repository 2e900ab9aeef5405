"""Image data sets in memory, and reproducible batches from them."""

from genimg_fast.data.dataset import ImageDataset, batches
from genimg_fast.data.sources import load_dataset

__all__ = ["ImageDataset", "batches", "load_dataset"]
