"""What else than the package's own data sets can be trained on."""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler

import genimg_fast as gf

PIXELS = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).repeat(1, 3, 4, 4)


def first(data: Any, batch_size: int = 10, **options: Any) -> tuple[Tensor, Tensor]:
    return next(gf.data.batches(gf.data.as_batched(data, **options), batch_size))


def test_tensors() -> None:
    labels = torch.arange(10)
    for data in (PIXELS, (PIXELS, labels), PIXELS / 127.5 - 1, (PIXELS / 127.5 - 1, labels)):
        images, found = first(data)
        assert images.dtype == torch.float32
        shown = ((images[:, 0, 0, 0] + 1) * 127.5).round().long()
        assert sorted(shown.tolist()) == list(range(10))
        assert torch.equal(found, shown if isinstance(data, tuple) else torch.zeros(10).long())
    points, _ = first(torch.rand(10, 2) * 2 - 1)
    assert points.shape == (10, 2)


def test_data_sets_of_the_package_stay_as_they_are() -> None:
    for data in (gf.data.MovingDigits(5, image_size=16), gf.data.Augmented(gf.data.ImageDataset(PIXELS))):
        assert gf.data.as_batched(data) is data


def pictures() -> list[Any]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in PIXELS]


@pytest.mark.parametrize(
    "items",
    [
        [(image, k) for k, image in enumerate(PIXELS)],
        [{"image": image, "label": k} for k, image in enumerate(pictures())],
        [[image, torch.tensor(k)] for k, image in enumerate(pictures())],
        [{"img": np.asarray(image), "cls": np.int64(k)} for k, image in enumerate(pictures())],
        TensorDataset(PIXELS / 127.5 - 1, torch.arange(10)),
        Subset(gf.data.ImageDataset(PIXELS, torch.arange(10)), range(10)),
    ],
    ids=["tuples", "dicts", "pictures", "arrays", "TensorDataset", "Subset"],
)
def test_items_of_every_kind(items: Any) -> None:
    images, labels = first(items)
    assert images.shape == (10, 3, 4, 4)
    torch.testing.assert_close(images[:, 0, 0, 0], labels / 127.5 - 1)
    assert sorted(labels.tolist()) == list(range(10))


def test_pictures_are_resized_on_request() -> None:
    items = [Image.new("L", (20 + k, 30), 10 * k) for k in range(10)]
    images, labels = first(items, image_size=8, channels=3)
    assert images.shape == (10, 3, 8, 8)
    assert labels.tolist() == [0] * 10


def test_hugging_face_datasets(tmp_path: Path) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(k) for k in range(10)])}
    )
    data = datasets.Dataset.from_dict({"image": pictures(), "label": list(range(10))}, features=features)
    images, labels = first(data)
    torch.testing.assert_close(images[:, 0, 0, 0], labels / 127.5 - 1)
    images, labels = first(data.to_iterable_dataset())
    assert labels.tolist() == list(range(10))
    torch.testing.assert_close(images[:, 0, 0, 0], labels / 127.5 - 1)


class Noisy(Dataset):
    """Items that draw random numbers of all kinds."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        drawn = random.random(), np.random.rand(), float(torch.rand(()))
        return torch.tensor([*drawn, index / 12]).view(1, 2, 2)


def test_random_transforms_are_the_same_for_any_number_of_workers_and_from_any_batch_on() -> None:
    streams = [gf.data.as_batched(Noisy(), workers=workers) for workers in (0, 1, 2)]
    state = torch.get_rng_state()
    expected, *others = (list(islice(gf.data.batches(data, 5, seed=3), 7)) for data in streams)
    resumed = list(islice(gf.data.batches(streams[2], 5, seed=3, start=4), 3))
    for batches in (*others, expected[:4] + resumed):
        for batch, (images, _) in zip(batches, expected, strict=True):
            assert torch.equal(batch[0], images)
    assert len(torch.cat([images[:, 0, 0, 0] for images, _ in expected]).unique()) == 35
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "options", [{}, {"num_workers": 2}, {"shuffle": True}, {"shuffle": True, "num_workers": 1}]
)
def test_a_data_loader_goes_on_where_it_was(options: dict[str, Any]) -> None:
    def stream(start: int, n: int) -> list[Tensor]:
        data = gf.data.as_batched(DataLoader(Noisy(), batch_size=4, **options))
        data.look()
        torch.rand(start)  # whatever else draws
        return [images for images, _ in islice(gf.data.batches(data, 64, seed=3, start=start), n)]

    whole = stream(0, 8)
    assert whole[0].shape == (4, 1, 2, 2)
    for start in (2, 3, 7):
        assert all(torch.equal(a, b) for a, b in zip(stream(start, 8 - start), whole[start:], strict=True))
    order = torch.cat([images[:, 0, 1, 1] for images in whole])
    assert torch.equal(order[:12], order[12:24]) == ("shuffle" not in options)  # another order in every epoch


@pytest.mark.parametrize("start", [1, 2, 5])
def test_a_batch_sampler_goes_on_where_it_was(start: int) -> None:
    def stream(start: int) -> list[Tensor]:
        loader = DataLoader(Noisy(), batch_sampler=BatchSampler(RandomSampler(Noisy()), 5, drop_last=False))
        data = gf.data.as_batched(loader)
        return [images for images, _ in islice(gf.data.batches(data, 64, seed=3, start=start), 7 - start)]

    with pytest.warns(UserWarning, match="a batch of 2 instead of 5 images is left out"):
        assert all(torch.equal(a, b) for a, b in zip(stream(start), stream(0)[start:], strict=True))


def test_the_seed_decides_the_order_of_a_data_loader_from_the_first_epoch_on() -> None:
    def order(seed: int, look: bool) -> list[list[int]]:
        data = gf.data.as_batched(DataLoader(TensorDataset(PIXELS, torch.arange(10)), batch_size=5, shuffle=True))
        if look:
            data.look()
        return labels_of(gf.data.batches(data, 5, seed=seed), 4)

    assert order(1, True) == order(1, False)
    assert order(1, True)[:2] != order(2, True)[:2]


def test_data_loaders_that_may_go_on_elsewhere_say_so() -> None:
    for loader in (
        DataLoader(PIXELS, batch_size=2, shuffle=True, generator=torch.Generator()),
        DataLoader(Stream(9), batch_size=2),
    ):
        with pytest.warns(
            UserWarning, match="the first 3 batches of the DataLoader are left out, but only it knows"
        ):
            gf.data.batches(gf.data.as_batched(loader), 2, start=3)


def test_a_short_last_batch_is_left_out() -> None:
    batches = gf.data.batches(gf.data.as_batched(DataLoader(PIXELS, batch_size=4)), 4)
    with pytest.warns(UserWarning, match="a batch of 2 instead of 4 images is left out in every epoch") as warned:
        sizes = [len(images) for images, _ in islice(batches, 7)]
    assert sizes == [4] * 7
    assert len(warned) == 1
    with (
        pytest.raises(ValueError, match="the DataLoader has no batch of 64"),
        pytest.warns(UserWarning, match="10"),
    ):
        next(gf.data.batches(gf.data.as_batched(DataLoader(PIXELS, batch_size=64)), 64))


def test_data_loaders_in_several_processes() -> None:
    data = TensorDataset(PIXELS, torch.arange(10))
    for loader in (
        DataLoader(data, batch_size=2),
        DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 2, drop_last=True)),
        DataLoader(Stream(9), batch_size=2),
    ):
        with pytest.raises(ValueError, match="in 2 processes a DataLoader needs a DistributedSampler"):
            gf.data.batches(gf.data.as_batched(loader), 4, part=1, parts=2)


@pytest.mark.parametrize("in_batch_sampler", [False, True])
def test_distributed_samplers_share_out_and_hear_of_the_epoch(in_batch_sampler: bool) -> None:
    data = TensorDataset(PIXELS, torch.arange(10))
    seen = []
    for part in range(2):
        sampler = DistributedSampler(data, num_replicas=2, rank=part)
        if in_batch_sampler:
            loader = DataLoader(data, batch_sampler=BatchSampler(sampler, 5, drop_last=False))
        else:
            loader = DataLoader(data, batch_size=5, sampler=sampler)
        epochs = labels_of(gf.data.batches(gf.data.as_batched(loader), 10, part=part, parts=2), 2)
        assert epochs[0] != epochs[1]
        seen += epochs[0]
    assert sorted(seen) == list(range(10))


class Stream(IterableDataset):
    def __init__(self, n: int, bad: Any = None) -> None:
        self.n, self.bad = n, bad

    def __iter__(self) -> Iterator[Any]:
        for k in range(self.n):
            yield self.bad if self.bad is not None and k == 5 else (PIXELS[k % 10], k)


def labels_of(batches: Any, n: int) -> list[list[int]]:
    return [labels.tolist() for _, labels in islice(batches, n)]


def test_streams_go_on_from_the_beginning_when_they_end() -> None:
    batches = gf.data.batches(gf.data.as_batched(Stream(7)), 3)
    assert labels_of(batches, 5) == [[0, 1, 2], [3, 4, 5]] * 2 + [[0, 1, 2]]
    parts = [gf.data.batches(gf.data.as_batched(Stream(7)), 3, part=part, parts=2) for part in range(2)]
    assert [labels_of(part, 2) for part in parts] == [[[0, 2], [3, 5]], [[1], [4]]]
    with pytest.warns(UserWarning, match="3 batches are read again to go on behind them"):
        batches = gf.data.batches(gf.data.as_batched(Stream(7)), 3, start=3)
    assert labels_of(batches, 2) == [[3, 4, 5], [0, 1, 2]]
    once = gf.data.batches(gf.data.as_batched(iter(Stream(7))), 3)
    with pytest.raises(ValueError, match="the data ended after 2 batches, and cannot be iterated over anew"):
        labels_of(once, 3)
    with pytest.raises(ValueError, match="the data ended after 7 images, fewer than a batch of 8"):
        next(gf.data.batches(gf.data.as_batched(Stream(7)), 8))
    with pytest.raises(ValueError, match="the data has no images"):
        gf.data.as_batched(Stream(0)).look()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((torch.zeros(3, 5, 4), 0), r"^image 5 of the data is torch.float32 of shape \(3, 5, 4\), and image 0 of"),
        (
            (torch.zeros(3, 4, 4), 0),
            "torch.float32 of shape .* torch.uint8 of shape .*: images must be of one size",
        ),
        (
            Image.new("RGB", (9, 9)),
            r"image 5 of the data .* of shape \(3, 9, 9\), .*as_batched\(\.\.\., image_size=",
        ),
        ("cat.png", "^image 5 of the data is of type str, and no image"),
        ({"pixels": 1, "text": 2}, "^image 5 of the data is a dict of pixels, text: none of image, img"),
        ((PIXELS[0], "cat"), "^the label of image 5 of the data is no integer"),
        ((PIXELS[0], 0.5), "^the label of image 5 of the data is no integer"),
        ((PIXELS[0], -1), "^the label of image 5 of the data must be an integer from 0 on .* with -1$"),
        (
            (PIXELS[0], torch.tensor([0, 1])),
            r"^the label of image 5 of the data .* got torch.int64 of shape \(2,\)",
        ),
        ({"image": PIXELS[0], "y": 3}, "^image 5 of the data has no label, but integers named y: rename"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), r"^image 5 of the data is torch.int64: an image is uint8, or"),
        ((), "^image 5 of the data is of type tuple, and no image"),
    ],
)
def test_bad_items(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gf.data.batches(gf.data.as_batched(Stream(7, bad)), 3)
    with pytest.raises(ValueError, match=message.replace("image 5 of", "item 5 of").replace("image 0 of", "item")):
        first([item for _, item in zip(range(7), Stream(7, bad), strict=False)], 7)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("photos/", TypeError, r"data is the name 'photos/': gf\.data\.load_dataset loads what is there"),
        (Path("x.tar"), TypeError, r"data is the name .*x\.tar"),
        (3, TypeError, "data must be a data set, a DataLoader, .* got int"),
        ({"image": PIXELS}, TypeError, "data must be a data set, .* got dict"),
        (torch.zeros(3, 4, dtype=torch.int64), ValueError, "images must be uint8, or floating-point"),
        ((PIXELS, torch.zeros(9).long()), ValueError, r"as many labels, got shapes \(10, 3, 4, 4\) and \(9,\)"),
        (PIXELS[:0], ValueError, "images must be a tensor of one or more"),
        (torch.zeros(()), ValueError, "images must be a tensor of one or more"),
        (DataLoader(["a", "b"]), ValueError, "a batch of the DataLoader is of type str, and no tensor of images"),
        (DataLoader([{"x": 1}]), ValueError, "a batch of the DataLoader is a dict of x: none of"),
        (DataLoader([]), ValueError, "the DataLoader has no batches"),
        (DataLoader([(PIXELS[0], -1)]), ValueError, "labels of a batch of the DataLoader must be .* with -1$"),
        (
            DataLoader([(PIXELS[0], torch.eye(2)[0])]),
            ValueError,
            r"must be .* got torch.float32 of shape \(1, 2\)",
        ),
        (DataLoader([{"image": PIXELS[0], "y": 3}]), ValueError, "DataLoader has no label, but integers named y"),
        ((PIXELS, -torch.ones(10).long()), ValueError, "labels must be an integer from 0 on for each image"),
    ],
)
def test_bad_data(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gf.data.as_batched(data).look()
