import io
import struct
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import genimg_fast as gf
from genimg_fast.data.decode import image_suffixes


def test_digits() -> None:
    data = gf.data.load_dataset("digits", image_size=32)
    images, labels = data[:]
    assert images.shape == (1797, 1, 32, 32)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert labels.tolist() == load_digits().target.tolist()
    assert data.class_names == list("0123456789")


def test_digits_in_their_own_size_are_the_original_values() -> None:
    images, _ = gf.data.load_dataset("digits", image_size=8)[:]
    torch.testing.assert_close(
        images[:, 0], torch.from_numpy(load_digits().images).float() / 8 - 1, atol=1.01 / 255, rtol=0
    )


def test_channels_are_repeated_or_weighted(tmp_path: Path) -> None:
    grey, _ = gf.data.load_dataset("digits", image_size=16)[:5]
    colour, _ = gf.data.load_dataset("digits", image_size=16, channels=3)[:5]
    assert torch.equal(colour, grey.expand(-1, 3, -1, -1))

    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    red = gf.data.load_dataset(tmp_path, image_size=8, channels=1)
    assert red.images.unique().tolist() == [76]  # 0.299 * 255


def test_flat_folder(tmp_path: Path) -> None:
    for index, size in enumerate([(20, 10), (16, 16), (9, 30)]):
        Image.new("RGB", size, (index, 100, 200)).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no image")
    data = gf.data.load_dataset(str(tmp_path), image_size=16)
    assert data.images.shape == (3, 3, 16, 16)
    assert data.images[:, :, 0, 0].tolist() == [[0, 100, 200], [1, 100, 200], [2, 100, 200]]
    assert data.labels.tolist() == [0, 0, 0]


def test_folder_with_a_subfolder_per_class(tmp_path: Path) -> None:
    for name, grey in [("dog", 10), ("cat", 20), ("cat", 30)]:
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("L", (8, 8), grey).save(tmp_path / name / f"{grey}.png")
    data = gf.data.load_dataset(tmp_path, image_size=8, channels=1)
    assert data.class_names == ["cat", "dog"]
    assert data.labels.tolist() == [0, 0, 1]
    assert data.images[:, 0, 0, 0].tolist() == [20, 30, 10]


def test_broken_and_missing_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images in folder"):
        gf.data.load_dataset(tmp_path, image_size=8)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"cannot read image .*broken\.png"):
        gf.data.load_dataset(tmp_path, image_size=8)


def huge_image() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "BMP")
    content = file.getvalue()
    return content[:18] + struct.pack("<2i", 40000, 40000) + content[26:]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("huge.bmp", huge_image()),  # DecompressionBombError
        ("new.dds", b"DDS " + struct.pack("<3I", 124, 0x1007, 4) + bytes(112)),  # NotImplementedError
    ],
)
def test_whatever_pillow_raises_names_the_file(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    with pytest.raises(ValueError, match=f"cannot read image .*{name}: ."):
        gf.data.load_dataset(tmp_path, image_size=8)
    with pytest.warns(UserWarning, match=f"skipped: cannot read image .*{name}"):
        assert len(gf.data.load_dataset(tmp_path, image_size=8, skip_broken=True)) == 1


@pytest.mark.parametrize("pixels", [np.arange(64, dtype=np.int32), np.linspace(0, 1, 64, dtype=np.float32)])
def test_pixels_of_32_bits_are_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels.reshape(8, 8)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=r"cannot read image .*deep\.tif: .* convert it to 8 or 16 bits"):
        gf.data.load_dataset(tmp_path, image_size=8)


def test_files_that_pillow_only_writes_are_no_images(tmp_path: Path) -> None:
    for name in ("a.png", "readme.pdf"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    assert len(gf.data.load_dataset(tmp_path, image_size=8)) == 1
    assert {".jpg", ".mpo", ".webp"} <= image_suffixes()
    assert not {".pdf", ".palm", ".mpg"} & image_suffixes()


@pytest.mark.parametrize("crops", [0, 4])
def test_channels_of_a_folder_are_its_files_own(crops: int, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    Image.new("LA", (8, 8), (7, 255)).save(tmp_path / "b.png")
    assert gf.data.load_dataset(tmp_path, image_size=8, crops=crops).images.shape[1] == 1
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "c.png")
    images = gf.data.load_dataset(tmp_path, image_size=8, crops=crops).images
    assert images[:3, :, 0, 0].tolist() == [[7, 7, 7], [7, 7, 7], [1, 2, 3]]


def test_mnist_from_files(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    for name in ("train", "t10k"):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 6, 28, 28) + pixels.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 6) + bytes([5, 0, 4, 1, 9, 2]))
    data = gf.data.load_dataset("mnist", image_size=28, root=tmp_path)
    assert torch.equal(data.images[:, 0], torch.from_numpy(pixels))
    assert data.labels.tolist() == [5, 0, 4, 1, 9, 2]
    assert gf.data.load_dataset("mnist", image_size=32, channels=3, root=tmp_path).images.shape == (6, 3, 32, 32)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_nothing_is_downloaded_unasked(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \w+ data set in .*--download"):
        gf.data.load_dataset(name, image_size=32, root=tmp_path)
    assert list(tmp_path.rglob("*.*")) == []


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="'nowhere' is neither a folder nor one of digits, mnist"):
        gf.data.load_dataset("nowhere", image_size=32)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        gf.data.load_dataset("digits", image_size=32, channels=2)
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        gf.data.load_dataset("digits", image_size=0)
    with pytest.raises(ValueError, match="crops are cut from photos or a folder of images, not from digits"):
        gf.data.load_dataset("digits", image_size=32, crops=100)
    with pytest.raises(ValueError, match="crops must be at least 0, got -1"):
        gf.data.load_dataset("photos", image_size=32, crops=-1)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'sklearn is needed .* pip install "genimg_fast\[train\]"'):
        gf.data.load_dataset("digits", image_size=32)


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
