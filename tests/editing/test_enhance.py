import pytest
import torch
from torch import Tensor

from genimg_fast.data.optional import optional_import
from genimg_fast.editing import enhance
from genimg_fast.editing.enhance import _laplacian
from genimg_fast.editing.pictures import to_grey


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    pixels = torch.from_numpy(optional_import("skimage.data").chelsea()[80:208, 150:278].copy())
    return pixels.float().div(255).permute(2, 0, 1)


def test_contrast_rises_with_its_limit_and_colours_stay(photograph: Tensor) -> None:
    dull = 0.4 + 0.2 * photograph
    spread = [to_grey(enhance(dull, contrast=limit)).std() for limit in (0, 0.005, 0.05)]
    assert spread[0] < spread[1] < spread[2]
    assert torch.equal(enhance(dull, contrast=0), dull)
    to_lab = optional_import("skimage.color").rgb2lab
    before, after = (to_lab(p.permute(1, 2, 0).numpy())[..., 1:] for p in (dull, enhance(dull)))
    assert abs(before - after).mean() < 1.5
    grey = to_grey(dull)
    expected = optional_import("skimage.exposure").equalize_adapthist(grey[0].double().numpy(), clip_limit=0.02)
    torch.testing.assert_close(enhance(grey, contrast=0.02)[0], torch.from_numpy(expected).float())


def test_a_tint_is_taken_out(photograph: Tensor) -> None:
    grey = to_grey(photograph).expand(3, -1, -1) * 0.8
    tint = torch.tensor([1.2, 1.0, 0.6]).view(3, 1, 1)
    for method in ("grey-world", "white-patch"):
        balanced = enhance(grey * tint, white_balance=method, contrast=0)
        torch.testing.assert_close(balanced, balanced[:1].expand(3, -1, -1), rtol=0, atol=1e-5)
        torch.testing.assert_close(to_grey(balanced).mean(), to_grey(grey * tint).mean())


def test_white_patch_looks_at_the_brightest_pixels_only() -> None:
    lawn = torch.tensor([0.2, 0.5, 0.1]).view(3, 1, 1).expand(3, 32, 32).clone()
    lawn[:, :4, :4] = torch.tensor([0.9, 0.9, 0.9]).view(3, 1, 1)  # a white dog
    torch.testing.assert_close(enhance(lawn, white_balance="white-patch", contrast=0), lawn)
    assert not torch.allclose(enhance(lawn, white_balance="grey-world", contrast=0), lawn)


def test_exposures_become_one_picture_that_shows_both_ends(photograph: Tensor) -> None:
    light = torch.linspace(0.05, 3, 128)  # more than one exposure has
    scene = photograph * light
    dark, bright = (scene * 0.33).clamp(0, 1), (scene * 2).clamp(0, 1)
    fused = enhance(dark, exposures=[bright], contrast=0)
    target = photograph * 0.5
    for columns in (slice(0, 24), slice(-24, None)):

        def likeness(picture: Tensor, columns: slice = columns) -> Tensor:
            flat = [to_grey(p)[..., columns].flatten() for p in (picture, target)]
            return torch.stack([flat[0], flat[1]]).cov()[0, 1]  # detail, and as much of it as can be

        worse = min(likeness(dark), likeness(bright))
        assert likeness(fused) > 2 * worse
    torch.testing.assert_close(enhance(photograph, exposures=[photograph], contrast=0), photograph)


def test_a_pyramid_adds_up() -> None:
    picture = torch.rand(3, 37, 50, generator=torch.Generator().manual_seed(0))
    bands = _laplacian(picture, 4)
    assert [tuple(band.shape[1:]) for band in bands] == [(37, 50), (19, 25), (10, 13), (5, 7), (3, 4)]
    total = bands[-1]
    for band in reversed(bands[:-1]):
        total = band + torch.nn.functional.interpolate(total[None], list(band.shape[1:]), mode="bilinear")[0]
    torch.testing.assert_close(total, picture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrast": 2}, "contrast must be from 0 to 1"),
        ({"white_balance": "sunny"}, "white_balance must be none, grey-world or white-patch"),
        ({"exposures": [torch.zeros(3, 4, 4)]}, r"exposures\[0\] must have the picture's size and colours"),
    ],
)
def test_what_is_wrong_is_said(options, message: str, photograph: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        enhance(photograph, **options)
    with pytest.raises(ValueError, match="white_balance must be none for a grey picture"):
        enhance(photograph[:1], white_balance="grey-world")
