import pytest
import torch

import genimg_fast as gf


def make(**options: int) -> gf.models.StyleNet:
    torch.manual_seed(0)
    model = gf.models.StyleNet(**{"channels": 4, "n_residual": 2, **options})
    for module in model.modules():  # so that a twin that lost its weights would be noticed
        if isinstance(module, gf.nn.InstanceNormAct2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval().double()


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("size", [(5, 5), (16, 20), (21, 34)])
def test_images_of_any_size_keep_it(size: tuple[int, int]) -> None:
    out = make()(draw(2, 3, *size))
    assert out.shape == (2, 3, *size)
    assert out.abs().max() <= 1


def test_contrast_and_brightness_do_not_matter() -> None:
    model, images = make(), draw(1, 3, 24, 24)
    torch.testing.assert_close(model(images), model(images * 0.5 + 0.2), rtol=0, atol=1e-3)


def test_an_image_is_painted_by_itself() -> None:
    model, images = make(), draw(3, 3, 16, 16)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]))


def test_statistics_of_a_picture_are_those_that_it_has() -> None:
    model, images = make(), draw(1, 3, 22, 31)
    fixed = model.with_statistics_of(images)
    torch.testing.assert_close(fixed(images), model(images), rtol=0, atol=1e-10)
    other = draw(1, 3, 22, 31) * 0.3
    assert (fixed(other) - model(other)).abs().max() > 0.01
    assert not any(isinstance(module, gf.nn.InstanceNormAct2d) for module in fixed.modules())
    assert sum(isinstance(module, gf.nn.InstanceNormAct2d) for module in model.modules()) == 9


def test_with_fixed_statistics_no_pixel_is_seen_from_beyond_the_reach() -> None:
    model = make(n_residual=1)
    images = draw(1, 3, 96, 96)
    fixed = model.with_statistics_of(images)
    images.requires_grad_()
    for middle in (46, 47, 48, 49):
        (gradient,) = torch.autograd.grad(fixed(images)[0, :, middle, middle].sum(), images)
        seen = gradient[0, 0].nonzero()
        assert 10 < (seen - middle).abs().max() <= model.reach


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="channels must be at least 1"):
        gf.models.StyleNet(channels=0)
    with pytest.raises(ValueError, match="n_residual must be at least 1"):
        gf.models.StyleNet(n_residual=0)
    with pytest.raises(ValueError, match="images must have at least 5 pixels a side, got 9x4"):
        make()(draw(1, 3, 4, 9))
    with pytest.raises(ValueError, match="images must be one picture, got 2"):
        make().with_statistics_of(draw(2, 3, 16, 16))
