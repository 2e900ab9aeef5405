from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

import genimg_fast as gf


def numbered(n: int) -> gf.data.ImageDataset:
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1)
    return gf.data.ImageDataset(images, torch.arange(n))


def test_dataset_range_and_indexing() -> None:
    data = gf.data.ImageDataset(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1))
    assert data[:][0].flatten().tolist() == pytest.approx([-1, -0.6, 1])
    image, label = data[2]
    assert image.shape == (1, 1, 1)
    assert label == 0
    assert next(iter(torch.utils.data.DataLoader(data, batch_size=3)))[0].shape == (3, 1, 1, 1)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), None, "images must be uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), None, "images must be uint8"),
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), None, "n > 0"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"labels .* shape \(2,\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 2]), "labels must lie in 0..1, got 0..2"),
    ],
)
def test_bad_dataset(images: torch.Tensor, labels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gf.data.ImageDataset(images, labels, class_names=["a", "b"])


def order(seed: int, start: int, n: int) -> list[list[int]]:
    stream = gf.data.batches(numbered(10), 4, seed=seed, start=start)
    return [labels.tolist() for _, labels in islice(stream, n)]


def test_batches_are_reproducible_and_can_start_anywhere() -> None:
    epochs = order(seed=3, start=0, n=7)
    assert order(seed=3, start=0, n=7) == epochs
    assert order(seed=4, start=0, n=7) != epochs
    for start in range(7):
        assert order(seed=3, start=start, n=7 - start) == epochs[start:]
    for first, second in zip(epochs[::2], epochs[1::2], strict=False):
        assert len({*first, *second}) == 8  # no image twice in an epoch
    assert epochs[:2] != epochs[2:4]


def test_images_keep_their_labels() -> None:
    images, labels = next(gf.data.batches(numbered(10), 10))
    torch.testing.assert_close((images.flatten() + 1) * 127.5, labels.float())


@pytest.mark.parametrize("batch_size", [0, 11])
def test_batch_size_out_of_range(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must lie in 1..10, the number of images, got {batch_size}"):
        gf.data.batches(numbered(10), batch_size)


def of_classes(classes: list[int], **options: object) -> gf.data.ImageDataset:
    """Images that show their own numbers."""
    images = torch.arange(len(classes), dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 4, 4)
    return gf.data.ImageDataset(images, torch.tensor(classes), **options)


def numbers(data: gf.data.ImageDataset) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def test_a_split_takes_its_share_of_each_class_and_depends_on_the_seed_alone() -> None:
    data = of_classes([0] * 40 + [1] * 10 + [2] * 50, class_names=["a", "b", "c"])
    training, held_out = data.split(0.2, seed=3)
    assert held_out.labels.bincount().tolist() == [8, 2, 10]
    assert sorted(numbers(training) + numbers(held_out)) == list(range(100))
    assert held_out.class_names == training.class_names == ["a", "b", "c"]
    torch.rand(7)
    assert numbers(data.split(0.2, seed=3)[1]) == numbers(held_out)
    assert numbers(data.split(0.2, seed=4)[1]) != numbers(held_out)


def test_a_split_keeps_crops_of_one_picture_together(tmp_path: Path) -> None:
    for index in range(10):
        Image.new("L", (12, 12), 20 * index).save(tmp_path / f"{index}.png")
    crops = gf.data.load_dataset(tmp_path, image_size=8, crops=50)
    training, held_out = crops.to("cpu").split(0.2)
    assert (len(training), len(held_out)) == (40, 10)
    assert len(set(numbers(held_out))) == 2
    assert not set(numbers(training)) & set(numbers(held_out))
    assert len(training.split(0.5)[0]) == 20  # a part can be split again


@pytest.mark.parametrize("share", [0, 0.01, 0.99, 1, -1, float("nan")])
def test_a_split_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"a share of .* of 10 images leaves \d+ to train on and holds \d+ out"):
        of_classes([0] * 10).split(share)


def test_classes_by_their_names() -> None:
    data = of_classes([0, 1, 1], class_names=["cat", "dog"]).with_classes(["dog", "horse", "cat"])
    assert data.labels.tolist() == [2, 0, 0]
    with pytest.raises(ValueError, match="class dog is none of cat, horse"):
        of_classes([0, 1], class_names=["cat", "dog"]).with_classes(["cat", "horse"])
