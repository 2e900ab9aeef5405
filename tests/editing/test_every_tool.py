"""Every tool and loss, with pictures of any dtype and layout, and in any mode of torch."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genimg_fast import editing, losses, models
from genimg_fast.editing import degradations


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


PICTURE = 0.05 + 0.9 * torch.rand(3, 20, 18, generator=seeded(), dtype=torch.float32)
TRIMAP = torch.full((1, 20, 18), 0.5)
TRIMAP[:, :7], TRIMAP[:, 13:] = 0, 1
HOLE = torch.zeros(1, 20, 18)
HOLE[:, 8:10, 8:11] = 1


torch.manual_seed(0)
CLASSIFIER = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))
FEATURES = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
VAE = models.VAE(z_dim=4, c_dim=3, channels=4, n_blocks=1)
PERCEPTUAL, STYLE = losses.PerceptualLoss(FEATURES), losses.StyleLoss(FEATURES)

Call = Callable[[Tensor, Tensor, Tensor], Any]
# What takes pictures, and returns one: of a picture, a hole and a trimap.
TOOLS: dict[str, Call] = {
    "cut_out": lambda p, h, t: editing.cut_out(p, trimap=t, background=p.flip(1)),
    "deblur": lambda p, h, t: editing.deblur(p, gaussian=0.6, steps=2),
    "Wiener": lambda p, h, t: editing.deblur(p, kernel=h[:, 8:11, 8:11], method="wiener"),
    "denoise": lambda p, h, t: editing.denoise(p, sigma=10),
    "estimate_sigma": lambda p, h, t: editing.estimate_sigma(p),
    "enhance": lambda p, h, t: editing.enhance(p, white_balance="white-patch", exposures=[p / 2]),
    "estimate_foreground": lambda p, h, t: editing.estimate_foreground(p, alpha=t)[0],
    "before_and_after": lambda p, h, t: editing.before_and_after(p, h),
    "inpaint": lambda p, h, t: editing.inpaint(p, mask=h, guide=1 - h, patch=3, generator=seeded()),
    "prior": lambda p, h, t: editing.inpaint(p, mask=h, method="prior", steps=2, generator=seeded()),
    "matte": lambda p, h, t: editing.matte(p, trimap=t),
    "KNN": lambda p, h, t: editing.matte(p, trimap=t, method="knn"),
    "matting_errors": lambda p, h, t: editing.matting_errors(p[:1], truth=h, trimap=t).sad,
    "quilt": lambda p, h, t: editing.quilt(p, size=(20, 20), patch=8, generator=seeded()),
    "synthesise": lambda p, h, t: editing.synthesise(p, size=(16, 16), generator=seeded()),
    "stylise": lambda p, h, t: editing.stylise(p, style=[p.flip(2)], masks=[1 - h], generator=seeded()),
    "upscale": lambda p, h, t: editing.upscale(p),
    "attack": lambda p, h, t: editing.attack(CLASSIFIER, p[None], steps=2, generator=seeded()),
    "project": lambda p, h, t: editing.project(VAE, p[None, :, :8, :8], steps=2).to(p.dtype),
    "attribute_direction": lambda p, h, t: editing.attribute_direction(p[0], p[1], method="linear"),
}
# The same of what lets gradients through.
FORMULAS: dict[str, Call] = {
    "composite": lambda p, h, t: editing.composite(p, alpha=t, background=p.flip(1)),
    "GaussianNoise": lambda p, h, t: degradations.GaussianNoise(10)(p, generator=seeded()),
    "SaltAndPepper": lambda p, h, t: degradations.SaltAndPepper(0.1)(p, generator=seeded()),
    "Blur": lambda p, h, t: degradations.Blur(degradations.gaussian_kernel(0.6))(p),
    "Downsample": lambda p, h, t: degradations.Downsample(2)(p),
    "Masked": lambda p, h, t: degradations.Masked(h)(p),
    "RandomHoles": lambda p, h, t: degradations.RandomHoles(0.3, size=2)(p, generator=seeded()),
    "PerceptualLoss": lambda p, h, t: PERCEPTUAL(p[None], p.flip(1)[None]).to(p.dtype),
    "StyleLoss": lambda p, h, t: STYLE(p[None], p.flip(1)[None]).to(p.dtype),
    "TotalVariationLoss": lambda p, h, t: losses.TotalVariationLoss()(p[None]).to(p.dtype),
    "SlicedWassersteinLoss": lambda p, h, t: losses.SlicedWassersteinLoss(generator=seeded())(
        p[None], p.flip(1)[None]
    ).to(p.dtype),
}
CHECKED = TOOLS | {
    **FORMULAS,
    "JPEG": lambda p, h, t: degradations.JPEG(50)(p),
    "PoissonNoise": lambda p, h, t: degradations.PoissonNoise(10)(p, generator=seeded()),
}
# The user's model computes in 16 bits under the user's autocast.
AS_THE_MODEL = ("attack", "project", "PerceptualLoss", "StyleLoss")
LOSSES = [name for name in FORMULAS if name.endswith("Loss")]


@pytest.fixture(scope="module")
def plain() -> Callable[[str], Any]:
    """Results of plain calls."""
    found: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in found:
            found[name] = CHECKED[name](PICTURE, HOLE, TRIMAP)
        return found[name]

    return get


@pytest.mark.parametrize(
    ("name", "dtype"), [*((n, torch.bfloat16) for n in CHECKED), *((n, torch.float16) for n in FORMULAS)]
)
def test_16_bits_are_computed_in_32(name: str, dtype: torch.dtype) -> None:
    given = [x.to(dtype) for x in (PICTURE, HOLE, TRIMAP)]
    found, wanted = CHECKED[name](*given), CHECKED[name](*(x.float() for x in given))
    if isinstance(found, Tensor):
        assert found.dtype == dtype
        # To an ulp: formulas without a sum are computed as they are.
        torch.testing.assert_close(found, wanted.to(dtype), rtol=0, atol=torch.finfo(dtype).eps)
    else:
        assert found == pytest.approx(wanted)


@pytest.mark.parametrize("name", CHECKED)
def test_64_bits_stay(name: str) -> None:
    found = CHECKED[name](*(x.double() for x in (PICTURE, HOLE, TRIMAP)))
    assert not isinstance(found, Tensor) or found.dtype == torch.float64


@pytest.mark.parametrize("mode", ["inference", "autocast", "default dtype"])
@pytest.mark.parametrize("name", CHECKED)
def test_modes_of_torch_change_nothing(name: str, mode: str, plain: Callable[[str], Any]) -> None:
    modes: dict[str, AbstractContextManager[Any]] = {
        "inference": torch.inference_mode(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "default dtype": nullcontext(),
    }
    try:
        if mode == "default dtype":
            torch.set_default_dtype(torch.float64)
        with modes[mode]:
            found = CHECKED[name](PICTURE.clone(), HOLE.clone(), TRIMAP.clone())
    finally:
        torch.set_default_dtype(torch.float32)
    if not isinstance(found, Tensor):
        assert found == plain(name)
    elif mode == "default dtype":  # of which are the models made here, and random numbers drawn
        assert found.dtype == torch.float32
        assert found.isfinite().all()
    elif mode == "inference" or name not in AS_THE_MODEL:
        assert torch.equal(found, plain(name))
    else:
        assert found.isfinite().all()


@pytest.mark.parametrize("name", CHECKED)
def test_layouts_change_nothing(name: str, plain: Callable[[str], Any]) -> None:
    for strided in (
        lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
        lambda x: x.movedim(0, 2).clone().movedim(2, 0),
    ):
        found = CHECKED[name](strided(PICTURE), strided(HOLE), strided(TRIMAP))
        torch.testing.assert_close(found, plain(name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CHECKED)
def test_other_pictures_may_be_of_other_dtypes(name: str, plain: Callable[[str], Any]) -> None:
    found = CHECKED[name](PICTURE, HOLE.double(), TRIMAP.bfloat16())
    assert found == plain(name) if isinstance(found, float) else torch.equal(found, plain(name))


@pytest.mark.parametrize("name", CHECKED)
def test_gradients_go_through_formulas_alone(name: str) -> None:
    found = CHECKED[name](PICTURE.clone().requires_grad_(), HOLE, TRIMAP)
    if isinstance(found, Tensor):
        assert found.requires_grad == (name in FORMULAS)


@pytest.mark.parametrize("name", CHECKED)
def test_what_is_no_picture_is_refused(name: str) -> None:
    wrong = {"of bytes": (255 * PICTURE).byte(), "no tensor": Tensor.numpy(PICTURE)}
    if name not in LOSSES:  # those are NaN of NaN, as torch's are
        wrong |= {"NaN": PICTURE * float("nan"), "no numbers": PICTURE.to("meta")}
    for picture in wrong.values():
        if not isinstance(picture, Tensor) and name not in (
            "upscale",
            "enhance",
            "JPEG",
            "Blur",
            "matte",
            "denoise",
        ):
            continue  # the call here takes it apart itself
        with pytest.raises(ValueError, match=r"^\S+ must (be|have) "):
            CHECKED[name](picture, HOLE, TRIMAP)


MASKED = ("cut_out", "Wiener", "estimate_foreground", "before_and_after", "inpaint", "prior", "matte", "stylise")


@pytest.mark.parametrize("name", [*MASKED, "matting_errors", "Masked", "composite"])
def test_masks_without_numbers_are_refused(name: str) -> None:
    for wrong in (HOLE.to("meta"), HOLE.byte()):
        with pytest.raises(ValueError, match=r"^\S+ must (be|have) "):
            CHECKED[name](PICTURE, wrong, wrong)


# What takes patches, or blurs, and so needs some pixels a side.
WIDE = (
    "cut_out", "deblur", "Wiener", "denoise", "estimate_sigma", "inpaint", "matte", "KNN", "quilt", "synthesise",
    "stylise", "Blur", "Downsample", "SlicedWassersteinLoss",
)  # fmt: skip
OF_A_MODEL = ("attack", "project", "attribute_direction", "PerceptualLoss", "StyleLoss")


@pytest.mark.parametrize("name", WIDE)
def test_a_line_of_pixels_is_too_small(name: str) -> None:
    with pytest.raises(ValueError, match=r"^\S+ must "):
        CHECKED[name](PICTURE[:, :, :1], HOLE[:, :, 8:9], TRIMAP[:, :, :1])


@pytest.mark.parametrize("name", [name for name in CHECKED if name not in WIDE + OF_A_MODEL])
def test_a_line_of_pixels_is_a_picture(name: str) -> None:
    found = CHECKED[name](PICTURE[:, :, :1], HOLE[:, :, 8:9], TRIMAP[:, :, :1])
    assert torch.as_tensor(found).isfinite().all()


def test_files_of_any_picture(tmp_path: Path) -> None:
    for picture in (
        PICTURE,
        PICTURE.bfloat16(),
        PICTURE.double().requires_grad_(),
        PICTURE.movedim(0, 2).movedim(2, 0),
    ):
        editing.save_picture(picture, tmp_path / "a.png")
        torch.testing.assert_close(editing.load_picture(tmp_path / "a.png"), PICTURE, rtol=0, atol=0.005)
    for wrong in (
        (255 * PICTURE).byte(),
        255 * PICTURE,
        PICTURE * float("nan"),
        PICTURE.numpy(),
        PICTURE.to("meta"),
    ):
        with pytest.raises(ValueError, match=r"^picture must (be|have) "):
            editing.save_picture(wrong, tmp_path / "b.png")


def test_batches_of_none() -> None:
    none = torch.zeros(0, 3, 8, 8)
    assert editing.attack(CLASSIFIER, none).shape == none.shape
    for model in (VAE, models.DCGAN(z_dim=4, c_dim=3, channels=4, n_blocks=1)):
        for steps in (None, 2):
            z = editing.project(model, none, steps=steps)
            assert z.shape == (0, 4)
        assert editing.vary(model, z, 3).shape == (0, 4)
        with pytest.raises(ValueError, match="z must be one latent or more, got none"):
            editing.mix(model, z)
    for spoil in (degradations.JPEG(50), degradations.GaussianNoise(5), degradations.Blur(torch.ones(3, 3) / 9)):
        assert spoil(none).shape == none.shape
    assert losses.TotalVariationLoss()(none) == 0
    for loss in (PERCEPTUAL, STYLE, losses.SlicedWassersteinLoss()):
        assert loss(none, none).isnan()  # as torch's means of nothing
