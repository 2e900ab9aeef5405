import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genimg_fast.editing import before_and_after, load_picture, save_picture


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("ending", [".png", ".webp"])
def test_a_picture_is_read_as_it_was_written(channels: int, ending: str, tmp_path: Path) -> None:
    picture = torch.linspace(0, 1, channels * 30, dtype=torch.float64).view(channels, 5, 6)
    save_picture(picture, tmp_path / f"a{ending}")
    read = load_picture(tmp_path / f"a{ending}")
    assert read.dtype == torch.float32
    assert read.min() >= 0
    if ending == ".png":
        torch.testing.assert_close(read.double(), (picture * 255).round() / 255, rtol=0, atol=1e-7)
    else:
        assert len(read) in (channels, {1: 3, 2: 4}.get(channels))  # WebP has no grey


def test_grey_of_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert load_picture(tmp_path / "a.png").tolist() == [[[0, pytest.approx(1 / 255), 1]]]


def test_palette_bits_orientation_and_needless_alpha(tmp_path: Path) -> None:
    Image.new("P", (4, 2), 0).save(tmp_path / "p.png")
    assert load_picture(tmp_path / "p.png").shape == (3, 2, 4)
    Image.new("1", (4, 2), 1).save(tmp_path / "1.png")
    assert load_picture(tmp_path / "1.png").tolist() == [[[1.0] * 4] * 2]
    Image.new("RGBA", (4, 2), (10, 20, 30, 255)).save(tmp_path / "a.png")
    assert load_picture(tmp_path / "a.png").shape == (3, 2, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(tmp_path / "turned.png", exif=exif)
    assert load_picture(tmp_path / "turned.png").shape == (3, 4, 2)


def test_what_is_wrong_with_files_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"cannot read image .*a\.png"):
        load_picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="does not end like an image file"):
        save_picture(torch.zeros(1, 2, 2), tmp_path / "a.xyz")
    with pytest.raises(ValueError, match="transparent"):
        save_picture(torch.zeros(4, 2, 2), tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"channels are last, take permute\(2, 0, 1\)"):
        save_picture(torch.zeros(5, 5, 3), tmp_path / "a.png")
    with pytest.raises(ValueError, match="picture must be a tensor of floating-point numbers"):
        save_picture(torch.zeros(3, 5, 5, dtype=torch.uint8).int(), tmp_path / "a.png")


def test_before_and_after_on_white() -> None:
    clear = torch.zeros(2, 3, 4)
    both = before_and_after(clear, torch.zeros(3, 6, 8))
    assert both.shape == (3, 6, 8 + 4 + 8)
    assert (both[:, :, :12] == 1).all()
    assert (both[:, :, 12:] == 0).all()
    small = before_and_after(torch.zeros(1, 3, 4), torch.zeros(3, 6, 8), same_height=False)
    assert small.shape == (3, 6, 4 + 4 + 8)
    assert (small[:, 3:, :4] == 1).all()
    assert (small[:, :3, :4] == 0).all()


def test_a_large_picture_that_the_user_names_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_picture(torch.zeros(1, 20, 30), tmp_path / "large.png")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 400)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_picture(tmp_path / "large.png").shape == (1, 20, 30)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 200)
    with pytest.raises(ValueError, match=r"^cannot read image .*large.png: Image size \(600 pixels\) exceeds"):
        load_picture(tmp_path / "large.png")
