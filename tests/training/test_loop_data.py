"""What `fit` trains on, how it goes on, and how long it waits for data."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import write_images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchvision.transforms import v2
from trainers import make

import genimg_fast as gf
from genimg_fast.training import RunFolder, fit

IMAGES = torch.randint(0, 256, (40, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FLOATS = IMAGES.float() / 127.5 - 1
LABELS = torch.arange(40) % 10


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield from zip(FLOATS, LABELS.tolist(), strict=True)


def stored(folder: Path, cache: bool) -> gf.data.ImageDataset:
    if not (folder / "images").exists():
        write_images(folder / "images", 40)
    return gf.data.load_dataset(
        folder / "images",
        image_size=16,
        channels=1,
        memory=0,
        cache=folder / "cache" if cache else None,
        workers=2,
    )


DATA = {
    "bytes": lambda folder: IMAGES,
    "floats and labels": lambda folder: (FLOATS, LABELS),
    "data set": lambda folder: TensorDataset(FLOATS, LABELS),
    "data set, workers": lambda folder: gf.data.as_batched(TensorDataset(FLOATS, LABELS), workers=2),
    "loader": lambda folder: DataLoader(TensorDataset(IMAGES, LABELS), 8, shuffle=True, num_workers=1),
    "iterable": lambda folder: Stream(),
    "loader of a stream": lambda folder: DataLoader(Stream(), 8),
    "cache": partial(stored, cache=True),
    "decoded": partial(stored, cache=False),
    "augmented": lambda folder: gf.data.Augmented(
        stored(folder, False), flip=True, shift=1, transform=v2.RandomVerticalFlip()
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_every_kind_of_data_trains_and_resumes_exactly(
    name: str, tmp_path: Path, device: str, recwarn: pytest.WarningsRecorder
) -> None:
    options: dict[str, Any] = {"batch_size": 8, "log_every": 1}
    whole = make("cdcgan")
    expected = fit(whole, DATA[name](tmp_path), steps=7, **options)
    assert not [w for w in recwarn if "batches" in str(w.message)]

    run = RunFolder.create(tmp_path, name, {})
    fit(make("cdcgan"), DATA[name](tmp_path), steps=6, run=run, **options)
    torch.manual_seed(99)
    resumed = make("cdcgan")
    history = fit(resumed, DATA[name](tmp_path), steps=7, run=run, resume=True, **options)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    measured = {"images_per_s": 0, "data_wait": 0, "memory_mb": 0}
    assert [row | measured for row in history] == [row | measured for row in expected]
    warned = [str(w.message) for w in recwarn if "batches" in str(w.message)]
    assert len(warned) == (name in ("iterable", "loader of a stream"))


class Slow(Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(0.02)
        return FLOATS[index]


def test_the_share_of_time_spent_waiting(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = fit(make("autoencoder"), Slow(), steps=2, batch_size=8, progress=True)
    assert 0.5 < row["data_wait"] <= 1
    assert f", {row['data_wait']:.0%} of the time waiting for data\n" in capsys.readouterr().err
    (row,) = fit(make("autoencoder"), FLOATS, steps=5, batch_size=8)
    assert 0 < row["data_wait"] < 0.5


def test_held_out_images_of_every_kind_that_has_indices(tmp_path: Path) -> None:
    losses = []
    for validation in (IMAGES[:12], TensorDataset(FLOATS[:12]), gf.data.ImageDataset(IMAGES[:12])):
        (row,) = fit(make("autoencoder"), IMAGES, steps=1, batch_size=8, validation=validation)
        losses.append(row["val_loss"])
    assert losses[0] == losses[1] == losses[2]
    training, held_out = stored(tmp_path, False).split(0.2)
    (row,) = fit(make("autoencoder"), training, steps=1, batch_size=8, validation=held_out)
    assert row["val_loss"] > 0
    with pytest.raises(ValueError, match="validation needs images with indices, and a stream has none"):
        fit(make("autoencoder"), IMAGES, steps=1, batch_size=8, validation=Stream())

    for loader in (DataLoader(FLOATS, 8), gf.data.Augmented(DataLoader(FLOATS, 8), flip=True)):
        with pytest.raises(ValueError, match="validation needs images with indices, and a stream has none"):
            fit(make("autoencoder"), IMAGES, steps=1, batch_size=8, validation=loader)


def test_augmented_held_out_images_play_no_part_in_the_training() -> None:
    weights = []
    for validation in (None, gf.data.Augmented(IMAGES[:12], flip=True, shift=1)):
        torch.manual_seed(0)
        trainer = make("vae")
        fit(trainer, IMAGES, steps=3, batch_size=8, validation=validation, val_every=1)
        weights.append(trainer.model.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_numbers_of_double_precision_train_as_those_of_single() -> None:
    losses = [fit(make("autoencoder"), x, steps=1, batch_size=8)[0]["loss"] for x in (FLOATS, FLOATS.double())]
    assert losses[0] == losses[1]


def test_bad_data_is_one_line() -> None:
    with pytest.raises(TypeError, match="data must be a data set, a DataLoader, something iterable, a tensor or"):
        fit(make("autoencoder"), 3, steps=1)
    with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\]"):
        fit(make("autoencoder"), FLOATS * 127, steps=1)
    with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\]"):
        fit(make("autoencoder"), DataLoader(FLOATS * 127, 8), steps=1)


def test_frames_and_pictures_of_whatever_it_was(tmp_path: Path) -> None:
    """Sequences as tensors, and a run folder with pictures of a stream's images."""
    frames = torch.rand(12, 5, 1, 16, 16) * 2 - 1
    (row,) = fit(make("frame-predictor"), TensorDataset(frames), steps=2, batch_size=4)
    assert row["images_per_s"] > 0
    run = RunFolder.create(tmp_path, "stream", {})
    fit(make("vae"), Stream(), steps=1, batch_size=8, run=run)
    assert (run.path / "real.png").is_file()
