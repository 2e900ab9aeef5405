import pytest
import torch

import genimg_fast as gf

TASKS = ["denoise", "neighbor2neighbor", "deblur", "jpeg", "inpaint", "sr2", "sr3", "sr4"]


def make(task: str, **options: int) -> gf.models.Restorer:
    torch.manual_seed(0)
    return gf.models.Restorer(task, **{"c_dim": 1, "channels": 4, **options}).eval()


def levels_for(model: gf.models.Restorer, images: torch.Tensor) -> torch.Tensor | None:
    if model.takes_level:
        return torch.linspace(1, 2, len(images))
    return (torch.rand(len(images), 1, *images.shape[2:]) < 0.3).float() if model.task == "inpaint" else None


@pytest.mark.parametrize("task", TASKS)
def test_images_of_any_size_come_out_as_large_as_the_task_says(task: str) -> None:
    model = make(task, c_dim=3)
    images = torch.rand(2, 3, 15, 22) * 2 - 1
    out = model(images, levels_for(model, images))
    scale = {"sr2": 2, "sr3": 3, "sr4": 4}.get(task, 1)
    assert out.shape == (2, 3, 15 * scale, 22 * scale)
    simple = torch.nn.functional.interpolate(images, scale_factor=scale, mode="bicubic") if scale > 1 else images
    assert (out - simple).abs().mean() < 0.5  # before training, hardly anything changes


@pytest.mark.parametrize("task", TASKS)
def test_no_pixel_is_seen_from_beyond_the_reach(task: str) -> None:
    model = make(task).double()
    images = (torch.rand(1, 1, 200, 200, dtype=torch.float64) * 2 - 1).requires_grad_()
    levels = levels_for(model, images)
    if task == "inpaint":
        levels = torch.ones(1, 1, 200, 200)
    out = model(images, levels)
    middle = out.shape[-1] // 2
    (gradient,) = torch.autograd.grad(out[0, 0, middle, middle], images)
    seen = gradient[0, 0].nonzero()
    assert seen.numel() > 0
    assert (seen - 100).abs().max() <= model.reach


def test_the_level_matters() -> None:
    model = make("denoise")
    images = torch.rand(1, 1, 16, 16).expand(2, -1, -1, -1) * 2 - 1
    out = model(images, torch.tensor([5.0, 50.0]))
    assert not torch.allclose(out[0], out[1])


def test_it_knows_where_blocks_of_jpeg_begin() -> None:
    model = make("jpeg", depth=1).double()
    images = torch.rand(1, 1, 16, 120, dtype=torch.float64) * 2 - 1
    for moved, same in ((8, True), (4, False)):
        whole, part = model(images)[..., moved:], model(images[..., moved:])
        assert torch.allclose(whole[..., model.reach :], part[..., model.reach :], rtol=0, atol=1e-9) is same


def test_inpainting_changes_nothing_but_what_is_gone() -> None:
    model = make("inpaint")
    images, masks = torch.rand(2, 1, 16, 16) * 2 - 1, torch.zeros(2, 1, 16, 16)
    masks[:, :, 4:9, 3:7] = 1
    out = model(images, masks)
    assert torch.equal(out[masks == 0], images[masks == 0])
    assert not torch.equal(out[masks == 1], images[masks == 1])


@pytest.mark.parametrize(
    ("task", "levels", "message"),
    [
        ("denoise", None, r"levels must be of shape \(2,\) for denoise, got none"),
        ("denoise", torch.ones(2, 1), r"levels must be of shape \(2,\) for denoise, got shape \(2, 1\)"),
        ("sr2", torch.ones(2), "levels must be of shape None for sr2"),
        ("inpaint", torch.ones(2), r"levels must be of shape \(2, 1, 8, 8\) for inpaint"),
    ],
)
def test_levels_that_do_not_fit_are_refused(task: str, levels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(task)(torch.zeros(2, 1, 8, 8), levels)


def test_bad_arguments() -> None:
    for options, message in (
        ({"task": "sr5"}, "task must be one of denoise"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"channels": 0}, "channels must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            gf.models.Restorer(**options)


@pytest.mark.parametrize("task", ["denoise", "jpeg", "inpaint", "sr2"])
def test_a_batch_of_none(task: str) -> None:
    restorer = gf.models.Restorer(task, c_dim=3, channels=4, depth=1)
    levels = {"denoise": torch.zeros(0), "inpaint": torch.zeros(0, 1, 9, 8)}.get(task)
    assert restorer(torch.zeros(0, 3, 9, 8), levels).shape == (0, 3, 9 * restorer.scale, 8 * restorer.scale)
