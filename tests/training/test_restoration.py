import pytest
import torch

import genimg_fast as gf
from genimg_fast.data.degradations import JPEG, Blur, Downsample, gaussian_kernel
from genimg_fast.training import RestorationTrainer
from genimg_fast.training.restoration import _draw_neighbours, _pick


def make(task: str = "denoise", **options) -> RestorationTrainer:
    torch.manual_seed(0)
    return RestorationTrainer(gf.models.Restorer(task, c_dim=1, channels=8, depth=1), **options)


def smooth(n: int = 8, side: int = 24) -> torch.Tensor:
    small = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    return torch.nn.functional.interpolate(small, (side, side), mode="bilinear")


@pytest.mark.parametrize("task", ["denoise", "deblur", "jpeg", "inpaint", "sr2", "sr3"])
def test_learns_to_repair(task: str) -> None:
    trainer = make(task, lr=3e-3)
    images = smooth()
    before = trainer.evaluate(images, generator=torch.Generator().manual_seed(0))["loss"]
    for _ in range(40):
        trainer.step(images)
    after = trainer.evaluate(images, generator=torch.Generator().manual_seed(0))["loss"]
    assert after < before


def test_neighbours_teach_to_denoise_without_clean_images() -> None:
    trainer = make("neighbor2neighbor", lr=1e-2)
    clean = smooth(16)
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    for _ in range(130):
        trainer.step(noisy)
    with trainer.evaluation() as model:
        restored = model(noisy)
    assert (restored - clean).square().mean() < 0.6 * (noisy - clean).square().mean()


def test_neighbours_are_two_pixels_of_a_square_side_by_side() -> None:
    torch.manual_seed(0)
    images = torch.arange(2 * 3 * 8 * 10.0).view(2, 3, 8, 10)
    first, second = _draw_neighbours(images)
    squares = torch.nn.functional.pixel_unshuffle(images.view(-1, 1, 8, 10), 2)
    one, other = _pick(squares, first, images), _pick(squares, second, images)
    assert one.shape == (2, 3, 4, 5)
    apart = (one - other).abs()
    assert set(apart.unique().tolist()) == {1.0, 10.0}  # beside, or below
    places = one % 80 // 10 // 2 * 5 + one % 10 // 2  # number of the square
    assert torch.equal(places[0, 0].flatten(), torch.arange(20.0))
    assert torch.equal(apart[:, 0], apart[:, 2])  # all channels alike
    assert not torch.equal(apart[0], apart[1])


def test_spoils_as_its_degradations_do() -> None:
    images = smooth(2)
    pictures = images.add(1).div(2)

    def spoilt(task: str, **options):
        return make(task, **options).spoil(images, torch.Generator().manual_seed(0))

    torch.testing.assert_close(spoilt("jpeg", strength=(30, 30))[0], JPEG(30)(pictures) * 2 - 1)
    torch.testing.assert_close(spoilt("sr3")[0], Downsample(3)(pictures) * 2 - 1)
    blurred, levels = spoilt("deblur", strength=(1.5, 1.5))
    noise = (blurred - (Blur(gaussian_kernel(1.5))(pictures) * 2 - 1)) / 2 * 255
    assert noise.std() == pytest.approx(1, rel=0.1)
    assert levels.tolist() == [1.5, 1.5]
    noisy, levels = spoilt("denoise", strength=(20, 20))
    assert ((noisy - images) / 2 * 255).std() == pytest.approx(20, rel=0.1)
    noisy, levels = spoilt("denoise")
    assert 0 <= levels.min() < levels.max() <= 55
    holes, masks = spoilt("inpaint", strength=(0.5, 0.5))
    assert (holes[masks == 1] == 0).all()
    torch.testing.assert_close(holes[masks == 0], images[masks == 0])
    assert 0.3 < masks.mean() < 0.7


def test_the_same_seed_spoils_in_the_same_way() -> None:
    trainer = make()
    values = [trainer.evaluate(smooth(), generator=torch.Generator().manual_seed(3))["loss"] for _ in range(2)]
    assert values[0] == values[1]
    pictures = [trainer.pictures(smooth(), torch.zeros(8))["restorations"].images for _ in range(2)]
    assert list(pictures[0]) == ["degraded", "restored", "original"]
    assert all(torch.equal(pictures[0][key], pictures[1][key]) for key in pictures[0])


def test_pictures_of_other_tasks() -> None:
    images = smooth(2, side=26)
    shown = make("sr4").pictures(images, torch.zeros(2))["restorations"].images
    assert {tuple(panel.shape) for panel in shown.values()} == {(2, 1, 24, 24)}
    assert list(make("neighbor2neighbor").pictures(images, torch.zeros(2))["restorations"].images) == [
        "degraded",
        "restored",
    ]


@pytest.mark.parametrize(
    ("task", "strength", "message"),
    [
        ("sr2", (1, 2), "strength must be left out for sr2"),
        ("denoise", (30, 10), "strength must be two numbers from 0"),
        ("jpeg", (0, 10), "strength must be two numbers from 1 to 100, the lower first"),
        ("inpaint", (0.5, 2), "strength must be two numbers from 0 to 1, the lower first"),
    ],
)
def test_a_strength_that_does_not_fit_is_refused(task: str, strength, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(task, strength=strength)
