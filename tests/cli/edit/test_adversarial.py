import sys
from pathlib import Path

import pytest
import torch

from genimg_fast.cli import main
from genimg_fast.editing import load_picture, save_picture
from genimg_fast.training import trainables

CLASSIFIER = """
import torch
net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
with torch.no_grad():
    net[2].weight.copy_(torch.eye(3))
    net[2].bias.zero_()
def make():
    return net
number = 3
layers = net[:1]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has a reddish picture with transparent pixels, and a classifier by the strongest colour."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainables, "_files", {})
    monkeypatch.delitem(sys.modules, "by_colour", raising=False)
    save_picture(torch.tensor([0.52, 0.5, 0.45, 0.5]).view(4, 1, 1).expand(4, 8, 10), "rose.png")
    (tmp_path / "by_colour.py").write_text(CLASSIFIER)
    return tmp_path


def test_a_classifier_is_fooled(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("net", "make"):
        assert main(["edit", "adversarial", "rose.png", "--classifier", f"by_colour.py:{name}"]) == 0
        before, after, file = capsys.readouterr().out.splitlines()
        assert before.startswith("before: class 0, probability 0.3")
        assert after.startswith("after: class 1, probability 0.3")
        assert file == "rose-adversarial.png"
        change = load_picture(file) - load_picture("rose.png")
        assert 1 / 255 < change[:3].abs().max() <= 8.5 / 255
        assert change[3].abs().max() == 0
    arguments = [
        "edit",
        "adversarial",
        "rose.png",
        "--classifier",
        "by_colour.py:net",
        "--target",
        "2",
        "--out",
        "b.png",
    ]
    assert main([*arguments, "--epsilon", "0.1", "--before-after"]) == 0
    assert "after: class 2" in capsys.readouterr().out
    assert load_picture("b.png").shape == (3, 8, 24)


def test_an_exported_classifier(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict = {}
    exec(CLASSIFIER, scope)
    torch.export.save(torch.export.export(scope["net"], (torch.zeros(1, 3, 8, 10),)), "net.pt2")
    assert main(["edit", "adversarial", "rose.png", "--classifier", "net.pt2"]) == 0
    assert "after: class 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--classifier", "by_colour.py:number"],
            "--classifier: by_colour.py has no torch.nn.Module named number",
        ),
        (["--classifier", "by_colour.py"], "--classifier: must be by_colour.py:NAME"),
        (["--classifier", "none.pt"], "--classifier: there is no file none.pt"),
        (["--classifier", "rose.png"], "--classifier: rose.png is no file of torch.jit.save"),
        (["--classifier", "by_colour.py:net", "--label", "3"], "--label: must be from 0 to 2"),
        (["--classifier", "by_colour.py:net", "--target", "3"], "--target: must be from 0 to 2"),
        (["--classifier", "by_colour.py:net", "--target", "1", "--label", "0"], "--label: must be left out"),
        (["--classifier", "by_colour.py:net", "--target", "0"], "--target: must be another class than 0"),
        (
            ["--classifier", "by_colour.py:net", "--method", "fgsm", "--steps", "3"],
            "--steps: must be left out: fgsm",
        ),
        (["--classifier", "by_colour.py:layers"], "--classifier: must return logits of shape (1, classes)"),
        (["--classifier", "by_colour.py:net", "--epsilon", "2"], "--epsilon: must be from 0 to 1, got 2"),
        (["--classifier", "by_colour.py:net", "--out", "a.jpg"], "--out: 'a.jpg' must be of a format that keeps"),
    ],
)
def test_errors_are_one_line_that_names_the_flag(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["edit", "adversarial", "rose.png", *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
