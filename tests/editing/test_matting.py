"""Alpha of trimaps, what its equations are, and pictures made of it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genimg_fast.editing import composite, cut_out, estimate_foreground, matte, matting_errors, multigrid


def scene(height: int = 40, width: int = 52, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A picture of noise with a soft disc before other noise, its alpha, and a trimap; in float64."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = torch.hypot(y - height / 2.0, x - width / 2.0).double()
    alpha = (1 - (distance - height / 4) / 8).clamp(0, 1)[None]
    near, far = (torch.rand(3, height, width, generator=generator, dtype=torch.float64) / 4 for _ in range(2))
    image = alpha * (0.7 + near) + (1 - alpha) * far
    trimap = torch.full_like(alpha, 0.5)
    trimap[:, distance < height / 4 - 3] = 1
    trimap[:, distance > height / 4 + 11] = 0
    return image, alpha, trimap


def import_pymatting() -> Any:
    threads = torch.get_num_threads()
    pymatting = pytest.importorskip("pymatting")
    torch.set_num_threads(threads)  # numba changes it
    return pymatting


def as_array(picture: Tensor) -> np.ndarray:
    """As pymatting takes pictures, and trimaps."""
    return (picture[0] if len(picture) == 1 else picture.permute(1, 2, 0)).contiguous().numpy()


def dense_closed_form(image: Tensor, trimap: Tensor, epsilon: float) -> Tensor:
    """Alpha by the definition: the energy of each window, in a dense matrix."""
    _, height, width = image.shape
    laplacian = torch.zeros(height * width, height * width, dtype=torch.float64)
    for row in range(height - 2):
        for column in range(width - 2):
            colours = image[:, row : row + 3, column : column + 3].reshape(3, 9).T
            affine = torch.cat([colours, torch.ones(9, 1)], 1)
            # What least squares leave, with epsilon times the squared factors of the colours.
            ridge = torch.diag(torch.tensor([epsilon] * 3 + [0.0], dtype=torch.float64))
            left = torch.eye(9) - affine @ torch.linalg.solve(affine.T @ affine + ridge, affine.T)
            rows = torch.arange(row, row + 3)[:, None] * width + torch.arange(column, column + 3)
            laplacian[rows.flatten()[:, None], rows.flatten()] += left
    foreground, unknown = (trimap >= 0.9).flatten().double(), (trimap == 0.5).flatten()
    alpha = foreground.clone()
    rhs = -(laplacian[unknown][:, ~unknown] @ foreground[~unknown])
    alpha[unknown] = torch.linalg.solve(laplacian[unknown][:, unknown], rhs)
    return alpha.view_as(trimap).clamp(0, 1)


@pytest.mark.parametrize("epsilon", [1e-7, 1e-3])
@pytest.mark.parametrize("size", [(30, 33), (32, 32)])
def test_closed_form_minimises_the_energy_of_windows(size: tuple[int, int], epsilon: float) -> None:
    image, _, trimap = scene(*size)
    expected = dense_closed_form(image, trimap, epsilon)
    assert expected[trimap == 0.5].std() > 0.1
    found = matte(image, trimap=trimap, epsilon=epsilon, tolerance=1e-10)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_closed_form_agrees_with_pymatting() -> None:
    pymatting = import_pymatting()
    for image, _, trimap in (scene(), scene(61, 90, seed=1)):
        expected = pymatting.estimate_alpha_cf(as_array(image), as_array(trimap))
        np.testing.assert_allclose(matte(image, trimap=trimap)[0], expected, rtol=0, atol=1e-3)


def test_knn_agrees_with_pymatting() -> None:
    pymatting, linalg = import_pymatting(), pytest.importorskip("scipy.sparse.linalg")
    image, _, trimap = scene(30, 36)
    # Its conjugate gradients see a matrix that is not symmetric; the equations are solved exactly here.
    matrix, rhs = pymatting.make_linear_system(pymatting.knn_laplacian(as_array(image)), as_array(trimap))
    expected = linalg.spsolve(matrix.tocsc(), rhs).reshape(30, 36)
    unknown = (trimap[0] == 0.5).numpy()
    found = matte(image, trimap=trimap, method="knn")[0].numpy()
    np.testing.assert_allclose(found[unknown], expected[unknown].clip(0, 1), rtol=0, atol=1e-3)
    assert (found[~unknown] == trimap[0].numpy()[~unknown]).all()


def test_a_flat_foreground_and_background_give_the_true_alpha() -> None:
    _, alpha, trimap = scene()
    near, far = (torch.tensor(c, dtype=torch.float64).view(3, 1, 1) for c in ([0.9, 0.2, 0.1], [0.1, 0.3, 0.8]))
    image = alpha * near + (1 - alpha) * far
    torch.testing.assert_close(matte(image, trimap=trimap), alpha, rtol=0, atol=1e-3)
    torch.testing.assert_close(matte(image[:1], trimap=trimap), alpha, rtol=0, atol=1e-3)  # grey
    torch.testing.assert_close(matte(image.float(), trimap=trimap.float()), alpha.float(), rtol=0, atol=1e-3)


def test_multigrid_needs_few_cycles_for_colours_and_solves_to_the_tolerance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, _, trimap = scene(128, 128)
    cycle, depths = multigrid._Cycle.__call__, []

    def counted(self, rhs, depth=0):
        depths.append(depth)
        return cycle(self, rhs, depth)

    monkeypatch.setattr(multigrid._Cycle, "__call__", counted)
    coarse = matte(image, trimap=trimap)
    assert max(depths) >= 2  # levels
    assert depths.count(0) <= 40
    fine = matte(image, trimap=trimap, tolerance=1e-11)
    torch.testing.assert_close(coarse, fine, rtol=0, atol=1e-3)
    assert torch.equal(coarse, matte(image, trimap=trimap))  # the same from run to run


def test_known_pixels_keep_their_value() -> None:
    image, _, trimap = scene()
    trimap[trimap == 1] = 0.93
    trimap[trimap == 0] = 0.08
    alpha = matte(image, trimap=trimap)
    assert (alpha[trimap == 0.93] == 1).all()
    assert (alpha[trimap == 0.08] == 0).all()
    halves = torch.zeros(1, 5, 6)
    halves[..., 3:] = 1
    assert torch.equal(matte(torch.rand(3, 5, 6), trimap=halves), halves)  # nothing is unknown


@pytest.mark.parametrize("method", ["closed-form", "knn"])
def test_tiny_pictures(method: str) -> None:
    trimap = torch.tensor([[0.0, 0.5, 1.0]]).expand(3, 3)[None]
    alpha = matte(trimap, trimap=trimap, method=method)
    torch.testing.assert_close(alpha[0, :, 1], torch.full((3,), 0.5), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("size", "trimap", "message"),
    [
        ((20, 30), torch.full((1, 20, 31), 0.5), "trimap must have the picture's size, 30x20 pixels, got 31x20"),
        ((20, 30), torch.full((1, 20, 30), 0.5), r"trimap must .* foreground \(0.9 or more\)"),
        ((20, 30), torch.ones(1, 20, 30), r"trimap must .* background \(0.1 or less\)"),
        ((20, 30), torch.zeros(3, 20, 30), r"trimap must be of shape \(1, height, width\)"),
        ((2, 30), torch.zeros(1, 2, 30), "image must have at least 3 pixels a side, got 30x2"),
    ],
)
def test_what_does_not_fit_is_refused(size: tuple[int, int], trimap: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matte(torch.rand(3, *size), trimap=trimap)


def test_foreground_of_flat_colours_is_found() -> None:
    _, alpha, _ = scene()
    near, far = (torch.tensor(c, dtype=torch.float64).view(3, 1, 1) for c in ([0.9, 0.2, 0.1], [0.1, 0.3, 0.8]))
    foreground, background = estimate_foreground(alpha * near + (1 - alpha) * far, alpha=alpha)
    assert ((foreground - near).abs() * (alpha > 0.05)).max() < 0.02
    assert ((background - far).abs() * (alpha < 0.95)).max() < 0.02


def test_foreground_is_at_least_as_near_as_pymattings() -> None:
    pymatting = import_pymatting()
    image, alpha, _ = scene(64, 80)
    mixed = (alpha > 0) & (alpha < 1)
    near = 0.825  # the mean of the noise
    theirs = torch.from_numpy(pymatting.estimate_foreground_ml(as_array(image), as_array(alpha))).permute(2, 0, 1)
    ours, _ = estimate_foreground(image, alpha=alpha)
    error = [((found - near).abs() * alpha)[:, mixed[0]].mean() for found in (ours, theirs, image)]
    assert error[0] <= error[1] < error[2] / 2


def test_foreground_and_background_make_the_picture() -> None:
    image, alpha, _ = scene()
    foreground, background = estimate_foreground(image, alpha=alpha)
    made = composite(foreground, alpha=alpha, background=background)
    assert (made - image).abs().mean() < 0.01


def test_cut_out() -> None:
    image, _, trimap = scene()
    cut = cut_out(image, trimap=trimap)
    alpha = cut_out(image, trimap=trimap, only_alpha=True)
    assert torch.equal(cut[3:], alpha)
    far = torch.rand(1, 90, 30, dtype=torch.float64)  # grey; covers the picture when it is 156 x 52
    before = cut_out(image, trimap=trimap, background=far)
    assert before.shape == image.shape
    assert torch.equal(before[:, alpha[0] == 1], cut[:3, alpha[0] == 1])
    same = torch.rand(3, 40, 52, dtype=torch.float64)
    before = cut_out(image, trimap=trimap, background=same)
    torch.testing.assert_close(before, composite(cut[:3], alpha=alpha, background=same))
    with pytest.raises(ValueError, match="background must be left out"):
        cut_out(image, trimap=trimap, background=same, only_alpha=True)
    with pytest.raises(ValueError, match="background must have the foreground's size"):
        composite(image, alpha=alpha, background=far)


def test_errors_of_alpha_by_hand() -> None:
    truth = torch.zeros(1, 24, 24, dtype=torch.float64)
    truth[:, 4:12, 4:12] = 1
    assert matting_errors(truth, truth=truth) == (0, 0, 0, 0)
    found = truth.clone()
    found[:, 18:20, 18:20] = 0.5  # an island: four pixels, which are connected at no level
    trimap = torch.full_like(truth, 0.5)
    trimap[:, :2] = 0
    errors = matting_errors(found, truth=truth, trimap=trimap)
    assert errors.sad == 2
    assert errors.mse == pytest.approx(1 / (22 * 24))
    assert errors.connectivity == 2
    # A filter of unit length has the square sum 1: of a pixel of height h, each derivative gives h^2 in all.
    found = torch.zeros_like(truth)
    found[:, 12, 12] = 0.5
    assert matting_errors(found, truth=torch.zeros_like(truth)).gradient == pytest.approx(2 * 0.25)
    inside = truth.clone()
    inside[:, 7:9, 7:9] = 0.9  # connected up to 0.9, and nothing beyond
    assert matting_errors(inside, truth=truth).connectivity == 0
