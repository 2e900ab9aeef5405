from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from genimg_fast import editing
from genimg_fast.editing import matte, pictures, texture, upscale

PICTURE = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(1, 24, 24)
MASK[:, 8:12, 8:12] = 1
TRIMAP = torch.full_like(MASK, 0.5)
TRIMAP[:, :8], TRIMAP[:, 16:] = 0, 1
DIGITS = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
NET = torch.nn.Linear(6, 4)

WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "norm": (lambda: editing.attack(NET, DIGITS, norm="Linf"), "norm must be one of linf, l2, got 'Linf'"),
    "attack": (lambda: editing.attack(NET, DIGITS, method="BIM"), "method must be one of fgsm, pgd"),
    "loss": (lambda: editing.attack(NET, DIGITS, loss="ce"), "loss must be one of cross-entropy, dlr, got 'ce'"),
    "steps": (lambda: editing.attack(NET, DIGITS, steps=0), "steps must be at least 1, got 0"),
    "step_size": (lambda: editing.attack(NET, DIGITS, step_size=-1), "step_size must be above 0, got -1"),
    "matte": (lambda: editing.matte(PICTURE, trimap=TRIMAP, method="KNN"), "method must be one of closed-form"),
    "epsilon": (lambda: editing.matte(PICTURE, trimap=TRIMAP, epsilon=1e-30), "epsilon must be at least"),
    "inpaint": (lambda: editing.inpaint(PICTURE, mask=MASK, method="dip"), "method must be one of patchmatch"),
    "dilate": (lambda: editing.inpaint(PICTURE, mask=MASK, dilate=-1), "dilate must be at least 0, got -1"),
    "texture": (lambda: editing.texture(PICTURE, size=(24, 24), method="quilt"), "method must be one of quilting"),
    "size": (lambda: editing.quilt(PICTURE, size=(-3, 5), patch=8), "size must be at least 1x1 pixels, got -3x5"),
    "attribute": (lambda: editing.attribute_direction(DIGITS, DIGITS + 1, method="svm"), "method must be"),
    "steps of Wiener": (
        lambda: editing.deblur(PICTURE, gaussian=1.0, method="wiener", steps=3), "steps must be left out"
    ),
    "balance": (lambda: editing.deblur(PICTURE, gaussian=1.0, balance=1.0), "balance must be left out: it is for"),
    "steps of patches": (lambda: editing.inpaint(PICTURE, mask=MASK, steps=3), "steps must be left out"),
    "patch of the prior": (
        lambda: editing.inpaint(PICTURE, mask=MASK, method="prior", patch=5), "patch must be left out"
    ),
    "epsilon of KNN": (
        lambda: editing.matte(PICTURE, trimap=TRIMAP, method="knn", epsilon=1e-3), "epsilon must be left out"
    ),
    "method of a model": (
        lambda: editing.upscale(PICTURE, model="runs", method="bicubic"), "method must be left out"
    ),
    "kernel": (lambda: editing.deblur(PICTURE, kernel=MASK), "kernel must have an odd width and height"),
    "factor": (lambda: editing.upscale(PICTURE, factor=100), "factor must be from 1 to 16, got 100"),
    "exposures": (lambda: editing.enhance(PICTURE, exposures=[MASK]), r"exposures\[0\] must have .* 24x24 pixels"),
    "smoothness": (
        lambda: editing.estimate_foreground(PICTURE, alpha=MASK, smoothness=0.0), "smoothness must be above 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_there_is_not_is_refused(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_another_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        filled = editing.inpaint(PICTURE, mask=MASK, generator=torch.Generator().manual_seed(0))
    finally:
        torch.set_default_dtype(torch.float32)
    assert filled.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda image: texture(image, size=(1000, 2000)), "size"),
        (lambda image: texture(image, size=(1000, 2000), method="transport"), "size"),
        (lambda image: upscale(image, factor=16), "factor"),
        (lambda image: matte(image, trimap=torch.linspace(0, 1, 64).expand(1, 64, 64)), "image"),
        (lambda image: matte(image, trimap=torch.linspace(0, 1, 64).expand(1, 64, 64), method="knn"), "image"),
    ],
)
def test_what_the_memory_does_not_hold_is_refused_before_the_work(
    call: Callable[[Tensor], Tensor], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "machine_memory", lambda: 1e6)
    with pytest.raises(ValueError, match=rf"^{name} must be less: \d+x\d+ pixels take about"):
        call(torch.rand(3, 64, 64))
