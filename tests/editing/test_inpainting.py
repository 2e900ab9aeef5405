from typing import Any

import pytest
import torch
from torch import Tensor

from genimg_fast.editing import inpaint

METHODS: dict[str, Any] = {"patchmatch": {}, "prior": {"method": "prior", "steps": 2}}


def waves(height: int = 64, width: int = 72) -> Tensor:
    """A texture with periods of 8 and 12 pixels, in colours."""
    y, x = torch.arange(height)[:, None], torch.arange(width)
    grey = 0.5 + 0.2 * torch.sin(y * torch.pi / 4) + 0.25 * torch.cos(x * torch.pi / 6 + y * torch.pi / 4)
    return torch.stack([grey, grey.square(), 1 - grey])


def hole_in(image: Tensor, top: int, left: int, side: int) -> Tensor:
    mask = torch.zeros(1, *image.shape[1:])
    mask[:, top : top + side, left : left + side] = 1
    return mask


def fill(image: Tensor, mask: Tensor, **settings) -> Tensor:
    hidden = torch.where(mask > 0.5, torch.rand((), generator=torch.Generator().manual_seed(5)), image)
    return inpaint(hidden, mask=mask, generator=torch.Generator().manual_seed(0), **settings)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("top", "left"), [(20, 25), (0, 30), (44, 52)])  # inside, at an edge, in a corner
def test_a_periodic_texture_is_completed(channels: int, top: int, left: int) -> None:
    image = waves()[:channels]
    mask = hole_in(image, top, left, 20)
    filled = fill(image, mask)
    error = (filled - image)[:, mask[0] > 0.5].square().mean().sqrt()
    assert error < 0.03


def test_an_edge_goes_on_through_the_hole() -> None:
    image = torch.zeros(1, 64, 64)
    image[:, :, 30:] = 0.8
    filled = fill(image, hole_in(image, 24, 22, 16))
    torch.testing.assert_close(filled, image, rtol=0, atol=0.02)


def test_a_slope_of_light_goes_on_without_a_seam() -> None:
    image = torch.linspace(0.1, 0.9, 64).expand(1, 64, 64).contiguous()
    filled = fill(image, hole_in(image, 20, 20, 24))
    torch.testing.assert_close(filled, image, rtol=0, atol=0.02)
    steps = (filled.diff(dim=2)[:, 20:44, [19, 43]]).abs()
    assert steps.max() < 3 * 0.8 / 63


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_missing_stays_bit_for_bit(method: str, dtype: torch.dtype) -> None:
    image = torch.rand(3, 40, 45, generator=torch.Generator().manual_seed(0), dtype=dtype)
    mask = hole_in(image, 10, 12, 9).to(dtype)
    given = image.clone()
    filled = inpaint(image, mask=mask, **METHODS[method], generator=torch.Generator().manual_seed(0))
    assert filled.dtype == dtype
    assert torch.equal(image, given)
    assert torch.equal(filled[:, mask[0] == 0], image[:, mask[0] == 0])
    assert not torch.equal(filled, image)
    assert filled.min() >= 0
    assert filled.max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_gives_one_result_and_torchs_own_numbers_are_left_alone(method: str) -> None:
    image = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = hole_in(image, 10, 12, 9)
    state = torch.random.get_rng_state()
    one, two, three = (
        inpaint(image, mask=mask, **METHODS[method], generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_what_is_hidden_does_not_count() -> None:
    image = waves()
    mask = hole_in(image, 20, 25, 16)
    a, b = (
        inpaint(image * (1 - mask) + mask * value, mask=mask, generator=torch.Generator().manual_seed(0))
        for value in (0.0, 1.0)
    )
    assert torch.equal(a, b)


def test_dilation_takes_a_rim() -> None:
    image = waves()
    mask = hole_in(image, 24, 24, 10)
    spoilt = image.clone()
    spoilt[:, 22:36, 22:36] = 0  # two pixels more on each side than the mask says
    filled = inpaint(spoilt, mask=mask, dilate=2, generator=torch.Generator().manual_seed(0))
    assert (filled - image).abs().mean() < 0.005
    torch.testing.assert_close(filled, inpaint(
        spoilt, mask=hole_in(image, 22, 22, 14), generator=torch.Generator().manual_seed(0)
    ))  # fmt: skip


def test_patches_come_from_where_the_guide_allows() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 48, 64, generator=generator) * 0.1
    image[0, :, 32:] += 0.8  # red at the right
    mask = hole_in(image, 16, 8, 14)
    guide = torch.zeros_like(mask)
    guide[:, :, 34:] = 1
    filled = inpaint(image, mask=mask, guide=guide, generator=generator)
    middle = filled[:, 20:26, 12:18]
    assert middle[0].min() > 0.6
    assert middle[1:].max() < 0.2


def test_the_prior_continues_what_is_smooth() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 3, 32), torch.linspace(0, 3, 32), indexing="ij")
    image = (0.5 + 0.3 * torch.sin(x + y))[None]
    mask = hole_in(image, 12, 12, 8)
    filled = fill(image, mask, method="prior", steps=100)
    error = (filled - image)[:, mask[0] > 0.5].square().mean().sqrt()
    assert error < 0.08


def test_nothing_missing_returns_the_picture() -> None:
    image = waves()
    with pytest.warns(UserWarning, match="mask has nothing white"):
        filled = inpaint(image, mask=torch.zeros(1, 64, 72))
    assert torch.equal(filled, image)
    assert filled is not image


def test_what_is_wrong_is_said() -> None:
    image = waves()
    mask = hole_in(image, 20, 20, 10)
    with pytest.raises(ValueError, match=r"^mask must have the picture's size, 72x64 pixels, got 71x64"):
        inpaint(image, mask=mask[:, :, 1:])
    with pytest.raises(ValueError, match=r"^guide must have the picture's size"):
        inpaint(image, mask=mask, guide=mask[:, 1:])
    with pytest.raises(ValueError, match=r"^mask must leave a part of the picture"):
        inpaint(image, mask=torch.ones(1, 64, 72))
    with pytest.raises(ValueError, match=r"^mask must leave a part of the picture"):
        inpaint(image, mask=mask, dilate=60)
    with pytest.raises(ValueError, match=r"^mask must leave 7x7 pixels"):
        inpaint(image, mask=1 - hole_in(image, 20, 20, 6))
    with pytest.raises(ValueError, match=r"^guide must leave 7x7 pixels"):
        inpaint(image, mask=mask, guide=hole_in(image, 0, 0, 6))
    with pytest.raises(ValueError, match=r"^mask must leave 7x7 pixels"):
        inpaint(image[:, :6], mask=mask[:, 20:26])
    for patch in (1, 4):
        with pytest.raises(ValueError, match=r"^patch must be an odd number of at least 3"):
            inpaint(image, mask=mask, patch=patch)
    with pytest.raises(ValueError, match=r"^steps must be at least 1, got 0"):
        inpaint(image, mask=mask, method="prior", steps=0)
    with pytest.raises(ValueError, match=r"^image must be in"):
        inpaint(image * 255, mask=mask)
