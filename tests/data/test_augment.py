from pathlib import Path

import pytest
import torch
from PIL import Image

import genimg_fast as gf


def numbered(n: int = 40) -> gf.data.ImageDataset:
    pixels = torch.arange(6 * 5).view(1, 1, 6, 5).expand(n, -1, -1, -1) * 8
    return gf.data.ImageDataset(pixels.to(torch.uint8).contiguous(), torch.arange(n))


def test_flips_half_of_the_images() -> None:
    torch.manual_seed(0)
    data = numbered()
    images, labels = gf.data.Augmented(data, flip=True)[torch.arange(40)]
    plain = data[torch.arange(40)][0]
    same = (images == plain).flatten(1).all(1)
    mirrored = (images == plain.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 8 < same.sum() < 32
    assert torch.equal(labels, torch.arange(40))


def test_shifts_by_up_to_so_many_pixels() -> None:
    torch.manual_seed(0)
    data = numbered()
    images, _ = gf.data.Augmented(data, shift=2)[torch.arange(40)]
    padded = torch.nn.functional.pad(data[torch.arange(40)][0], [2] * 4, mode="reflect")
    windows = {(top, left): padded[0, :, top : top + 6, left : left + 5] for top in range(5) for left in range(5)}
    found = {place for image in images for place, window in windows.items() if torch.equal(image, window)}
    assert all(any(torch.equal(image, window) for window in windows.values()) for image in images)
    assert len(found) > 15


def test_another_time_another_change_but_the_same_for_a_seed() -> None:
    data = gf.data.Augmented(numbered(), flip=True, shift=1)
    torch.manual_seed(1)
    first, second = data[torch.arange(40)][0], data[torch.arange(40)][0]
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(data[torch.arange(40)][0], first)


def test_bad_shift() -> None:
    with pytest.raises(ValueError, match=r"shift must lie in 0\.\.4, got 5"):
        gf.data.Augmented(numbered(), shift=5)


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


def test_broken_files_are_named(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read image .*bad\.png"):
        gf.data.load_dataset(tmp_path, image_size=8)
    with pytest.warns(UserWarning, match=r"skipped: cannot read image .*bad\.png"):
        assert len(gf.data.load_dataset(tmp_path, image_size=8, skip_broken=True)) == 1


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


def test_sixteen_bits_and_orientation(tmp_path: Path) -> None:
    ramp = torch.linspace(0, 65535, 8).round().int().repeat(8, 1).numpy().astype("uint16")
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    images = gf.data.load_dataset(tmp_path, image_size=8, channels=1).images
    assert images[0, 0, 0].tolist() == [0, 36, 72, 109, 145, 182, 218, 255]
    (tmp_path / "deep.png").unlink()
    upright = Image.new("L", (8, 8))
    upright.paste(255, (0, 0, 8, 2))
    exif = upright.getexif()
    exif[0x0112] = 3  # turned by half
    upright.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    images = gf.data.load_dataset(tmp_path, image_size=8, channels=1).images
    assert images[0, 0, 0].max() < 10
    assert images[0, 0, 7].min() > 245


def test_images_beside_folders_of_images(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    for file in ("a.png", "cats/b.png"):
        Image.new("L", (8, 8)).save(tmp_path / file)
    with pytest.raises(
        ValueError, match=r"holds images, such as a\.png, beside subfolders of images, such as cats"
    ):
        gf.data.load_dataset(tmp_path, image_size=8)
