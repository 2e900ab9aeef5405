from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from tiny_runs import PLAIN, animation, image_size, png_names, side

from genimg_fast.cli import main


@pytest.mark.parametrize(
    ("name", "edit", "frames", "anew"),
    [
        ("frame-predictor", ["continue", "--steps", "5"], 9, range(4, 9)),
        ("frame-predictor", ["continue", "--frames", "2", "--steps", "1"], 3, [2]),
        ("frame-filler", ["fill", "--missing", "2-3", "5"], 6, [1, 2, 4]),
        ("frame-filler", ["retime", "--speed", "0.5"], 11, range(1, 11, 2)),
        ("frame-filler", ["retime", "--frames", "9", "--speed", "2"], 5, []),
    ],
)
def test_edit(
    name: str,
    edit: list[str],
    frames: int,
    anew: Sequence[int],
    sequence_runs: dict[str, Path],
    tmp_path: Path,
    device: str,
) -> None:
    command = ["edit", edit[0], str(sequence_runs[name]), "--n", "2", "--device", device, *edit[1:]]
    assert main([*command, *PLAIN, "--out", str(tmp_path / "strip.png")]) == 0
    assert image_size(tmp_path / "strip.png") == (side(frames), side(2))
    assert main([*command, *PLAIN, "--out", str(tmp_path / "a.gif")]) == 0
    assert animation(tmp_path / "a.gif")[0] == (side(2), side(1))
    assert main([*command, "--out", str(tmp_path / "strip.png")]) == 0
    with Image.open(tmp_path / "strip.png") as strip:  # a border around what is made anew
        orange = [strip.convert("RGB").getpixel((68 * k + 2, 60)) == (240, 120, 0) for k in range(frames + 1)]
    new = [k in anew for k in range(frames)]
    assert orange == [a or b for a, b in zip([*new, False], [False, *new], strict=True)]


def test_edit_of_a_clip(sequence_runs: dict[str, Path], tmp_path: Path) -> None:
    for number in range(1, 8):
        Image.new("L", (8, 8), 30 * number).save(tmp_path / f"{number}.png")
    out = tmp_path / "out" / "strip.png"
    out.parent.mkdir()
    flags = ["--data", str(tmp_path), "--frames", "7", *PLAIN, "--out", str(out)]
    assert main(["edit", "fill", str(sequence_runs["frame-filler"]), *flags, "--missing", "3"]) == 0
    with Image.open(out) as strip:
        levels = [strip.convert("L").getpixel((12 * number + 4, 4)) for number in range(7)]
    assert levels[:2] + levels[3:] == [30, 60, 120, 150, 180, 210]


@pytest.mark.parametrize(
    ("command", "name", "flags", "message"),
    [
        (
            ["edit", "fill"],
            "frame-predictor",
            ["--missing", "2"],
            "RUN: must be a run of frame-filler, got one of",
        ),
        (["edit", "continue"], "row-rnn", [], "RUN: must be a run of frame-predictor, got"),
        (
            ["edit", "complete"],
            "frame-filler",
            [],
            "RUN: frame-filler cannot complete images; this is for row-rnn",
        ),
        (["edit", "complete"], "row-rnn", ["--rows", "8"], "--rows: must be below 8, the height, got 8"),
        (["edit", "fill"], "frame-filler", [], "the following arguments are required: --missing"),
        (
            ["edit", "fill"],
            "frame-filler",
            ["--missing", "x"],
            "--missing: must be a number from 1 on, or a range",
        ),
        (
            ["edit", "fill"],
            "frame-filler",
            ["--missing", "5-3"],
            "--missing: must be a number from 1 on, or a range",
        ),
        (
            ["edit", "fill"],
            "frame-filler",
            ["--missing", "7"],
            "--missing: must leave some of the 6 frames, and none",
        ),
        (["edit", "fill"], "frame-filler", ["--missing", "1-6"], "--missing: must leave some of the 6 frames"),
        (["edit", "fill"], "frame-filler", ["--missing", "1-300000000"], "--missing: must leave some of the 6"),
        (["edit", "fill"], "frame-filler", ["--missing", 5000 * "9"], "--missing: must be a number from 1 on"),
        (["edit", "retime"], "frame-filler", ["--speed", "0.01"], "--speed: speed must be at least 1/8, got 0.01"),
        (["edit", "retime"], "frame-filler", ["--data", "nowhere"], "--data: 'nowhere' is neither a folder nor a"),
        (
            ["edit", "retime"],
            "frame-filler",
            ["--n", "10001"],
            "--n: must be at most 10000, the number of sequences",
        ),
        (["edit", "retime"], "frame-filler", ["--out", "a.txt"], "--out: 'a.txt' does not end like an image file"),
        (["sample"], "frame-filler", ["--class", "1"], "--class: frame-filler is not class-conditional"),
        (["sample"], "row-rnn", ["--class", "1"], "--class: row-rnn is not class-conditional"),
        (["interpolate"], "row-rnn", [], "RUN: row-rnn has no latents; this is for GANs and VAEs"),
        (["reconstruct"], "frame-filler", [], "RUN: must be a run of a VAE or an autoencoder"),
    ],
)
def test_bad_use_of_a_sequence_run_gives_one_line(
    command: list[str], name: str, flags: list[str], message: str, sequence_runs: dict[str, Path],
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        main([*command, str(sequence_runs[name]), *flags])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_completions(models: dict[str, str]) -> None:
    assert main(["edit", "complete", models["row-rnn"], "--n", "2", "--rows", "3", "--out", "out"]) == 0
    assert png_names("out") == [f"{part}/0000{k}.png" for part in ("given", "model", "truth") for k in range(2)]
