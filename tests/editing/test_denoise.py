import importlib
import math

import pytest
import torch
from torch import Tensor

from genimg_fast.data.optional import optional_import
from genimg_fast.editing import denoise, estimate_sigma
from genimg_fast.editing.denoise import _dct, _haar, _match, _opponent, _tiles, _wavelet, _window


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photograph(name: str, *, grey: bool) -> Tensor:
    pixels = torch.from_numpy(getattr(optional_import("skimage.data"), name)()[64:160, 200:300])
    picture = pixels.float().div(255).view(*pixels.shape[:2], -1).permute(2, 0, 1)
    return picture.mean(0, keepdim=True) if grey else picture


def noisy(picture: Tensor, sigma: float) -> Tensor:
    return picture + torch.randn(picture.shape, generator=seeded()) * (sigma / 255)


def psnr(picture: Tensor, target: Tensor) -> float:
    return -10 * math.log10((picture - target).square().mean())


def test_transforms_are_what_they_are_called() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    eye = torch.eye(8, dtype=torch.float64)
    for rows in (_dct(like), _haar(8, like)):
        torch.testing.assert_close(rows @ rows.T, eye)
    torch.testing.assert_close(_opponent(3, like) @ _opponent(3, like).T, eye[:3, :3])
    wavelet = _wavelet(like)
    torch.testing.assert_close(wavelet.norm(dim=1), torch.ones(8, dtype=torch.float64))
    constant = wavelet @ torch.ones(8, dtype=torch.float64)
    assert constant[0] > 1
    assert constant[1:].abs().max() < 1e-12  # details see no constant
    # The inverse is piecewise constant: its low-pass filter is Haar's.
    smooth = torch.linalg.inv(wavelet)[:, 0]
    torch.testing.assert_close(smooth, smooth[:1].expand(8))


def test_finds_the_nearest_patches_of_its_window() -> None:
    guide = torch.rand(5, 60, 70, generator=seeded()).double()
    tile_rows, tile_columns = (_tiles(side, guide.device) for side in guide.shape[1:])
    tops = tile_rows[:, 0].sub(16).clamp(0, 60 - _window(60)).tolist()
    places, distances = _match(guide, tile_rows, tile_columns, tops, 4)
    row, column = 1, 2  # a tile, and in it the reference in its third row and second column
    y, x = int(tile_rows[row, 2]), int(tile_columns[column, 1])
    index = (row * len(tile_columns) + column) * 16 + 2 * 4 + 1
    left = max(0, min(int(tile_columns[column, 0]) - 16, 70 - _window(70)))
    window = guide[:, tops[row] : tops[row] + _window(60), left : left + _window(70)]
    every = (window - guide[:, y, x].view(-1, 1, 1)).square().sum(0)
    least, which = every.flatten().topk(4, largest=False)
    torch.testing.assert_close(distances[index, 1:], least[1:])
    expected = (tops[row] + which // _window(70)) * 70 + left + which % _window(70)
    assert torch.equal(places[index], expected)
    assert places[index, 0] == y * 70 + x  # itself


@pytest.mark.parametrize("count", [1, 2, 7, 12, 57, 505])
def test_references_are_at_most_a_stride_apart_and_reach_both_ends(count: int) -> None:
    places = _tiles(count, torch.device("cpu")).flatten()
    assert places[0] == 0
    assert places[-1] == count - 1
    assert places.diff().max() <= 3 if count > 1 else True


@pytest.mark.parametrize(("grey", "sigma", "gain"), [(True, 25, 8.0), (True, 50, 10.0), (False, 25, 9.0)])
def test_takes_noise_out_of_a_photograph_better_than_non_local_means(
    grey: bool, sigma: float, gain: float
) -> None:
    clean = photograph("astronaut", grey=grey)
    spoilt = noisy(clean, sigma)
    restored = denoise(spoilt, sigma=sigma)
    assert psnr(restored, clean) > psnr(spoilt, clean) + gain
    means = optional_import("skimage.restoration").denoise_nl_means(
        spoilt.squeeze(0).numpy(), patch_size=5, patch_distance=6, h=0.6 * sigma / 255, sigma=sigma / 255,
        channel_axis=None if grey else 0,
    )  # fmt: skip
    assert psnr(restored, clean) > psnr(torch.from_numpy(means).view_as(clean), clean) + 0.7


def test_bands_of_a_large_picture_are_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = noisy(photograph("astronaut", grey=True), 25).double()
    whole = denoise(spoilt, sigma=25)
    monkeypatch.setattr(importlib.import_module("genimg_fast.editing.denoise"), "_MOST_NUMBERS", 2**18)
    # Distances have another rounding, with another mean: equal ones may be taken in another order.
    torch.testing.assert_close(denoise(spoilt, sigma=25), whole, rtol=0, atol=1e-2)


def test_repeated_patches_are_averaged_almost_like_independent_measurements() -> None:
    tile = torch.rand(1, 8, 8, generator=seeded())
    clean = tile.repeat(1, 8, 8)
    spoilt = noisy(clean, 25)
    # 16 patches and more are alike: noise falls to a quarter and below.
    assert (denoise(spoilt, sigma=25) - clean).std() < 0.25 * (spoilt - clean).std()


def test_without_noise_nothing_changes() -> None:
    clean = photograph("astronaut", grey=False)
    assert torch.equal(denoise(clean, sigma=0), clean)
    torch.testing.assert_close(denoise(clean, sigma=0.01), clean, rtol=0, atol=1e-3)
    flat = torch.full((3, 16, 20), 0.3)
    torch.testing.assert_close(denoise(flat, sigma=25), flat, rtol=0, atol=1e-5)
    torch.testing.assert_close(denoise(flat), flat, rtol=0, atol=1e-5)  # no noise is found


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (13, 9), (33, 50)])
def test_any_size_and_precision(size: tuple[int, int]) -> None:
    spoilt = noisy(torch.full((1, *size), 0.5), 20)
    restored = denoise(spoilt, sigma=20)
    assert restored.shape == spoilt.shape
    assert (restored - 0.5).abs().mean() < 0.7 * (spoilt - 0.5).abs().mean()
    assert denoise(spoilt.half(), sigma=20).dtype == torch.float16
    torch.testing.assert_close(denoise(spoilt.double(), sigma=20).float(), restored, rtol=0, atol=2e-3)


def test_on_any_device(device: str) -> None:
    spoilt = noisy(photograph("astronaut", grey=False)[:, :32, :40], 25)
    restored = denoise(spoilt.to(device), sigma=25)
    assert restored.device.type == device
    torch.testing.assert_close(restored.cpu(), denoise(spoilt, sigma=25), rtol=0, atol=1e-2)


@pytest.mark.parametrize("sigma", [5, 10, 25, 50])
def test_the_noise_is_estimated(sigma: float) -> None:
    assert estimate_sigma(noisy(photograph("astronaut", grey=False), sigma)) == pytest.approx(sigma, abs=1.5)
    spoilt = noisy(photograph("astronaut", grey=True), sigma)
    if sigma == 25:
        assert torch.equal(denoise(spoilt), denoise(spoilt, sigma=estimate_sigma(spoilt)))


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (torch.rand(2, 9, 9), {}, r"image must be of shape \(1 or 3, height, width\)"),
        (torch.rand(1, 7, 90), {}, "image must have at least 8 pixels a side"),
        (torch.rand(3, 9, 9) * 255, {}, r"image must be in \[0, 1\], noise aside"),
        (torch.full((3, 9, 9), math.nan), {}, r"image must be in \[0, 1\]"),
        (torch.zeros(3, 9, 9, dtype=torch.uint8), {}, "image must be a tensor of floating-point numbers"),
        (torch.rand(1, 9, 9), {"sigma": -1}, "sigma must be at least 0"),
    ],
)
def test_what_is_wrong_is_said(image: Tensor, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        denoise(image, **options)
