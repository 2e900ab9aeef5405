"""Each degradation against a closed form."""

import math

import pytest
import torch
import torch.nn.functional as F

from genimg_fast.data.degradations import (
    JPEG,
    Blur,
    Compose,
    Downsample,
    GaussianNoise,
    Masked,
    PoissonNoise,
    RandomHoles,
    SaltAndPepper,
    gaussian_kernel,
    motion_kernel,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


GREY = torch.full((2, 3, 128, 128), 0.4)
N = GREY.numel()


def test_gaussian_noise_has_its_mean_and_variance_everywhere() -> None:
    noise = (GaussianNoise(50)(GREY, generator=seeded()) - GREY).double() * 255
    assert abs(noise.mean()) < 4 * 50 / math.sqrt(N)
    assert noise.square().mean().sqrt() == pytest.approx(50, rel=4 / math.sqrt(2 * N))
    assert abs(noise[..., 1:].mul(noise[..., :-1]).mean() / 2500) < 4 / math.sqrt(
        N
    )  # independent of its neighbour
    assert torch.equal(GaussianNoise(0)(GREY), GREY)


def test_poisson_noise_has_the_variance_of_counts() -> None:
    counts = (PoissonNoise(20)(GREY, generator=seeded()) * 20).double()
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-4)
    assert counts.mean() == pytest.approx(8, abs=4 * math.sqrt(8 / N))
    assert counts.var() == pytest.approx(8, rel=5 / math.sqrt(N / 2))


def test_salt_and_pepper_takes_its_share_of_whole_pixels() -> None:
    spoilt = SaltAndPepper(0.2)(GREY, generator=seeded())
    pixels = N / 3
    for level in (0, 1):
        gone = spoilt == level
        assert gone.double().mean() == pytest.approx(0.1, abs=4 * math.sqrt(0.1 / pixels))
        assert torch.equal(gone[:, 0], gone[:, 2])
    assert (spoilt[(spoilt > 0) & (spoilt < 1)] == 0.4).all()


def test_blur_is_a_convolution_with_mirrored_borders() -> None:
    image, kernel = torch.rand(2, 7, 9, dtype=torch.float64, generator=seeded()), torch.rand(3, 5).double()
    blurred = Blur(kernel)(image)

    def mirrored(i: int, n: int) -> int:
        return -i if i < 0 else 2 * (n - 1) - i if i >= n else i

    for y, x in ((0, 0), (3, 4), (6, 8)):
        value = sum(
            kernel[1 + dy, 2 + dx] * image[1, mirrored(y - dy, 7), mirrored(x - dx, 9)]
            for dy in (-1, 0, 1)
            for dx in (-2, -1, 0, 1, 2)
        )
        assert blurred[1, y, x] == pytest.approx(float(value))


def test_kernels_have_their_moments() -> None:
    for kernel in (gaussian_kernel(2.0), motion_kernel(9, 30)):
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(kernel, kernel.flip(0, 1), rtol=0, atol=1e-3)
    at = torch.arange(-6.0, 7)
    assert (gaussian_kernel(2.0).sum(0) * at.square()).sum() == pytest.approx(4, rel=0.03)  # the tails are cut off
    for angle, line in ((0, (2, slice(None))), (90, (slice(None), 2))):
        expected = torch.zeros(5, 5)
        expected[line] = 0.2
        torch.testing.assert_close(motion_kernel(5, angle), expected)
    rising = motion_kernel(9, 45)
    assert rising[0, -1] > 0  # up to the right
    assert rising[0, 0] == 0
    # An even motion along a line has the variance length² / 12 along it; pixels add theirs.
    reach = len(rising) // 2
    ys, xs = torch.meshgrid(*[torch.arange(-reach, reach + 1.0)] * 2, indexing="ij")
    assert (rising * ((xs - ys) / math.sqrt(2)).square()).sum() == pytest.approx(81 / 12, rel=0.1)


def test_downsampling_keeps_planes_and_leaves_out_what_is_over() -> None:
    ramp = torch.arange(50.0).expand(1, 48, 50) / 100 + torch.arange(48.0).view(1, 48, 1) / 100
    for factor in (2, 3, 4):
        small = Downsample(factor)(ramp)
        assert small.shape == (1, 48 // factor, 50 // factor)
        centres = torch.arange(50 // factor) * factor + (factor - 1) / 2
        expected = centres / 100 + ((torch.arange(48 // factor) * factor + (factor - 1) / 2) / 100)[:, None]
        torch.testing.assert_close(small[0, 3:-3, 3:-3], expected[3:-3, 3:-3], rtol=0, atol=1e-5)
    fine = (torch.arange(64) % 2).float().expand(1, 64, 64)  # a grid too fine for half the pixels becomes grey
    torch.testing.assert_close(Downsample(2)(fine)[0, 4:-4, 4:-4], torch.full((24, 24), 0.5), rtol=0, atol=1e-5)


# Annex K of the standard, ITU-T T.81.
LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""


@pytest.mark.parametrize("quality", [20, 75])
def test_jpeg_rounds_the_cosines_of_blocks(quality: int) -> None:
    smooth = F.interpolate(torch.rand(1, 1, 6, 6, generator=seeded()), (32, 40), mode="bicubic").clamp(0, 1)[0]
    pixels = (smooth * 255).round()
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = ((torch.tensor([int(n) for n in LUMINANCE.split()]) * scale + 50) // 100).clamp(1, 255).view(8, 8)
    k, n = torch.meshgrid(*[torch.arange(8.0)] * 2, indexing="ij")
    cosines = torch.cos(math.pi * k * (2 * n + 1) / 16) / 2
    cosines[0] /= math.sqrt(2)
    blocks = (pixels[0] - 128).unfold(0, 8, 8).unfold(1, 8, 8)
    rounded = ((cosines @ blocks @ cosines.T) / steps).round() * steps
    back = (cosines.T @ rounded @ cosines + 128).round().clamp(0, 255)
    back = back.permute(0, 2, 1, 3).reshape(32, 40)
    error = (JPEG(quality)(pixels / 255)[0] * 255 - back).abs()
    # Its cosines are integers, so a coefficient that is half of a step may be rounded to the other side.
    assert error.max() <= 2
    assert error.mean() < 0.3
    assert (JPEG(quality)(pixels / 255)[0] * 255 - pixels[0]).abs().max() > 3


def test_jpeg_takes_batches_of_colours() -> None:
    images = torch.full((2, 3, 16, 16), 128 / 255)
    torch.testing.assert_close(JPEG(50)(images), images, rtol=0, atol=1 / 255)


def test_holes() -> None:
    mask = torch.zeros(1, 4, 4)
    mask[0, 1] = 1
    kept = Masked(mask)(torch.ones(3, 4, 4))
    assert torch.equal(kept[2], 1 - mask[0])
    holes = RandomHoles(0.3, size=4)
    masks = holes.masks(GREY, generator=seeded())
    squares = 2 * 33 * 33
    assert masks.mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / squares))
    assert torch.equal(holes(GREY, generator=seeded()), GREY * (1 - masks))
    inside = masks[..., 1:] != masks[..., :-1]
    assert len(set(inside.nonzero()[:, -1].remainder(4).tolist())) == 1  # edges of squares, on a grid


def test_several_in_a_row_take_their_numbers_from_one_generator() -> None:
    image = torch.rand(3, 16, 16, generator=seeded())
    both = Compose(Downsample(2), GaussianNoise(10), SaltAndPepper(0.1))(image, generator=seeded(3))
    generator = seeded(3)
    expected = GaussianNoise(10)(Downsample(2)(image), generator=generator)
    assert torch.equal(both, SaltAndPepper(0.1)(expected, generator=generator))
    torch.manual_seed(3)
    assert torch.equal(both, Compose(Downsample(2), GaussianNoise(10), SaltAndPepper(0.1))(image))


def test_what_is_no_picture_is_refused() -> None:
    mask = torch.ones(1, 3, 4)
    for wrong, message in (
        (torch.full((1, 3, 4), 200.0), "images must be in .* noise aside, got 200 to 200"),
        (torch.ones(3, 4), "images must be of shape"),
        (torch.ones(1, 4, 3), "mask must have the picture's size, 3x4 pixels, got 4x3"),
    ):
        with pytest.raises(ValueError, match=message):
            Masked(mask)(wrong)
    for wrong in (mask.byte(), mask[0], mask.expand(3, -1, -1)):
        with pytest.raises(ValueError, match="mask must be floating-point numbers of shape"):
            Masked(wrong)


def test_what_is_out_of_range_is_refused() -> None:
    for make, message in (
        (lambda: GaussianNoise(-1), "sigma must be at least 0"),
        (lambda: PoissonNoise(0), "peak must be above 0"),
        (lambda: SaltAndPepper(1.5), "share must be from 0 to 1"),
        (lambda: RandomHoles(0.5, size=0), "size must be at least 1"),
        (lambda: Blur(torch.ones(2, 3)), "kernel must be floating-point weights of odd height and width"),
        (lambda: Blur(torch.ones(9, 9))(torch.ones(1, 3, 3)), "kernel must be smaller than twice the picture"),
        (lambda: Downsample(0), "factor must be at least 1"),
        (lambda: Downsample(9)(torch.ones(1, 8, 8)), "factor must be at most the picture's size"),
        (lambda: JPEG(101), "quality must be from 1 to 100"),
        (lambda: JPEG(50)(torch.ones(2, 8, 8)), "images must have 1 or 3 channels"),
        (lambda: gaussian_kernel(0), "sigma must be above 0"),
        (lambda: motion_kernel(0.5), "length must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    "degradation",
    [
        GaussianNoise(5), PoissonNoise(9), SaltAndPepper(0.1), Blur(torch.ones(1, 1)), Downsample(2), JPEG(50),
        Masked(torch.zeros(1, 8, 8)), RandomHoles(0.5), Compose(JPEG(50)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("images", [torch.zeros(1, 8, 8).byte(), torch.zeros(1, 8, 8).long(), torch.zeros(8, 8)])
def test_all_take_the_same_images(degradation, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^images must be (a tensor of floating-point numbers|of shape)"):
        degradation(images)
    assert degradation(torch.zeros(2, 3, 8, 8)).is_floating_point()
