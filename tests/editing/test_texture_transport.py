import pytest
import torch
from torch import Tensor

from genimg_fast.editing import synthesise


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.fixture
def bricks() -> Tensor:
    """Bricks of 12 x 6 pixels, red and of uneven brightness, with grey joints of a pixel."""
    rows, columns = torch.arange(48)[:, None], torch.arange(48)
    shifted = columns + 6 * (rows // 6 % 2)
    joint = (rows % 6 == 0) | (shifted % 12 == 0)
    red = 0.5 + 0.3 * torch.rand(8, 5, generator=seeded())[rows // 6, shifted // 12]
    return torch.where(joint, 0.8, torch.stack([red, red / 2, red / 3]))


@pytest.fixture
def clouds() -> Tensor:
    noise = torch.rand(1, 1, 40, 40, generator=seeded())
    smooth = torch.nn.functional.avg_pool2d(noise, 9, 1)[0]
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def seam(texture: Tensor) -> float:
    """Mean gradient across the seams of 2 x 2 tiles, relative to that elsewhere."""
    across = (texture - texture.roll(1, 2)).abs().mean((0, 1)), (texture - texture.roll(1, 1)).abs().mean((0, 2))
    return max(float(steps[0] / steps[1:].mean()) for steps in across)


def test_a_texture_looks_like_its_exemplar(bricks: Tensor) -> None:
    texture = synthesise(bricks, size=(54, 48), tileable=True, generator=seeded())
    assert texture.shape == (3, 48, 54)
    assert texture.dtype == torch.float32
    assert 0 <= texture.min() <= texture.max() <= 1
    torch.testing.assert_close(texture.mean((1, 2)), bricks.mean((1, 2)), rtol=0, atol=0.05)
    torch.testing.assert_close(texture.std((1, 2)), bricks.std((1, 2)), rtol=0.2, atol=0)
    # Steps from one row, or column, to the next lie where they lie in bricks: joints are a sixth of the rows.
    for dim in (1, 2):
        found, wanted = (x.diff(dim=dim).abs().mean() for x in (texture, bricks))
        torch.testing.assert_close(found, wanted, rtol=0.3, atol=0)


def test_what_is_tileable_has_no_seam(clouds: Tensor) -> None:
    assert seam(clouds) > 2
    assert seam(synthesise(clouds, size=(36, 44), generator=seeded())) > 2
    assert seam(synthesise(clouds, size=(36, 44), tileable=True, generator=seeded())) < 1.5


def test_it_is_as_random_as_the_generator_and_need_not_tile(bricks: Tensor) -> None:
    grey = bricks[:1, :32, :32].double()
    made = [synthesise(grey, size=(40, 24), generator=seeded(n)) for n in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert made[0].shape == (1, 24, 40)
    assert made[0].dtype == torch.float64


def test_bad_arguments(bricks: Tensor) -> None:
    with pytest.raises(ValueError, match="exemplar must have at least 16 pixels a side, two patches, got 48x9"):
        synthesise(bricks[:, :9], size=(64, 64))
    with pytest.raises(ValueError, match="size must be at least 16 pixels a side, got 64x8"):
        synthesise(bricks, size=(64, 8))
    with pytest.raises(ValueError, match="exemplar must be in"):
        synthesise(2 * bricks, size=(64, 64))
