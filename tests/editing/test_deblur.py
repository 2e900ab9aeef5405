import math

import pytest
import torch
from torch import Tensor

from genimg_fast.data.degradations import Blur, Compose, GaussianNoise, gaussian_kernel, motion_kernel
from genimg_fast.data.optional import optional_import
from genimg_fast.editing import deblur


def psnr(picture: Tensor, target: Tensor) -> float:
    return -10 * math.log10((picture - target).square().mean())


@pytest.fixture(scope="module")
def sharp() -> Tensor:
    pixels = torch.from_numpy(optional_import("skimage.data").astronaut()[:128, 160:288].copy())
    return pixels.float().div(255).permute(2, 0, 1)


@pytest.mark.parametrize("method", ["wiener", "richardson-lucy"])
@pytest.mark.parametrize(
    ("how", "kernel", "gain"),
    [({"gaussian": 1.5}, gaussian_kernel(1.5), 1.5), ({"motion": (9, 30)}, motion_kernel(9, 30), 2.0)],
)
def test_sharpens_a_photograph_up_to_its_border(how, kernel: Tensor, gain: float, method, sharp: Tensor) -> None:
    blurred = Compose(Blur(kernel), GaussianNoise(1))(sharp, generator=torch.Generator().manual_seed(0))
    restored = deblur(blurred, method=method, **how)
    assert psnr(restored, sharp) > psnr(blurred, sharp) + gain
    border = torch.ones_like(sharp, dtype=torch.bool)
    border[:, 8:-8, 8:-8] = False
    if method == "richardson-lucy":
        assert psnr(restored[border], sharp[border]) > psnr(blurred[border], sharp[border]) + gain


def test_a_kernel_may_be_a_picture_in_any_units(sharp: Tensor) -> None:
    kernel = motion_kernel(5, 90)
    expected = deblur(sharp, motion=(5, 90))
    torch.testing.assert_close(deblur(sharp, kernel=kernel[None] * 0.7), expected)
    torch.testing.assert_close(deblur(sharp, kernel=kernel * 0.7), expected)


def test_more_balance_holds_more_back_and_the_default_follows_the_noise(sharp: Tensor) -> None:
    noisy = GaussianNoise(8)(sharp, generator=torch.Generator().manual_seed(0))
    wiener = {"method": "wiener"}
    roughness = [deblur(noisy, gaussian=1.0, balance=b, **wiener).diff().square().mean() for b in (0.01, 0.1, 1.0)]
    assert roughness[0] > roughness[1] > roughness[2]
    assert deblur(noisy, gaussian=1.0, **wiener).diff().square().mean() < roughness[0]
    # Without noise, hardly anything is held back of what the kernel left.
    assert psnr(deblur(sharp, gaussian=0.3, balance=1e-6, **wiener), sharp) > 35


def test_one_point_is_no_blur(sharp: Tensor) -> None:
    point = torch.zeros(3, 3)
    point[1, 1] = 1
    torch.testing.assert_close(
        deblur(sharp, kernel=point, method="wiener", balance=1e-9), sharp, rtol=0, atol=1e-4
    )
    torch.testing.assert_close(deblur(sharp, kernel=point, steps=1), sharp, rtol=0, atol=1e-5)


def test_fewer_steps_for_more_noise(sharp: Tensor) -> None:
    noisy = GaussianNoise(10)(sharp, generator=torch.Generator().manual_seed(0)).clamp(0, 1)
    torch.testing.assert_close(deblur(noisy, gaussian=1.0), deblur(noisy, gaussian=1.0, steps=6))
    clean = Blur(gaussian_kernel(3.0))(sharp)
    torch.testing.assert_close(deblur(clean, gaussian=3.0), deblur(clean, gaussian=3.0, steps=50))


def test_agrees_with_scikit_image_where_there_is_no_border() -> None:
    dot = torch.zeros(1, 64, 64, dtype=torch.float64)
    dot[0, 30:34, 28:37] = 0.8
    blurred = Blur(gaussian_kernel(1.0))(dot)
    theirs = optional_import("skimage.restoration").richardson_lucy(
        blurred[0].numpy(), gaussian_kernel(1.0).double().numpy(), 10
    )
    ours = deblur(blurred, gaussian=1.0, steps=10)
    torch.testing.assert_close(ours[0], torch.from_numpy(theirs).clamp(0, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "gaussian must be given, or else motion or kernel"),
        ({"gaussian": 1.0, "motion": (3, 0)}, "motion must be left out with gaussian"),
        ({"gaussian": 0}, "gaussian must be above 0"),
        ({"motion": (0.5, 0)}, "motion must have a length of at least 1"),
        ({"kernel": torch.zeros(1, 3, 3)}, "kernel must be black but for the blurred point, and not all black"),
        ({"kernel": torch.ones(1, 4, 3)}, "kernel must have an odd width and height"),
        ({"motion": (65, 0)}, "motion must make a blur of less than half the picture, 128x128 pixels"),
        ({"gaussian": 1.0, "method": "magic"}, "method must be richardson-lucy or wiener"),
        ({"gaussian": 1.0, "method": "wiener", "balance": 0}, "balance must be above 0"),
        ({"gaussian": 1.0, "steps": 0}, "steps must be at least 1"),
    ],
)
def test_what_is_wrong_is_said(options, message: str, sharp: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        deblur(sharp, **options)
