import pytest
import torch
from torch import Tensor

from genimg_fast.losses import SlicedWassersteinLoss
from genimg_fast.losses.patches import quantiles, random_filters, sort


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=seeded(seed))


def test_on_a_line_it_is_the_wasserstein_distance(device: str) -> None:
    # Patches of one grey pixel have one dimension: W2 of two sets is the mean squared difference when sorted.
    output, target = torch.tensor([[0.0, 3.0, 1.0, 2.0]]), torch.tensor([[9.0, 7.0, 8.0, 6.0]])
    given = [x.view(1, 1, 2, 2).double().to(device) for x in (output, target)]
    assert SlicedWassersteinLoss(1, num_projections=3)(*given).item() == pytest.approx(36)
    assert SlicedWassersteinLoss(1)(given[0], given[0].flip(3)).item() == 0


def test_of_two_gaussians_it_is_the_formula() -> None:
    # W2^2 = (difference of means)^2 + (difference of deviations)^2, whatever the numbers of points
    levels = [(torch.arange(n * n, dtype=torch.float64) + 0.5) / n**2 for n in (100, 141)]
    output, target = (torch.special.ndtri(x).view(1, 1, int(len(x) ** 0.5), -1) for x in levels)
    loss = SlicedWassersteinLoss(1)(0.5 * output + 1, 2 * target - 1)
    assert loss.item() == pytest.approx(2**2 + 1.5**2, rel=2e-3)


def test_a_shift_has_its_length_divided_among_the_directions() -> None:
    # Adding s to all of d dimensions moves the set by s sqrt(d); a random direction sees 1/d of its square.
    given = images(2, 3, 8, 8)
    loss = SlicedWassersteinLoss(3, num_projections=27, generator=seeded())  # a whole basis
    assert loss(given + 0.5, given).item() == pytest.approx(0.25)


def test_filters_are_orthonormal_and_repeat_beyond_the_dimensions() -> None:
    filters = random_filters(3, 2, 20, seeded()).flatten(1)
    torch.testing.assert_close(filters[:12] @ filters[:12].T, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(filters.norm(dim=1), torch.ones(20, dtype=torch.float64))
    many = torch.cat([random_filters(1, 1, 1, seeded(n)) for n in range(200)])
    assert 60 < (many > 0).sum() < 140


def test_gradients_and_sizes() -> None:
    given = images(2, 1, 5, 6).requires_grad_()
    target = images(1, 1, 7, 4, seed=1)
    torch.autograd.gradcheck(
        lambda x: SlicedWassersteinLoss(3, num_projections=4, generator=seeded())(x, target), given
    )
    torch.autograd.gradgradcheck(
        lambda x: SlicedWassersteinLoss(3, num_projections=4, generator=seeded())(x, target), given
    )


def test_sorting_is_torchs(device: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        given = torch.randn(2, 3, 50, generator=seeded()).to(device, dtype)
        assert torch.equal(sort(given), given.sort(-1).values)
    ordered = torch.arange(8.0).view(1, 1, 8)
    assert quantiles(ordered, 4).tolist() == [[[0.5, 2.5, 4.5, 6.5]]]


def test_it_is_as_random_as_the_generator() -> None:
    output, target = images(1, 3, 9, 9), images(1, 3, 9, 9, seed=1)
    first, second, other = (SlicedWassersteinLoss(generator=seeded(n))(output, target) for n in (0, 0, 1))
    assert first == second != other
    torch.testing.assert_close(first, other, rtol=0.5, atol=0)
    half = SlicedWassersteinLoss(generator=seeded(0))(output.bfloat16(), target.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), first, rtol=0.05, atol=0)


def test_descent_makes_noise_like_the_target() -> None:
    target = (torch.arange(24) // 3 % 2).float().expand(1, 1, 24, 24)  # stripes
    output = torch.rand(1, 1, 24, 24, generator=seeded()).requires_grad_()
    loss = SlicedWassersteinLoss(5, num_projections=25, generator=seeded())
    before = loss(output, target).item()
    optimizer = torch.optim.Adam([output], 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss(output, target).backward()
        optimizer.step()
    assert loss(output, target).item() < before / 4


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="patch_size and num_projections must be at least 1, got 0 and 64"):
        SlicedWassersteinLoss(0)
    loss = SlicedWassersteinLoss(7)
    with pytest.raises(ValueError, match="target must be at least of a patch's size, 7 pixels, got 9x5"):
        loss(images(1, 3, 8, 8), images(1, 3, 5, 9))
    with pytest.raises(ValueError, match="target must have the channels of output"):
        loss(images(2, 3, 8, 8), images(2, 1, 8, 8))
    with pytest.raises(ValueError, match="output must be a tensor of floating-point numbers"):
        loss(images(2, 3, 8, 8).int(), images(2, 3, 8, 8))
