import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.editing import quilt
from genimg_fast.editing.quilting import cut


def clouds(channels: int = 3, side: int = 64) -> Tensor:
    """A texture without period: noise, blurred."""
    noise = torch.rand(channels, 1, side + 8, side + 8, generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(F.avg_pool2d(noise, 5, 1), 5, 1)[:, 0]
    return (blurred - blurred.min()) / (blurred.max() - blurred.min())


def across_to_elsewhere(texture: Tensor) -> list[float]:
    """Mean gradient across the seams of copies side by side, over the mean elsewhere, for both directions."""
    ratios = []
    for axis in (1, 2):
        steps = (texture - texture.roll(1, axis)).abs().movedim(axis, 0)
        ratios.append(float(steps[0].mean() / steps[1:].mean()))
    return ratios


def test_a_cut_is_the_least_of_all_paths() -> None:
    differences = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    for numbers, path in zip(differences, cut(differences), strict=True):
        paths = [
            p
            for p in itertools.product(range(4), repeat=5)
            if all(abs(a - b) < 2 for a, b in itertools.pairwise(p))
        ]
        least = min(paths, key=lambda p: sum(float(numbers[row, column]) for row, column in enumerate(p)))
        assert path.tolist() == list(least)


@pytest.mark.parametrize("tileable", [False, True])
def test_a_periodic_texture_goes_on_exactly(tileable: bool) -> None:
    y, x = torch.arange(40)[:, None], torch.arange(44)
    period = torch.rand(3, 8, 6, generator=torch.Generator().manual_seed(0))
    made = quilt(
        period[:, y % 8, x % 6], size=(72, 64), patch=16, overlap=6, tileable=tileable,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert made.shape == (3, 64, 72)
    pixels = made if tileable else made[:, :-8, :-6]
    assert torch.equal(made.roll((-8, -6), (1, 2))[:, : pixels.shape[1], : pixels.shape[2]], pixels)
    assert {tuple(p) for p in made.flatten(1).T.tolist()} == {tuple(p) for p in period.flatten(1).T.tolist()}


@pytest.mark.parametrize(("width", "height"), [(100, 61), (16, 17), (33, 120)])
@pytest.mark.parametrize("tileable", [False, True])
def test_every_pixel_is_one_of_the_exemplar(width: int, height: int, tileable: bool) -> None:
    exemplar = clouds(1, 40)
    made = quilt(
        exemplar, size=(width, height), patch=16, tileable=tileable, generator=torch.Generator().manual_seed(0)
    )
    assert made.shape == (1, height, width)
    assert torch.isin(made, exemplar).all()


@pytest.mark.parametrize("size", [(128, 96), (90, 101)])
def test_a_tileable_texture_has_no_seam(size: tuple[int, int]) -> None:
    plain, tileable = (
        quilt(clouds(), size=size, patch=24, tileable=t, generator=torch.Generator().manual_seed(0))
        for t in (False, True)
    )
    assert min(across_to_elsewhere(plain)) > 1.8
    assert max(across_to_elsewhere(tileable)) < 1.3


def test_blocks_do_not_show() -> None:
    made = quilt(clouds(), size=(136, 136), patch=24, overlap=8, generator=torch.Generator().manual_seed(0))
    steps = made.diff(dim=2).abs().mean((0, 1))
    inside_of_strips = torch.arange(135) % 16 < 8
    assert steps[inside_of_strips].mean() < 1.3 * steps[~inside_of_strips].mean()


def test_a_seed_gives_one_texture_and_another_another() -> None:
    one, two, three = (
        quilt(clouds(), size=(80, 80), patch=24, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match=r"^exemplar must be at least 32x32 pixels, as a block is, got 40x31"):
        quilt(torch.rand(3, 31, 40), size=(64, 64))
    for overlap in (0, 9):
        with pytest.raises(ValueError, match=r"^overlap must be from 1 to 8, half a block, got"):
            quilt(torch.rand(3, 31, 40), size=(64, 64), patch=16, overlap=overlap)
    with pytest.raises(ValueError, match=r"^size must be at least 16x16 if tileable, as a block is, got 64x15"):
        quilt(torch.rand(3, 31, 40), size=(64, 15), patch=16, tileable=True)
    with pytest.raises(ValueError, match=r"^patch must be at least 2"):
        quilt(torch.rand(3, 31, 40), size=(64, 15), patch=1)
    with pytest.raises(ValueError, match=r"^exemplar must be in"):
        quilt(torch.rand(3, 40, 40) * 255, size=(64, 64))
