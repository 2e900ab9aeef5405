import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import genimg_fast as gf


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


def test_images_beside_folders_of_images(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    for file in ("a.png", "cats/b.png"):
        Image.new("L", (8, 8)).save(tmp_path / file)
    with pytest.raises(
        ValueError, match=r"holds images, such as a\.png, beside subfolders of images, such as cats"
    ):
        gf.data.load_dataset(tmp_path, image_size=8)


def test_broken_and_missing_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images in folder"):
        gf.data.load_dataset(tmp_path, image_size=8)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"cannot read image .*broken\.png"):
        gf.data.load_dataset(tmp_path, image_size=8)


def test_broken_files_are_named(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read image .*bad\.png"):
        gf.data.load_dataset(tmp_path, image_size=8)
    with pytest.warns(UserWarning, match=r"skipped: cannot read image .*bad\.png"):
        assert len(gf.data.load_dataset(tmp_path, image_size=8, skip_broken=True)) == 1


def test_crops_of_photographs() -> None:
    data = gf.data.load_dataset("photos", image_size=32, crops=11, seed=3)
    assert data.images.shape == (11, 3, 32, 32)
    assert data.class_names == ["china", "flower"]
    assert data.labels.tolist() == [0, 1] * 5 + [0]
    assert torch.equal(data.images, gf.data.load_dataset("photos", image_size=32, crops=11, seed=3).images)
    assert not torch.equal(data.images, gf.data.load_dataset("photos", image_size=32, crops=11).images)


def test_crops_of_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / "a.png")
    assert gf.data.load_dataset(tmp_path, image_size=10, crops=3).images.shape == (3, 3, 10, 10)
    with pytest.raises(ValueError, match=r"has 10x20 pixels, too few for crops of 11"):
        gf.data.load_dataset(tmp_path, image_size=11, crops=3)


@pytest.mark.parametrize("layout", ["side by side", "subfolders"])
def test_pairs(layout: str, tmp_path: Path) -> None:
    if layout == "side by side":
        image = Image.new("L", (16, 8), 0)
        image.paste(255, (8, 0, 16, 8))
        image.save(tmp_path / "0.png")
    else:
        for half, value in (("A", 0), ("B", 255)):
            (tmp_path / half).mkdir()
            Image.new("L", (8, 8), value).save(tmp_path / half / "0.png")
    images, _ = gf.data.load_pairs(tmp_path, image_size=4, channels=1)[:]
    assert images.shape == (1, 1, 4, 8)
    assert (images[..., :4] == -1).all()
    assert (images[..., 4:] == 1).all()


def test_pairs_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        gf.data.load_pairs(tmp_path / "x", image_size=8)
    with pytest.raises(ValueError, match="no pairs of images in"):
        gf.data.load_pairs(tmp_path, image_size=8)
    for half in "AB":
        (tmp_path / half).mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "A" / "7.png")
    with pytest.raises(ValueError, match=r"7\.png is in one of .* only"):
        gf.data.load_pairs(tmp_path, image_size=8)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (17, 8)])
def test_a_photograph_is_no_pair(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("L", size).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match=rf"one\.png is {size[0]} pixels wide and {size[1]} high, but a pair"):
        gf.data.load_pairs(tmp_path, image_size=8)


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


def test_a_folder_with_the_name_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    Image.new("L", (8, 8)).save("digits/a.png")
    with pytest.warns(UserWarning, match=r"^digits is a data set's name, and taken for that: \./digits is the"):
        assert len(gf.data.load_dataset("digits", image_size=8)) == 1797
    assert len(gf.data.load_dataset("./digits", image_size=8)) == 1


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
    with pytest.raises(ImportError, match=r'sklearn is needed .* pip install --no-build-isolation "\.\[train\]"'):
        gf.data.load_dataset("digits", image_size=32)
