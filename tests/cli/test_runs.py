"""What the commands that use a trained model have in common."""

import re
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import TINY, TINY_VAES, damaged, png_names

import genimg_fast as gf
from genimg_fast.cli import main
from genimg_fast.cli.runs import ImageSource, load_real
from genimg_fast.training import outputs


def test_checkpoint_of_an_unknown_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    state["config"]["model"] = "dcgam"
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(SystemExit, match="2"):
        main(["sample", str(tmp_path / "other.pt")])
    assert (
        "argument RUN: unknown model 'dcgam'; did you mean dcgan, cdcgan? a model of yours needs its file"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("command", "name", "key", "value"),
    [
        *(("reconstruct", "vae", "data", value) for value in (None, ...)),
        ("reconstruct", "vae", "crops", "x"),
        ("interpolate", "cvae", "seed", -1),
        ("latent", "vae", "skip_broken", 1),
        ("eval", "cvae", "data", ...),
        *(("sample", "frame-predictor", "frames", value) for value in ("x", ...)),
        ("sample", "frame-predictor", "context", -1),
        *(("sample", "frame-filler", "speed", value) for value in ([1], ...)),
    ],
)
def test_damaged_settings_are_one_line(
    command: str, name: str, key: str, value: Any, vae_runs: dict[str, Path],
    sequence_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    good = torch.load({**vae_runs, **sequence_runs}[name] / "checkpoint.pt", weights_only=True)
    torch.save(damaged(good, f"config/{key}", value), tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit, match="2"):
        main([command, str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert key in line


@pytest.mark.parametrize(
    ("command", "name", "flags", "message"),
    [
        ("reconstruct", "dcgan", [], "argument RUN: must be a run of a VAE or an autoencoder, got one of dcgan"),
        ("latent", "dcgan", [], "argument RUN: must be a run of a VAE, got one of dcgan"),
        ("sample", "dcgan", ["--class", "7"], "argument --class: dcgan is not class-conditional"),
        ("sample", "vae", ["--class", "7"], "argument --class: vae is not class-conditional"),
        ("sample", "cvae", ["--class", "10"], "argument --class: must be one of 0, 1, 2, .*, 9, got '10'"),
        ("sample", "cvae", ["--class", "-1"], "argument --class: "),
        ("sample", "cvae", ["--class", 5000 * "1"], "argument --class: must be one of 0, 1, "),
        ("reconstruct", "vae", ["--data", "nowhere"], "argument --data: 'nowhere' is neither a folder nor one of"),
        ("reconstruct", "vae", ["--n", "1798"], "argument --n: must be at most 1797, the number of images"),
        ("reconstruct", "vae", ["--out", "pairs.txt"], "argument --out: 'pairs.txt' does not end like an image"),
        ("interpolate", "vae", ["--steps", "1"], "argument --steps: must be an integer of at least 2, got '1'"),
        ("interpolate", "vae", ["--mode", "cubic"], "argument --mode: invalid choice: 'cubic'"),
        ("interpolate", "vae", ["--out", "missing/path.gif"], "argument --out: "),
    ],
)
def test_bad_use_of_a_run_gives_one_line(
    command: str, name: str, flags: list[str], message: str, run: Path, vae_runs: dict[str, Path],
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        main([command, str(run if name == "dcgan" else vae_runs[name]), *flags])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_other_images_than_those_of_the_training(
    vae_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(12):
        (tmp_path / "photos" / str(index)).mkdir(parents=True)
        Image.new("RGB", (12, 10), (20 * index, 0, 0)).save(tmp_path / "photos" / str(index) / "0.png")
    flags = ["--data", str(tmp_path / "photos"), "--out", str(tmp_path / "pairs.png")]
    assert main(["reconstruct", str(vae_runs["vae"]), *flags]) == 0  # all there are, unless --n is given
    assert main(["latent", str(vae_runs["vae"]), *flags]) == 0
    for arguments, message in (
        (["vae", "--n", "13"], "argument --n: must be at most 12, the number of images"),
        (["cvae", "--n", "12"], "argument --data: has 12 classes, and the model knows 10"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["reconstruct", str(vae_runs[arguments[0]]), *arguments[1:], *flags])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "command", "said"),
    [
        ("cvae", ["reconstruct", "--n", "180"], "180 held-out images of digits"),
        ("cvae", ["reconstruct", "--data", "digits"], "36 images of digits"),
        ("cvae", ["interpolate", "--n", "2"], "pairs of the 180 held-out images of digits"),
        ("cvae", ["latent"], "180 held-out images of digits"),
        ("row-rnn", ["edit", "complete"], "20 held-out images of .*/others"),
    ],
)
def test_commands_show_what_the_run_held_out(
    name: str, command: list[str], said: str, held_out_runs: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = command[: 2 if command[0] == "edit" else 1]
    flags = [*command[len(words) :], "--out", str(tmp_path / "a.png"), "--device", "cpu"]
    assert main([*words, str(held_out_runs[name]), *flags]) == 0
    assert re.fullmatch(rf"{said}\n.*a\.png\n", capsys.readouterr().out)


def test_commands_say_if_images_are_those_of_the_training(
    vae_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reconstruct", str(vae_runs["vae"]), "--out", str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().out.startswith("36 training images of digits\n")


def test_held_out_images_play_no_part_in_the_training(
    held_out_runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a command loads as held out is not in any batch of a training with the same settings."""
    seen: set[bytes] = set()
    batches = gf.training.loop.batches

    def spied(dataset: gf.data.ImageDataset, *args: object, **options: object) -> object:
        seen.update(image.numpy().tobytes() for image in dataset.images)
        return batches(dataset, *args, **options)

    monkeypatch.setattr(gf.training.loop, "batches", spied)
    photos = ["--data", str(held_out_runs["out"] / "photos"), "--val-split", "0.25"]
    assert main([*TINY, *photos, "--steps", "1", "--out", str(tmp_path), "--device", "cpu"]) == 0
    model, config = gf.training.load_run(tmp_path / "00000-dcgan-photos")
    held_out = load_real(model, config, ImageSource())
    assert held_out.relation == "held-out"
    assert (len(seen), len(held_out.dataset)) == (15, 5)
    assert not seen & {image.numpy().tobytes() for image in held_out.dataset.images}
    training = load_real(model, config, ImageSource(), training=True)
    assert {image.numpy().tobytes() for image in training.dataset.images} == seen


def test_a_folder_that_has_changed_cannot_be_split_again(
    held_out_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(held_out_runs["out"] / "photos", photos)
    flags = [*TINY_VAES["vae"], "--data", str(photos), "--steps", "1", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*flags, "--val-split", "0.2"]) == 0
    assert main(flags) == 0
    Image.new("L", (8, 8), 7).save(photos / "new.png")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["reconstruct", str(tmp_path / "00000-vae-photos"), "--out", str(tmp_path / "a.png")])
    assert "nobody can tell which were held out: name some with --data" in capsys.readouterr().err
    assert main(["reconstruct", str(tmp_path / "00001-vae-photos"), "--out", str(tmp_path / "a.png")]) == 0
    assert re.match(r"21 images of .*photos\n", capsys.readouterr().out)  # neither word would be true


def test_a_full_disk_is_told_with_the_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid.png"
    out.symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="2"):
        main(["sample", str(run), "--out", str(out)])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument --out: [Errno 28] No space left on device: '{out}'" in line


@pytest.mark.parametrize("command", [
    ["sample", "frame-predictor"], ["sample", "frame-filler"], ["edit", "continue", "frame-predictor"],
    ["edit", "retime", "frame-filler"], ["edit", "fill", "frame-filler", "--missing", "2"],
])  # fmt: skip
def test_sequences(command: list[str], models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = [models.get(word, word) for word in command]
    assert main([*command, "--n", "3", "--out", "whole.npz"]) == 0
    monkeypatch.setattr(outputs, "_MOST_AT_A_TIME", 2)
    for out in ("parts.npz", "frames/", "clip.webm"):
        assert main([*command, "--n", "3", "--out", out]) == 0
    with np.load("whole.npz") as whole, np.load("parts.npz") as parts:
        name = whole.files[-1]  # what the model made
        assert whole.files == parts.files
        assert np.abs(whole[name].astype(int) - parts[name]).max() <= 1
        steps = whole[name].shape[1]
    assert len(png_names("frames")) == 3 * steps * len(whole.files)
    with av.open("clip.webm") as video:
        assert len(list(video.decode(video=0))) == steps
