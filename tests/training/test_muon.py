import pytest
import torch

from genimg_fast.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (9, 9)])
def test_singular_values_come_near_to_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() <= values.max() < 1.3
    assert ((u @ v) * found).sum() / len(values) > 0.8  # the directions stay


def test_the_first_step_is_as_long_in_all_directions() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 2, 3, 3))
    gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    gradient[0] *= 100
    weight.grad = gradient.clone()
    Muon([weight], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), -0.1 * orthogonalised(gradient.flatten(1)).view_as(weight))
    assert 0.06 < weight[1].norm() < 0.13


def test_the_step_looks_ahead_along_an_average() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 3))
    optimizer = Muon([weight], lr=1.0, momentum=0.5)
    first, second = torch.eye(3), torch.ones(3, 3).triu()
    for gradient in (first, second):
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        optimizer.step()
    average = 0.5 * (0.5 * first) + 0.5 * second
    expected = orthogonalised(0.5 * second + 0.5 * average)
    torch.testing.assert_close(before - weight.detach(), expected)


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"parameters must have two dimensions, got \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


def test_a_gradient_of_zero_in_16_bits_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3).half())
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    Muon([weight]).step()
    assert torch.equal(weight, before)
