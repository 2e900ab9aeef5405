from pathlib import Path

import pytest
import torch

import genimg_fast as gf
from genimg_fast.cli import main
from genimg_fast.losses.patches import PatchStyle
from genimg_fast.training import StyleTrainer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a style: red and yellow stripes."""
    monkeypatch.chdir(tmp_path)
    stripes = (torch.arange(48) // 3 % 2).float().expand(48, 48)
    gf.editing.save_picture(torch.stack([torch.ones(48, 48), stripes, torch.zeros(48, 48)]), "stripes.png")
    return tmp_path


def make(**options) -> StyleTrainer:
    torch.manual_seed(0)
    model = gf.models.StyleNet(channels=8, n_residual=1)
    return StyleTrainer(model, **{"style": "stripes.png", "style_size": 48, **options})


def discs(n: int = 4) -> torch.Tensor:
    """Dark discs on a light ground, grey-blue."""
    rows, columns = torch.arange(32)[:, None], torch.arange(32)
    middles = torch.tensor([[10, 12], [16, 20], [20, 10], [14, 16]])[:n, :, None, None]
    disc = ((rows - middles[:, 0]) ** 2 + (columns - middles[:, 1]) ** 2 < 64).float()[:, None]
    return torch.tensor([0.6, 0.6, 0.8]).view(3, 1, 1) * (1 - 1.5 * disc)


def test_learns_the_style_and_keeps_what_there_is() -> None:
    trainer = make(lr=1e-2, content_weight=3.0)
    before = trainer.evaluate(discs(), generator=torch.Generator().manual_seed(0))
    for _ in range(60):
        trainer.step(discs())
    after = trainer.evaluate(discs(), generator=torch.Generator().manual_seed(0))
    assert after["style"] < 0.5 * before["style"]
    painted = trainer.pictures(discs(), torch.zeros(4))["paintings"].images["painted"]
    assert painted[:, 0].mean() > painted[:, 1].mean() + 0.3 > painted[:, 2].mean() + 0.6  # its colours
    both = torch.stack([discs().mean(1).flatten(), painted.mean(1).flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.3


def test_features_of_a_network_are_the_style_if_one_is_given() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), "squeezenet.pth")
    trainer = make(network="squeezenet.pth", lr=1e-2)
    assert set(trainer.step(discs())) == {"loss", "style", "content"}
    losses = [trainer.step(discs())["loss"] for _ in range(25)]
    assert losses[-1] < losses[0]
    assert not any("features" in name for name in trainer.state_dict()["model"])


def test_nothing_is_lost_on_the_style_itself() -> None:
    picture = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    loss = PatchStyle([picture], generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    assert loss(picture, generator=generator) < 1e-4
    assert loss(picture.flip(3), generator=generator) < 0.05  # noise has no direction
    assert loss(picture.mean((2, 3), keepdim=True).expand_as(picture), generator=generator) > 0.5
    assert loss(picture.repeat(2, 1, 1, 1), generator=generator) < 1e-3  # a batch is one set of patches
    assert loss(picture, stride=4, generator=generator) < 0.05


def test_the_weighted_mean_of_two_styles_lies_between() -> None:
    dark, light = (torch.full((1, 1, 16, 16), value) for value in (0.2, 0.8))
    loss = PatchStyle([dark, light], weights=(1, 2), generator=torch.Generator().manual_seed(0))
    at = [float(loss(torch.full((1, 1, 16, 16), value))) for value in (0.5, 0.6, 0.7)]
    assert at[1] == pytest.approx(0, abs=1e-6)
    assert min(at[0], at[2]) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "nothing.png"}, "style must be a picture"),
        ({"network": "stripes.png"}, "network must be a file of vgg16, vgg19 or squeezenet1_1"),
        ({"network": "nothing.pth"}, "network must be a file that can be read"),
    ],
)
def test_files_that_do_not_fit_are_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["train", "style-net", "--channels", "4", "--n-residual", "1", "--image-size", "32", "--crops", "8"]
    command += ["--batch-size", "4", "--style-size", "32", "--schedule", "constant", "--steps"]
    assert main([*command, "2", "--style", "stripes.png"]) == 0
    run = folder / "runs/00000-style-net-photos"
    assert (run / "paintings-000002.png").is_file()
    assert main([*command, "3", "--style", "stripes.png", "--resume", "auto"]) == 0
    assert (run / "paintings-000003.png").is_file()
    with pytest.raises(SystemExit):
        main([*command, "2", "--style", "none.png"])
    assert "argument --style: must be a picture" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "2"])
    assert "--style" in capsys.readouterr().err
