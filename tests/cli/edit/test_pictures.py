import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genimg_fast.cli.arguments import Parser
from genimg_fast.cli.edit.pictures import add_edit
from genimg_fast.editing import load_picture, save_picture
from genimg_fast.editing.pictures import Mask, check_mask


def mend(
    image: Tensor,
    *,
    mask: Mask,
    others: list[Tensor] | None = None,
    times: int = 1,
    progress: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mend a picture.

    Args:
        image: The picture.
        mask: What to mend.
        others: More pictures.
        times: How often to enlarge it.
        progress: Whether to show a progress bar.
        generator: Random numbers.
    """
    check_mask(mask, image)
    assert progress
    assert generator is not None
    noise = torch.rand(1, generator=generator).item()
    return torch.where(mask > 0.5, noise, image).repeat_interleave(times, 1).repeat_interleave(times, 2)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    parser = Parser()
    add_edit(parser.add_subparsers(), mend, examples="genimg-fast edit mend a.png --mask m.png")

    def run(*words: str) -> int:
        args: argparse.Namespace = parser.parse_args(["mend", *words])
        return args.execute(args)

    return run


def test_a_function_of_pictures_is_a_command(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = torch.zeros(4, 4, 6)
    picture[3, :2] = 1
    save_picture(picture, "cat.png")
    mask = torch.zeros(3, 4, 6)
    mask[:, 1] = 1
    save_picture(mask, "mask.png")
    assert run("cat.png", "--mask", "mask.png", "--seed", "3") == 0
    assert capsys.readouterr().out == "cat-mend.png\n"
    mended = load_picture("cat-mend.png")
    noise = torch.rand(1, generator=torch.Generator().manual_seed(3)).item()
    torch.testing.assert_close(mended[:3, 1], torch.full((3, 6), noise), rtol=0, atol=1 / 255)
    assert torch.equal(mended[:3, [0, 2, 3]], picture[:3, [0, 2, 3]])
    assert torch.equal(mended[3], picture[3])  # transparent where it was
    assert run("cat.png", "--mask", "mask.png", "--times", "2", "--out", "b.png") == 0
    assert load_picture("b.png").shape == (4, 8, 12)
    assert run("cat.png", "--mask", "mask.png", "--before-after", "--out", "c.png") == 0
    assert load_picture("c.png").shape == (3, 4, 6 + 4 + 6)


def test_errors_are_one_line_that_names_the_flag(run, capsys: pytest.CaptureFixture[str]) -> None:
    save_picture(torch.zeros(3, 4, 6), "cat.png")
    save_picture(torch.zeros(1, 5, 6), "mask.png")
    save_picture(torch.zeros(4, 4, 6), "clear.png")
    for words, message in (
        (("cat.png", "--mask", "none.png"), "argument --mask: cannot read image none.png"),
        (("cat.png", "--mask", "mask.png"), "argument --mask: must have the picture's size, 6x4 pixels, got 6x5"),
        (("cat.png", "--mask", "cat.png", "--out", "a.doc"), "argument --out: 'a.doc' does not end like"),
        (("cat.png", "--mask", "cat.png", "--out", "no/a.png"), "argument --out: 'no' must be a folder"),
        (
            ("cat.png", "--mask", "cat.png", "--out", "./cat.png"),
            "argument --out: 'cat.png' must not be a picture",
        ),
        (
            ("clear.png", "--mask", "cat.png", "--out", "a.jpg"),
            "--out: 'a.jpg' must end in .png",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(*words)
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
