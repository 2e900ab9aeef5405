import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import genimg_fast as gf
from genimg_fast.data.decode import image_suffixes


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
