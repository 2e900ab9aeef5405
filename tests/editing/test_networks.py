"""Pictures through restorers, from Python and from the command line."""

from pathlib import Path

import pytest
import torch

import genimg_fast as gf
from genimg_fast.cli import main
from genimg_fast.editing import (
    deblur,
    denoise,
    estimate_sigma,
    inpaint,
    load_picture,
    networks,
    save_picture,
    upscale,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def saved(task, c_dim: int = 3) -> gf.models.Restorer:
    model = gf.models.Restorer(task, c_dim=c_dim, channels=4, depth=1).eval()
    model.save_pretrained(task)
    return model


def test_denoise_tells_the_level() -> None:
    model, image = saved("denoise"), torch.rand(3, 20, 30)
    for sigma, level in ((40, 40.0), (None, estimate_sigma(image))):
        with torch.no_grad():
            expected = model(image[None] * 2 - 1, torch.tensor([level]))[0]
        restored = denoise(image, model="denoise", sigma=sigma)
        torch.testing.assert_close(restored, ((expected + 1) / 2).clamp(0, 1))


def test_grey_pictures_and_grey_networks() -> None:
    model = saved("jpeg")
    grey = torch.rand(1, 20, 30)
    with torch.no_grad():
        three = model(grey.expand(3, -1, -1)[None] * 2 - 1)[0]
    expected = ((three.mean(0, keepdim=True) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(denoise(grey, model="jpeg"), expected)
    saved("sr2", c_dim=1)
    colours = torch.rand(3, 20, 30)
    large = upscale(colours, model="sr2")
    assert large.shape == (3, 40, 60)
    torch.testing.assert_close(large[1:2], upscale(colours[1:2], model="sr2"))


def test_a_large_picture_goes_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    saved("deblur")
    image = torch.rand(3, 60, 90)
    whole = deblur(image, gaussian=1.5, model="deblur")
    tiles = []
    real = networks.in_tiles
    monkeypatch.setattr(networks, "in_tiles", lambda f, i, **o: tiles.append(1) or real(f, i, size=16, **o))
    torch.testing.assert_close(deblur(image, gaussian=1.5, model="deblur"), whole, rtol=0, atol=1e-5)
    assert tiles


def test_inpainting_leaves_what_is_known() -> None:
    model = saved("inpaint")
    image, mask = torch.rand(3, 20, 30), torch.zeros(1, 20, 30)
    mask[:, 5:9, 7:12] = 1
    filled = networks.restore(model, image, mask)
    torch.testing.assert_close(filled * (1 - mask), image * (1 - mask))
    other = torch.where(mask > 0, 0.9, image)  # what is under the mask does not matter
    torch.testing.assert_close(networks.restore(model, other, mask), filled)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_fills_holes_and_leaves_the_rest_bit_for_bit(channels: int) -> None:
    model = saved("inpaint")
    image, mask = torch.rand(channels, 20, 31), torch.zeros(1, 20, 31)
    mask[:, 5:9, 7:12] = 1
    filled = inpaint(image, mask=mask, model="inpaint")
    assert torch.equal(filled[:, mask[0] == 0], image[:, mask[0] == 0])
    expected = networks.restore(model, image, mask)
    assert torch.equal(filled[:, mask[0] > 0], expected[:, mask[0] > 0])
    wider = inpaint(image, mask=mask, dilate=1, model="inpaint")
    assert bool((wider != image).any(0)[4:10, 6:13].all())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "prior"}, "method must be left out: the model is the method"),
        ({"guide": torch.ones(1, 80, 80)}, "guide must be left out"),
        ({"patch": 5}, "patch must be left out"),
        ({"steps": 5}, "steps must be left out"),
        ({"dilate": 7}, "model must see known pixels from each that is missing, got one that sees 22 pixels"),
    ],
)
def test_what_a_model_does_not_use_or_see_is_refused(given, message: str) -> None:
    saved("inpaint")
    mask = torch.zeros(1, 80, 80)
    mask[:, 20:60, 20:60] = 1
    with pytest.raises(ValueError, match=f"^{message}"):
        inpaint(torch.rand(3, 80, 80), mask=mask, model="inpaint", **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image: denoise(image, model="none"), "model must be a run of restorer: no checkpoint at none"),
        (lambda image: denoise(image, model="sr2"), "model must have been trained for denoise or .*, got sr2"),
        (lambda image: upscale(image, model="sr2", factor=3), "factor must be 2, the model's, got 3"),
        (lambda image: upscale(image, model="vae"), "model must be a run of restorer, got one of MLPVAE"),
        (lambda image: deblur(image, motion=(3, 0), model="deblur"), "gaussian must be given for a model"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(call, message: str) -> None:
    saved("sr2")
    gf.models.MLPVAE(z_dim=2, image_size=8, hidden=(4,)).save_pretrained("vae")
    with pytest.raises(ValueError, match=message):
        call(torch.rand(3, 16, 16))


def test_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    for number in range(3):
        save_picture(torch.rand(3, 40, 50), f"photos/{number}.png")
    words = "train restorer --task sr2 --data photos --image-size 16 --crops 12 --channels 4 --depth 1 --steps 2"
    assert main([*words.split(), "--out", "runs", "--batch-size", "4", "--device", "cpu"]) == 0
    assert (Path("runs") / "00000-restorer-photos" / "losses.png").is_file()
    words = "edit upscale photos/0.png --model runs/00000-restorer-photos --out large.png --device cpu"
    assert main(words.split()) == 0
    assert load_picture("large.png").shape == (3, 80, 100)
    saved("inpaint")
    mask = torch.zeros(1, 40, 50)
    mask[:, 5:9, 7:12] = 1
    save_picture(mask, "mask.png")
    words = "edit inpaint photos/0.png --mask mask.png --model inpaint --out filled.png --device cpu"
    assert main(words.split()) == 0
    filled, before = load_picture("filled.png"), load_picture("photos/0.png")
    assert torch.equal((filled != before).any(0), mask[0] > 0)
    saved("denoise")
    for edit in ("denoise photos/1.png --sigma 5", "deblur photos/1.png --gaussian 1", "enhance photos/1.png"):
        assert main(["edit", *edit.split(), "--device", "cpu"]) == 0
    assert {f"1-{name}.png" for name in ("denoise", "deblur", "enhance")} <= {f.name for f in Path.cwd().iterdir()}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["edit", "denoise", "photos/1.png", "--model", "runs/00000-restorer-photos", "--device", "cpu"])
    assert "argument --model: must have been trained for denoise" in capsys.readouterr().err
