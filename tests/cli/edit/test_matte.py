from pathlib import Path

import pytest
import torch

from genimg_fast.cli import main
from genimg_fast.editing import load_picture, save_picture


def test_a_foreground_is_cut_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    alpha = torch.linspace(-0.5, 1.5, 33).clamp(0, 1).expand(1, 20, 33)
    trimap = torch.full_like(alpha, 0.5)
    trimap[alpha == 0], trimap[alpha == 1] = 0, 1
    red = torch.tensor([1.0, 0.1, 0.1]).view(3, 1, 1)
    save_picture(alpha * red, "red.png")
    save_picture(trimap, "trimap.png")
    save_picture(torch.ones(1, 50, 40), "white.png")
    arguments = ["edit", "matte", "red.png", "--trimap", "trimap.png"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "red-matte.png\n"
    cut = load_picture("red-matte.png")
    torch.testing.assert_close(cut[3:], alpha, rtol=0, atol=0.02)
    assert cut[0, :, 12:].min() > 0.9  # red wherever there is some of it
    assert main([*arguments, "--background", "white.png", "--out", "b.png"]) == 0
    torch.testing.assert_close(load_picture("b.png"), alpha * red + 1 - alpha, rtol=0, atol=0.03)
    assert main([*arguments, "--only-alpha", "--out", "a.png"]) == 0
    torch.testing.assert_close(load_picture("a.png"), cut[3:])
    with pytest.raises(SystemExit):
        main(["edit", "matte", "red.png", "--trimap", "white.png"])
    assert "argument --trimap: must have the picture's size, 33x20 pixels" in capsys.readouterr().err
