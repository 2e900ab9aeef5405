import copy
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from trainers import OnStep

import genimg_fast as gf
from genimg_fast.cli import main
from genimg_fast.cli.runs import load_real

SMALL = ["--image-size", "8", "--z-dim", "4", "--batch-size", "8"]
TINY = ["train", "dcgan", *SMALL, "--channels", "2"]
TINY_VAES = {
    "vae": ["train", "vae", *SMALL, "--channels", "2"],
    "cvae": ["train", "cvae", *SMALL, "--channels", "2", "--likelihood", "bernoulli", "--free-bits", "0.1"],
    "mlp-vae": ["train", "mlp-vae", *SMALL, "--hidden", "12", "8", "--beta", "2", "--warmup", "5"],
}
TINY_FRAMES = ["--image-size", "8", "--frames", "6", "--channels", "2", "--hidden-size", "4", "--batch-size", "4"]
TINY_SEQUENCES = {
    "frame-predictor": ["train", "frame-predictor", *TINY_FRAMES, "--reach", "1", "--context", "4"],
    "frame-filler": ["train", "frame-filler", *TINY_FRAMES, "--core", "gru", "--speed", "0.2", "0.05"],
    "row-rnn": ["train", "row-rnn", "--image-size", "8", "--hidden-size", "8", "--batch-size", "8"],
}


@pytest.fixture(autouse=True)
def _backend() -> Iterator[None]:
    with gf.backend(gf.get_backend()):  # --backend sets it for the whole process
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    assert main([*TINY, "--steps", "3", "--out", str(out), "--device", "cpu"]) == 0
    return out / "00000-dcgan-digits"


@pytest.fixture(scope="module")
def vae_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("runs")
    runs = {}
    for number, (name, flags) in enumerate(TINY_VAES.items()):
        assert main([*flags, "--steps", "3", "--out", str(out), "--device", "cpu"]) == 0
        runs[name] = out / f"0000{number}-{name}-digits"
    return runs


@pytest.fixture(scope="module")
def sequence_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("runs")
    for flags in TINY_SEQUENCES.values():
        assert main([*flags, "--steps", "3", "--out", str(out), "--device", "cpu"]) == 0
    names = ("00000-frame-predictor-moving-digits", "00001-frame-filler-moving-digits", "00002-row-rnn-digits")
    return {name: out / folder for name, folder in zip(TINY_SEQUENCES, names, strict=True)}


def image_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def side(tiles: int, group: int = 1) -> int:
    """Length of a row of plain tiles of 8 pixels, in groups."""
    return 8 * tiles + 4 * (tiles - 1) + (12 * ((tiles - 1) // group) if group > 1 else 0)


PLAIN = ["--plain", "--scale", "1"]


def test_train(run: Path) -> None:
    assert {f.name for f in run.iterdir()} == {
        "config.json", "stats.jsonl", "real.png", "losses.png", "checkpoint.pt", "samples-000003.png"
    }  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    assert config["model_args"] == {"z_dim": 4, "c_dim": 1, "channels": 2, "n_blocks": 1, "norm": "batch"}
    assert (config["data"], config["lr"], config["seed"]) == ("digits", 5e-4, 0)
    assert config["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("name", "model_args", "trainer_args"),
    [
        ("vae", {"z_dim": 4, "c_dim": 1, "channels": 2, "n_blocks": 1, "likelihood": "gaussian"}, {}),
        (
            "cvae",
            {"num_classes": 10, "z_dim": 4, "c_dim": 1, "channels": 2, "n_blocks": 1, "likelihood": "bernoulli"},
            {"free_bits": 0.1, "beta": 1.0},
        ),
        (
            "mlp-vae",
            {"z_dim": 4, "c_dim": 1, "image_size": 8, "hidden": [12, 8], "likelihood": "gaussian"},
            {"beta": 2.0, "warmup": 5},
        ),
    ],
)
def test_train_vaes(
    name: str, model_args: dict[str, object], trainer_args: dict[str, object], vae_runs: dict[str, Path]
) -> None:
    assert {f.name for f in vae_runs[name].iterdir()} == {
        "config.json", "stats.jsonl", "real.png", "losses.png", "checkpoint.pt",
        "samples-000003.png", "reconstructions-000003.png",
    }  # fmt: skip
    config = json.loads((vae_runs[name] / "config.json").read_text())
    expected = {"lr": 1e-3, "beta": 10.0, "warmup": 0, "free_bits": 0.0, **trainer_args}
    assert config["model_args"] == model_args
    assert {key: config[key] for key in expected} == expected
    (row,) = map(json.loads, (vae_runs[name] / "stats.jsonl").read_text().splitlines())
    assert {"loss", "reconstruction", "kl", "active_units"} <= row.keys()


FRAME_MODEL = {"c_dim": 1, "channels": 2, "n_blocks": 1, "hidden_size": 4, "num_layers": 2}


@pytest.mark.parametrize(
    ("name", "config", "pictures"),
    [
        (
            "frame-predictor",
            {
                "model_args": {**FRAME_MODEL, "core": "convlstm", "reach": 1},
                "data": "moving-digits", "frames": 6, "speed": [0.1, 0.1],
                "context": 4, "teacher_forcing": 0.0, "forcing_steps": 3, "lr": 3e-3,
            },
            {"real.gif", "predictions-000003.gif"},
        ),
        (
            "frame-filler",
            {"model_args": {**FRAME_MODEL, "core": "gru", "reach": 2}, "speed": [0.05, 0.2]},
            {"real.gif", "fillings-000003.gif"},
        ),
        (
            "row-rnn",
            {
                "model_args": {
                    "c_dim": 1, "image_size": 8, "hidden_size": 8, "num_layers": 2,
                    "cell": "lstm", "components": 30,
                },
                "data": "digits", "classes": list("0123456789"),
            },
            {"real.png", "samples-000003.png", "completions-000003.png"},
        ),
    ],
)  # fmt: skip
def test_train_sequences(
    name: str, config: dict[str, object], pictures: set[str], sequence_runs: dict[str, Path]
) -> None:
    run = sequence_runs[name]
    assert {f.name for f in run.iterdir()} == {
        "config.json", "stats.jsonl", "losses.png", "checkpoint.pt", *pictures
    }  # fmt: skip
    written = json.loads((run / "config.json").read_text())
    assert {key: written[key] for key in config} == config


GANS = {
    "cdcgan": ["--channels", "2", "--condition", "projection", "--norm", "none", "--r1", "0.1"],
    "wgan": ["--channels", "2", "--n-critic", "2", "--gp", "5"],
    "resgan": ["--channels", "2", "--norm", "spectral", "--loss", "hinge", "--gp", "0"],
    "mlp-gan": ["--hidden", "8", "9", "--label-smoothing", "0.1", "--precision", "bf16"],
    "autoencoder": ["--channels", "2", "--accumulate", "2", "--grad-clip", "1"],
    "glo": ["--channels", "2", "--schedule", "linear", "--ema", "0"],
}


@pytest.mark.parametrize("name", GANS)
def test_train_resume_and_use_the_others(name: str, tmp_path: Path, device: str) -> None:
    flags = ["train", name, *SMALL, *GANS[name], "--out", str(tmp_path), "--device", device, "--resume", "auto"]
    constant = ["--schedule", "constant"] if name in ("autoencoder", "glo", "cdcgan", "mlp-gan") else []
    assert main([*flags, *constant, "--steps", "2"]) == 0
    assert main([*flags, *constant, "--steps", "3"]) == 0  # goes on
    (run,) = tmp_path.iterdir()
    assert run.name == f"00000-{name}-digits"
    steps = [json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines()]
    assert steps == [2, 3]
    with pytest.raises(SystemExit, match="2"):
        main([*flags, *constant, "--steps", "4", "--lr", "0.5"])  # another setting
    grid = tmp_path / "grid.png"
    if name == "autoencoder":
        assert main(["reconstruct", str(run), "--n", "4", "--out", str(grid)]) == 0
    else:
        assert main(["sample", str(run), "--n", "4", "--out", str(grid)]) == 0
    assert image_size(grid)[0] > 8
    if name == "cdcgan":
        assert main(["sample", str(run), "--class", "7", "--out", str(grid)]) == 0
        assert main(["interpolate", str(run), "--n", "2", "--steps", "3", "--out", str(grid)]) == 0


def test_another_config_is_one_line_with_the_difference(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*TINY, "--steps", "9", "--resume", str(run), "--lr", "0.5"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "argument --resume: the settings differ from those of" in line
    assert "--lr was 0.0005 and is 0.5" in line


def test_other_steps_of_a_schedule_are_told_by_their_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--channels", "4", "--hidden-size", "4", "--batch-size", "2", "--frames", "4", "--image-size", "16"]
    predictor = ["train", "frame-predictor", "--data", "moving-digits", *small]
    for model in (TINY, predictor):  # the predictor's --forcing-steps follows
        flags = [*model, "--schedule", "cosine", "--out", str(tmp_path), "--device", "cpu"]
        assert main([*flags, "--steps", "2"]) == 0
        with pytest.raises(SystemExit, match="2"):
            main([*flags, "--steps", "3", "--resume", "auto"])
        error = capsys.readouterr().err.splitlines()[-1]
        assert ": --steps was 2 and is 3, and the cosine schedule depends on it (see" in error
    assert "decay_steps" not in error


def test_other_data_or_another_models_checkpoint_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(8):
        Image.new("L", (8, 8), 30 * index).save(folder / f"{index}.png")
    flags = [*TINY, "--data", str(folder), "--out", str(tmp_path), "--device", "cpu"]
    assert main([*flags, "--steps", "1"]) == 0
    Image.new("L", (8, 8), 99).save(folder / "0.png")
    errors = []
    for checkpoint in (None, run / "checkpoint.pt"):
        if checkpoint is not None:
            (tmp_path / "00000-dcgan-photos" / "checkpoint.pt").write_bytes(checkpoint.read_bytes())
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            main([*flags, "--steps", "2", "--resume", "auto"])
        errors += capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert re.search(r"--resume: the settings differ from those of .*: sha256 was '\w+' and is", errors[0])
    assert "data was 'digits' and is" in errors[1]


def test_other_frames_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(10):
        Image.new("L", (8, 8), 20 * number).save(folder / f"{number}.png")
    flags = [
        "train",
        "frame-filler",
        *TINY_FRAMES,
        "--data",
        str(folder),
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    assert main([*flags, "--device", "cpu", "--steps", "1"]) == 0
    Image.new("L", (8, 8), 99).save(folder / "0.png")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--device", "cpu", "--steps", "1", "--resume", "auto"])
    assert "sha256 was" in capsys.readouterr().err


def test_a_refused_run_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--out", str(tmp_path), "--device", "cpu"]
    with pytest.raises(SystemExit, match="2"):
        main([*TINY, *flags, "--loss", "hinge", "--label-smoothing", "0.1"])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main([*TINY, *flags, "--tensorboard"]) == 1
    assert list(tmp_path.iterdir()) == []


def test_clipped_weights_go_without_gradient_penalty(tmp_path: Path) -> None:
    flags = ["train", "wgan", *SMALL, "--channels", "2", "--clip-weights", "0.01", "--steps", "1"]
    assert main([*flags, "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "00000-wgan-digits" / "config.json").read_text())["gp"] == 0


def test_train_is_seeded(run: Path, tmp_path: Path) -> None:
    def losses(run: Path) -> list[float]:
        return [json.loads(line)["loss_g"] for line in (run / "stats.jsonl").read_text().splitlines()]

    for seed in ("0", "1"):
        main([*TINY, "--steps", "3", "--out", str(tmp_path), "--device", "cpu", "--seed", seed])
    assert losses(tmp_path / "00000-dcgan-digits") == losses(run)
    assert losses(tmp_path / "00001-dcgan-digits") != losses(run)


def test_train_on_a_folder_in_colour(tmp_path: Path, device: str) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(8):
        Image.new("RGB", (12, 10), (30 * index, 0, 0)).save(tmp_path / "photos" / f"{index}.png")
    flags = ["--data", str(tmp_path / "photos"), "--steps", "1", "--out", str(tmp_path), "--device", device]
    assert main([*TINY, *flags, "--backend", "reference", "--loss", "hinge"]) == 0
    config = json.loads((tmp_path / "00000-dcgan-photos" / "config.json").read_text())
    assert (config["model_args"]["c_dim"], config["backend"], config["loss"]) == (3, "reference", "hinge")


def test_sample(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sample(source: Path, *flags: str) -> bytes:
        out = tmp_path / "grid.png"
        assert main(["sample", str(source), "--out", str(out), *flags]) == 0
        assert capsys.readouterr().out == f"{out}\n"
        return out.read_bytes()

    first = sample(run, "--n", "9", "--seed", "5", *PLAIN)
    assert image_size(tmp_path / "grid.png") == (side(3), side(3))
    assert sample(run, "--n", "9", "--seed", "5", "--plain", "--scale", "3") != first
    assert image_size(tmp_path / "grid.png") == (3 * 24 + 2 * 4,) * 2
    first = sample(run, "--n", "9", "--seed", "5")
    assert image_size(tmp_path / "grid.png") == (3 * 64 + 4 * 4,) * 2
    assert sample(run / "checkpoint.pt", "--n", "9", "--seed", "5") == first
    assert sample(run, "--n", "9", "--seed", "6") != first


def test_sample_of_a_class(vae_runs: dict[str, Path], tmp_path: Path) -> None:
    def sample(*flags: str) -> bytes:
        out = tmp_path / "grid.png"
        assert main(["sample", str(vae_runs["cvae"]), "--out", str(out), "--n", "20", *flags]) == 0
        return out.read_bytes()

    assert sample("--class", "7") == sample("--class", "7")
    assert len({sample(), sample("--class", "7"), sample("--class", "3")}) == 3


@pytest.mark.parametrize("name", TINY_VAES)
def test_reconstruct(name: str, vae_runs: dict[str, Path], tmp_path: Path, device: str) -> None:
    out = tmp_path / "pairs.png"
    command = ["reconstruct", str(vae_runs[name]), "--out", str(out), "--device", device]
    assert main([*command, "--n", "9", *PLAIN]) == 0
    assert image_size(out) == (side(6, 2), side(3))
    assert main(command) == 0
    assert image_size(out)[0] == 8 * 64 + 7 * 4 + 3 * 12 + 2 * 4  # 36 pairs


@pytest.mark.parametrize("mode", ["linear", "spherical"])
@pytest.mark.parametrize("name", ["dcgan", *TINY_VAES])
def test_interpolate(
    name: str, mode: str, run: Path, vae_runs: dict[str, Path], tmp_path: Path, device: str
) -> None:
    source = str(run if name == "dcgan" else vae_runs[name])
    flags = ["--n", "4", "--steps", "6", "--mode", mode, "--device", device]
    grid, animation = tmp_path / "path.png", tmp_path / "path.gif"
    assert main(["interpolate", source, *flags, *PLAIN, "--out", str(grid)]) == 0
    assert image_size(grid) == (side(6 if name == "dcgan" else 8), side(4))  # of a VAE, the ends are real images
    assert main(["interpolate", source, *flags, *PLAIN, "--out", str(animation)]) == 0
    with Image.open(animation) as frames:
        assert frames.size == ((side(2), side(2)) if name == "dcgan" else (side(3), side(4)))
        assert frames.info["loop"] == 0
        assert frames.n_frames > 1  # at most 10: Pillow merges frames that are equal


def test_a_conditional_model_has_its_classes_in_columns(vae_runs: dict[str, Path], tmp_path: Path) -> None:
    for flags, rows in (([], 8), (["--n", "30"], 3)):
        command = ["sample", str(vae_runs["cvae"]), *flags, *PLAIN, "--out", str(tmp_path / "grid.png")]
        assert main(command) == 0
        assert image_size(tmp_path / "grid.png") == (side(10), side(rows))


@pytest.mark.parametrize("name", TINY_VAES)
def test_latent(name: str, vae_runs: dict[str, Path], tmp_path: Path, device: str) -> None:
    out = tmp_path / "latent.png"
    assert main(["latent", str(vae_runs[name]), "--out", str(out), "--device", device]) == 0
    assert image_size(out) == (700, 600)


def test_latent_with_a_single_dimension(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*TINY_VAES["mlp-vae"], "--z-dim", "1", "--steps", "1", "--out", str(tmp_path), "--device", "cpu"])
    with pytest.raises(SystemExit, match="2"):
        main(["latent", str(tmp_path / "00000-mlp-vae-digits")])
    assert "argument RUN: its latents have a single dimension" in capsys.readouterr().err


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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([command, str(run if name == "dcgan" else vae_runs[name]), *flags])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def animation(path: Path) -> tuple[tuple[int, int], int]:
    """Size and number of frames, of which Pillow merges equal ones."""
    with Image.open(path) as frames:
        return frames.size, frames.n_frames


@pytest.mark.parametrize(("name", "panels"), [("frame-predictor", 2), ("frame-filler", 3)])
@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_sample_of_frames(
    name: str, panels: int, suffix: str, sequence_runs: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, device: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    command = ["sample", str(sequence_runs[name]), "--device", device]
    assert main([*command, "--n", "3", *PLAIN, "--out", f"a{suffix}"]) == 0
    assert capsys.readouterr().out == f"3 held-out sequences of moving-digits\na{suffix}\n"
    size, count = animation(tmp_path / f"a{suffix}")
    assert size == (side(panels), side(3))
    assert 1 < count <= 6
    assert main([*command, "--n", "3", *PLAIN, "--out", "strips.png"]) == 0
    assert image_size(tmp_path / "strips.png") == (side(6), side(3 * panels, panels))
    assert main([*command, *PLAIN]) == 0
    assert animation(tmp_path / "frames.gif")[0] == (side(2 * panels, panels), side(4))  # 8 sequences
    assert main(command) == 0
    assert animation(tmp_path / "frames.gif")[0][0] == 2 * panels * 68 + 12 + 4


def test_sample_of_rows(sequence_runs: dict[str, Path], tmp_path: Path) -> None:
    run = str(sequence_runs["row-rnn"])
    assert main(["sample", run, "--n", "9", *PLAIN, "--out", str(tmp_path / "grid.png")]) == 0
    assert image_size(tmp_path / "grid.png") == (side(3), side(3))
    flags = ["--n", "4", "--rows", "3", *PLAIN, "--out", str(tmp_path / "c.png")]
    assert main(["edit", "complete", run, *flags]) == 0
    assert image_size(tmp_path / "c.png") == (side(3), side(4))  # truth, given, model


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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([*command, str(sequence_runs[name]), *flags])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr().out == f"{gf.info()}\n"


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"data": "digits", "image_size": 8, "z_dim": 4, "batch_size": 8, "channels": 2}
    monkeypatch.setattr("genimg_fast.cli.demo.DEMO", tiny)
    out = tmp_path / "my runs"
    assert main(["demo", "--out", str(out), "--steps", "2"]) == 0
    text = capsys.readouterr().out
    assert f" --channels 2 --out '{out}' --seed 0" in text
    assert f"generated digits: {out / '00000-dcgan-digits' / 'samples-000002.png'}" in text
    assert "step of 8 images:" in text
    assert "with plain torch.nn" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train"],
        *(["train", model] for model in ("dcgan", "vae", "cvae", "mlp-vae", *TINY_SEQUENCES)),
        *([command] for command in ("sample", "reconstruct", "interpolate", "latent", "edit", "demo", "info")),
        *(["edit", edit] for edit in ("continue", "fill", "retime", "complete")),
    ],
)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--help"])
    text = capsys.readouterr().out
    assert "usage: genimg-fast" in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "dcgan", "--steps", "0"], "argument --steps: must be an integer of at least 1, got '0'"),
        (["train", "dcgan", "--steps", "1e3"], "argument --steps: must be an integer of at least 1, got '1e3'"),
        (["train", "dcgan", "--image-size", "20"], "argument --image-size: must be one of 8, 16, 32,"),
        (["train", "dcgan", "--image-size", "4"], "argument --image-size: must be one of 8, 16, 32,"),
        (["train", "dcgan", "--batch-size", "1"], "argument --batch-size: must be an integer of at least 2"),
        (["train", "dcgan", "--batch-size", "1798"], "argument --batch-size: must be at most 1797, the number of"),
        (["train", "dcgan", "--lr", "-1"], "argument --lr: must be a number above 0, got '-1'"),
        (["train", "dcgan", "--lr", "nan"], "argument --lr: must be a number above 0"),
        (["train", "dcgan", "--z-dim", "x"], "argument --z-dim: must be an integer of at least 1"),
        (
            ["train", "dcgan", "--seed", str(2**64)],
            "--seed: must be an integer of at most 9223372036854775807, got",
        ),
        (["train", "dcgan", "--channels", "1" + 11 * "0"], "--channels: must be an integer of at most 2147483647"),
        (["train", "row-rnn", "--num-layers", "1001"], "--num-layers: must be an integer of at most 1000, got"),
        (["train", "vae", "--beta", "1e300"], r"--beta: must be a number of at most 3.4e\+38, got '1e300'"),
        (["train", "dcgan", "--clip-weights", "1e39"], "--clip-weights: must be a number of at most 3.4e"),
        (["train", "dcgan", "--data", "a\nb\udcff\033[31m"], r"--data: 'a\\nb\\udcff\\x1b\[31m' is neither"),
        (["train", "dcgan", "--seed", "-1"], "argument --seed: must be an integer of at least 0"),
        (["train", "dcgan", "--c-dim", "2"], "argument --c-dim: invalid choice"),
        (["train", "dcgan", "--loss", "l2"], "argument --loss: invalid choice: 'l2'"),
        (["train", "dcgan", "--backend", "fast"], "argument --backend: invalid choice: 'fast'"),
        (["train", "dcgan", "--cuda-graph", "--device", "cpu"], "--cuda-graph: needs a GPU of NVIDIA's, and"),
        (["train", "dcgan", "--device", "abacus"], "argument --device: must be auto, cpu, cuda or cuda:<number>"),
        (["train", "dcgan", "--device", "cuda:99"], "argument --device: there is no cuda:99 on this machine"),
        (["train", "dcgan", "--data", "nowhere"], "argument --data: 'nowhere' is neither a folder nor one of"),
        (["train", "dcgan", "--data", "mnist", "--data-root", "nowhere"], "argument --data: no MNIST data set in"),
        (["train", "dcgan", "--out", __file__], "argument --out: "),
        (["train", "gpt"], "argument model: invalid choice: 'gpt'"),
        (["train"], "the following arguments are required: model"),
        (["train", "dcgan", "--beta", "2"], "unrecognized arguments: --beta 2"),
        (["train", "vae", "--loss", "hinge"], "unrecognized arguments: --loss hinge"),
        (["train", "vae", "--likelihood", "l2"], "argument --likelihood: invalid choice: 'l2'"),
        (["train", "vae", "--beta", "-1"], "argument --beta: must be a number of at least 0, got '-1'"),
        (["train", "vae", "--beta", "x"], "argument --beta: must be a number of at least 0, got 'x'"),
        (["train", "cvae", "--free-bits", "inf"], "argument --free-bits: must be a number of at least 0"),
        (["train", "cvae", "--warmup", "1.5"], "argument --warmup: must be an integer of at least 0"),
        (["train", "mlp-vae", "--hidden", "400", "0"], "argument --hidden: must be an integer of at least 1"),
        (["train", "mlp-vae", "--image-size", "0"], "argument --image-size: must be an integer of at least 1"),
        (["train", "frame-predictor", "--core", "tcn"], "argument --core: invalid choice: 'tcn'"),
        (
            ["train", "frame-predictor", "--teacher-forcing", "2"],
            "--teacher-forcing: must be a number from 0 to 1",
        ),
        (
            ["train", "frame-predictor", "--context", "20"],
            "--context: must be below 20, the number of frames, got",
        ),
        (["train", "frame-predictor", "--frames", "1"], "argument --frames: must be an integer of at least 2"),
        (
            ["train", "frame-predictor", "--data", "nowhere"],
            "argument --data: 'nowhere' is neither a folder nor a",
        ),
        (
            ["train", "frame-predictor", "--batch-size", "10001"],
            "--batch-size: must be at most 10000, the number of",
        ),
        (["train", "frame-filler", "--reach", "32"], "argument --reach: must be below 32, the image size, got 32"),
        (["train", "frame-filler", "--context", "3"], "unrecognized arguments: --context 3"),
        (["train", "frame-filler", "--speed", "0.1", "0.2", "0.3"], "--speed: takes one number or two, got 3"),
        (["train", "glo", "--flip"], "argument --flip: glo learns a code for each image as it is"),
        (["train", "frame-filler", "--speed", "1.5"], "argument --speed: must be a number from 0 to 1, got '1.5'"),
        (["train", "row-rnn", "--components", "0"], "argument --components: must be an integer of at least 1"),
        (
            ["train", "dcgan", "--stpes", "3"],
            r"unrecognized arguments: --stpes 3; did you mean --steps\? \(see genimg-fast train dcgan --help\)",
        ),
        (["train", "dcgan", "--batch_size=8"], r"--batch_size=8; did you mean --batch-size\?"),
        (["train", "vae", "-lr", "1"], r"-lr 1; did you mean --lr\?"),
        (["edit", "fill", "nowhere", "--mising", "3"], r"--mising 3; did you mean --missing\? .*edit fill --help"),
        (["--verison"], r"--verison; did you mean --version\? \(see genimg-fast --help\)"),
        (["train", "vae", "digits"], r"unrecognized arguments: digits \(see genimg-fast train vae --help\)"),
        (["tarin", "dcgan"], r"argument COMMAND: invalid choice: 'tarin'; did you mean train\?"),
        (["train", "dcgn"], r"'dcgn'; did you mean dcgan, cdcgan\? \(see genimg-fast train --help\)"),
        (["train", "dcgan", "--loss", "hing"], r"argument --loss: invalid choice: 'hing'; did you mean hinge\?"),
        (["train", "dcgan", "--data", "didgits"], r"argument --data: 'didgits' .*; did you mean digits\?"),
        (["train", "vae", "--data", "mnist"], "argument --data: no MNIST data set in data: --download"),
        (["sample", "nowhere"], "argument RUN: no checkpoint at nowhere"),
        (["sample", __file__], "argument RUN: .* is damaged or not a checkpoint"),
        (["sample", "nowhere", "--out", "grid.doc"], "argument --out: 'grid.doc' does not end like an image file"),
        (["sample", "nowhere", "--n", "0"], "argument --n: must be an integer of at least 1"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_arguments_give_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("genimg-fast")
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_train_pix2pix_on_a_folder_of_pairs(
    tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs").mkdir()
    for index in range(4):
        Image.new("RGB", (16, 8), (60 * index, 0, 0)).save(tmp_path / "pairs" / f"{index}.png")
    (tmp_path / "pairs" / "broken.png").write_bytes(b"no image")
    flags = ["train", "pix2pix", "--data", str(tmp_path / "pairs"), "--channels", "2"]
    flags += ["--batch-size", "2", "--steps", "2", "--out", str(tmp_path), "--device", device]
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    error = capsys.readouterr().err
    assert error.count("broken.png") == 1
    assert "; --skip-broken leaves it out" in error
    with pytest.warns(UserWarning, match=r"skipped: cannot read image .*broken\.png"):
        assert main([*flags, "--skip-broken", "--direction", "b2a"]) == 0
    assert "image size 8 instead of 256: the pairs have 8 pixels a side" in capsys.readouterr().out
    run = tmp_path / "00000-pix2pix-pairs"
    (tmp_path / "pairs" / "broken.png").unlink()
    assert main(["translate", str(run), "--n", "3", "--dropout", "--out", str(tmp_path / "grid.png")]) == 0
    assert image_size(tmp_path / "grid.png")[0] > 3 * 8
    assert (run / "translations-000002.png").exists()
    assert json.loads((run / "config.json").read_text())["direction"] == "b2a"


def test_the_default_batch_is_no_larger_than_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, clip = tmp_path / "images", tmp_path / "clip.gif"
    images.mkdir()
    shades = [Image.new("L", (16, 16), 20 * number) for number in range(12)]
    for number, shade in enumerate(shades[:5]):
        shade.save(images / f"{number}.png")
    shades[0].save(clip, save_all=True, append_images=shades[1:])
    out = ["--steps", "1", "--image-size", "8", "--channels", "2", "--out", str(tmp_path), "--device", "cpu"]

    dcgan = ["train", "dcgan", "--data", str(images), *out]
    filler = ["train", "frame-filler", "--data", str(clip), "--hidden-size", "2", *out]
    for command, run, size, line in (
        (dcgan, "00000-dcgan-images", 5, "batch size 5 instead of 64: there are 5 images; --crops cuts more from"),
        ([*dcgan, "--crops", "70"], "00001-dcgan-images", 64, "dcgan on 70 images"),
        ([*dcgan, "--accumulate", "2"], "00002-dcgan-images", 4, "batch size 4 instead of 64"),
        (
            [*filler, "--frames", "6"],
            "00003-frame-filler-clip.gif",
            7,
            "of 6 frames; with fewer --frames there are",
        ),
    ):
        assert main(command) == 0
        assert line in capsys.readouterr().out
        assert json.loads((tmp_path / run / "config.json").read_text())["batch_size"] == size
    assert (
        main([*dcgan, "--resume", "auto", "--accumulate", "2", "--steps", "2"]) == 0
    )  # it is no other batch size
    capsys.readouterr()

    for number in range(1, 5):
        (images / f"{number}.png").unlink()
    for command, message in (
        (dcgan, "argument --data: 1 images in .* are too few; --crops cuts more from them"),
        ([*dcgan, "--batch-size", "2"], "argument --batch-size: must be at most 1, .*; --crops cuts more"),
        ([*filler, "--frames", "20"], "argument --frames: no clip in .* has 20 frames, the longest one has 12"),
        ([*filler, "--frames", "12"], "argument --data: 1 sequences of 12 frames .*; with fewer --frames"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(command)
        (error,) = capsys.readouterr().err.splitlines()
        assert re.search(message, error), error


def test_one_class_only_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("L", (8, 8), 60 * number).save(tmp_path / "photos" / f"{number}.png")
    flags = ["--data", str(tmp_path / "photos"), "--steps", "1", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*TINY_VAES["cvae"], "--batch-size", "4", *flags]) == 0
    assert "cvae on one class only, photos: subfolders make classes" in capsys.readouterr().out


def test_the_default_sequence_is_no_longer_than_the_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for clip in range(3):
        (tmp_path / "clips" / str(clip)).mkdir(parents=True)
        for number in range(12):
            Image.new("L", (8, 8), 20 * number).save(tmp_path / "clips" / str(clip) / f"{number}.png")
    flags = ["--data", str(tmp_path / "clips"), "--image-size", "8", "--channels", "2", "--hidden-size", "2"]
    flags += ["--steps", "1", "--out", str(tmp_path), "--device", "cpu"]
    assert main(["train", "frame-predictor", *flags]) == 0
    assert "sequences of 12 frames instead of 20: no clip is longer" in capsys.readouterr().out
    config = json.loads((tmp_path / "00000-frame-predictor-clips" / "config.json").read_text())
    assert config["frames"] == 12


def test_train_on_crops_of_photographs_that_move(tmp_path: Path, device: str) -> None:
    flags = ["--data", "photos", "--crops", "20", "--flip", "--shift", "1", "--out", str(tmp_path)]
    assert main([*TINY, *flags, "--steps", "1", "--device", device]) == 0
    config = json.loads((tmp_path / "00000-dcgan-photos" / "config.json").read_text())
    assert (config["classes"], config["crops"]) == (["china", "flower"], 20)


def test_sample_into_a_missing_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sample", str(run), "--out", str(tmp_path / "missing" / "grid.png")])
    assert "argument --out: " in capsys.readouterr().err


def test_checkpoint_of_an_unknown_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    state["config"]["model"] = "dcgam"
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(SystemExit, match="2"):
        main(["sample", str(tmp_path / "other.pt")])
    assert "argument RUN: unknown model 'dcgam'; did you mean dcgan, cdcgan?" in capsys.readouterr().err


def test_nan_is_one_line_that_names_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--steps", "40", "--lr", "1e30", "--out", str(tmp_path), "--device", "cpu"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("genimg-fast: error: ")
    assert " at step " in last


def damaged(good: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Get a checkpoint with another value at a place, or without the place."""
    state = copy.deepcopy(good)
    *folders, last = [int(key) if key.isdecimal() else key for key in place.split("/")]
    inner: Any = state
    for key in folders:
        inner = inner[key]
    if value is Ellipsis:
        del inner[last]
    else:
        inner[last] = value
    return state


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(("step", value) for value in ("3", float("nan"), -5, 2**62, None, True, [3], torch.tensor(3), ...)),
        *(("rng", value) for value in (None, {}, [], [{}], torch.zeros(1), [{"cpu": torch.zeros(9)}], ...)),
        *(("rng/0/cpu", value) for value in (torch.zeros(5056, dtype=torch.uint8), "x")),
        *(("model", value) for value in (None, {}, ...)),
        ("model/generator.main.0.weight", "x"),
        ("ema", None),
        ("optimizers", torch.zeros(3)),
        ("optimizers/d", ...),
        *(("optimizers/d/state/0", value) for value in ({"step": 1}, torch.zeros(2, 2), None)),
        ("optimizers/d/state/0/exp_avg", torch.zeros(3)),
        ("optimizers/d/param_groups", 5),
        ("scaler", None),
        *(("config", value) for value in (None, [], {"data": torch.zeros(1)}, ...)),
        *(("config/model", value) for value in (None, [], "dcgam", "a\nb")),
        *(("config/model_args", value) for value in (None, {"channels": "x"}, {1: 2})),
        *(("config/model_args/channels", value) for value in (-1, 2**40, float("nan"))),
        ("config/lr", float("nan")),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_one_line(
    place: str, value: Any, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "00000-dcgan-digits"
    folder.mkdir()
    good = torch.load(run / "checkpoint.pt", weights_only=True)
    torch.save(damaged(good, place, value), folder / "checkpoint.pt")
    with pytest.raises(SystemExit, match="2"):
        main([*TINY, "--steps", "4", "--out", str(tmp_path), "--device", "cpu", "--resume", "auto"])
    error = re.sub(".*\r.*\n?", "", capsys.readouterr().err)  # the progress bar
    assert error.startswith("genimg-fast train dcgan: error: argument --resume: ")
    assert error.count("\n") == 1
    if place in ("model", "config") or place.startswith(("config/model", "model/")):
        with pytest.raises(SystemExit, match="2"):
            main(["sample", str(folder), "--out", str(tmp_path / "grid.png"), "--device", "cpu"])
        error = capsys.readouterr().err
        assert error.startswith("genimg-fast sample: error: argument RUN: ")
        assert error.count("\n") == 1
    assert {f.name for f in folder.iterdir()} == {"checkpoint.pt"}


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


def test_short_memory_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--out", str(tmp_path)]
    errors = []
    assert main(["train", "mlp-vae", "--hidden", "2000000000", *flags]) == 1
    errors += capsys.readouterr().err.splitlines()
    assert main(["train", "dcgan", "--channels", "2147483647", "--z-dim", "2147483647", *flags]) == 1
    errors += capsys.readouterr().err.splitlines()
    assert main(["train", "dcgan", "--data", "photos", "--crops", "2000000000", *flags]) == 1
    errors += capsys.readouterr().err.splitlines()
    monkeypatch.setattr(gf.models.DCGAN, "sample", lambda self, n, **_: torch.empty(n, 10**9))
    assert main(["sample", str(run), "--n", "2000000000", "--out", str(tmp_path / "grid.png")]) == 1
    errors += capsys.readouterr().err.splitlines()
    assert [re.sub(r" for \d+ bytes", "", line) for line in errors] == [
        f"genimg-fast: error: out of memory; reduce {flags}"
        for flags in ("--hidden", "--channels or --z-dim", "--crops", "--n")
    ]
    assert list(tmp_path.iterdir()) == []


def test_names_are_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of folders, classes and files: no patterns, formulas, hidden labels, or text in one encoding."""
    data = tmp_path / "cats [v2]* $x_$ {0}\n%s \udcff"
    names = ["$\\bad{$", "_hidden", "a\udcffb"]
    for index, name in enumerate(names):
        (data / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), 60 * index + number).save(data / name / f"{number}.png")
    flags = [*TINY_VAES["mlp-vae"], "--data", str(data), "--out", str(tmp_path / "runs"), "--device", "cpu"]
    shown: list[str] = []
    save = Figure.savefig

    def see_and_save(figure: Figure, *args: Any, **options: Any) -> None:
        texts = [
            *([figure._suptitle] if figure._suptitle else []),
            *(t for g in figure.legends for t in g.get_texts()),
        ]
        shown.extend(text.get_text() for text in texts)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", see_and_save)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in ("1", "2"):
            assert main([*flags, "--steps", step, "--schedule", "constant", "--resume", "auto"]) == 0
        (run,) = (tmp_path / "runs").iterdir()
        assert main(["latent", str(run), "--out", str(tmp_path / "\udcff.png"), "--device", "cpu"]) == 0
    assert [json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines()] == [1, 2]
    assert json.loads((run / "config.json").read_text())["classes"] == names
    title = "00000-mlp-vae-cats [v2]* $x_$ {0}_%s \\udcff"
    assert shown == [title, title, "$\\bad{$", "_hidden", "a\\udcffb"]
    assert capsys.readouterr().out.endswith("\\udcff.png\n")


def test_output_in_another_encoding(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["sample", str(run), "--out", str(tmp_path / "\u00e9.png")]) == 0
    stream.flush()
    assert stream.buffer.getvalue() == f"{tmp_path}/\\xe9.png\n".encode()


def test_a_full_disk_is_told_with_the_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid.png"
    out.symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="2"):
        main(["sample", str(run), "--out", str(out)])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument --out: [Errno 28] No space left on device: '{out}'" in line


@pytest.mark.parametrize(
    ("signals", "status", "message"),
    [
        ([signal.SIGINT], 130, "stopped after step 2; checkpoint saved to "),
        ([signal.SIGINT, signal.SIGINT], 130, "stopped at once, after step 2; nothing was saved"),
        ([signal.SIGTERM], 143, "stopped after step 2; checkpoint saved to "),
        ([signal.SIGHUP], 129, "stopped after step 2; checkpoint saved to "),
    ],
)
def test_signals(
    signals: list[int], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def on_step(step: int, _: dict[str, torch.Tensor]) -> None:
        for signum in signals if step == 2 else []:
            os.kill(os.getpid(), signum)

    def fit(*args: Any, callbacks: Sequence[Any], **options: Any) -> Any:
        return gf.training.fit(*args, callbacks=[*callbacks, OnStep(on_step)], **options)

    monkeypatch.setattr("genimg_fast.cli.train.fit", fit)
    assert main([*TINY, "--steps", "9", "--out", str(tmp_path), "--device", "cpu"]) == status
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"genimg-fast: {message}")


@pytest.mark.parametrize(("rank", "said"), [("0", "genimg-fast: stopped\n"), ("1", "")])
def test_the_first_of_several_processes_says_what_stopped_them(
    rank: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genimg_fast.cli.train.fit", mock.Mock(side_effect=KeyboardInterrupt("stopped")))
    monkeypatch.setenv("RANK", rank)
    assert main([*TINY, "--steps", "9", "--out", str(tmp_path), "--device", "cpu"]) == 130
    assert capsys.readouterr().err == said


def test_another_training_in_the_folder_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gf.training.RunFolder(run, {}).locked():
        assert main([*TINY, "--steps", "9", "--resume", str(run), "--device", "cpu"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"genimg-fast: error: another process (PID {os.getpid()} on ")


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", ">/dev/full", "| true"])
def test_a_run_goes_on_when_nobody_reads_what_it_prints(redirection: str, tmp_path: Path) -> None:
    command = shlex.join([sys.executable, "-m", "genimg_fast", *TINY, "--steps", "2", "--out", str(tmp_path)])
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{command} {redirection}"], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "00000-dcgan-digits" / "checkpoint.pt").exists()


INTERRUPTED = """
    import os, signal, sys, threading, time
    def interrupt():
        while "torch" not in sys.modules:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
"""


@pytest.mark.parametrize("command", [["-m", "genimg_fast"], ["genimg-fast"]])
def test_ctrl_c_during_the_imports_is_one_line(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(INTERRUPTED))
    # What pip makes of the entry point.
    (tmp_path / "genimg-fast").write_text("import sys\nfrom genimg_fast.cli import main\nsys.exit(main())\n")
    path = os.pathsep.join([str(tmp_path), str(Path(gf.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, *command, "info"], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "genimg-fast: interrupted\n")


def test_ctrl_c_and_python_m(tmp_path: Path) -> None:
    flags = ["--steps", "1000000", "--log-every", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "genimg_fast", *TINY, *flags], stderr=subprocess.PIPE, text=True
    )
    stats = tmp_path / "00000-dcgan-digits" / "stats.jsonl"
    deadline = time.monotonic() + 120
    while not stats.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in error
    checkpoint = tmp_path / "00000-dcgan-digits" / "checkpoint.pt"
    assert error.splitlines()[-1].endswith(f"checkpoint saved to {checkpoint}")
    assert f"stopped after step {gf.training.load_checkpoint(checkpoint)['step']};" in error


def test_imports_are_light() -> None:
    code = (
        "import sys, genimg_fast.cli, genimg_fast.models, genimg_fast.losses\n"
        "heavy = {'torchvision', 'matplotlib', 'sklearn', 'tensorboard', 'PIL'} & sys.modules.keys()\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def held_out_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that hold data out: a share of the digits, a share of a folder, and another folder."""
    out = tmp_path_factory.mktemp("held-out")
    for folder, first in (("photos", 0), ("others", 100)):
        (out / folder).mkdir()
        for index in range(20):
            Image.new("L", (8, 8), first + 2 * index).save(out / folder / f"{index:02}.png")
    photos, others = str(out / "photos"), str(out / "others")
    flags = ["--steps", "2", "--val-every", "1", "--out", str(out), "--device", "cpu"]
    assert main([*TINY_VAES["cvae"], *flags, "--val-split", "0.1", "--seed", "5"]) == 0
    assert main([*TINY, *flags, "--data", photos, "--val-split", "0.25"]) == 0
    assert (
        main(["train", "row-rnn", *TINY_SEQUENCES["row-rnn"][2:], *flags, "--data", photos, "--val-data", others])
        == 0
    )
    names = {"cvae": "00000-cvae-digits", "dcgan": "00001-dcgan-photos", "row-rnn": "00002-row-rnn-photos"}
    return {"out": out, **{name: out / folder for name, folder in names.items()}}


def test_train_holds_data_out(held_out_runs: dict[str, Path]) -> None:
    config = json.loads((held_out_runs["cvae"] / "config.json").read_text())
    assert (config["val_split"], config["seed"]) == (0.1, 5)
    rows = [json.loads(line) for line in (held_out_runs["cvae"] / "stats.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all({"val_loss", "val_reconstruction", "val_kl"} <= row.keys() for row in rows)
    config = json.loads((held_out_runs["row-rnn"] / "config.json").read_text())
    assert config["val_data"] == str(held_out_runs["out"] / "others")
    assert config["val_sha256"] != config["sha256"]


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
    source: dict[str, Any] = {"data": None, "data_root": Path("data"), "download": False}
    held_out = load_real(model, config, **source)
    assert held_out.relation == "held-out"
    assert (len(seen), len(held_out.dataset)) == (15, 5)
    assert not seen & {image.numpy().tobytes() for image in held_out.dataset.images}
    training = load_real(model, config, **source, training=True)
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["glo", "--val-split", "0.1"], "--val-split: glo has codes for the images that it trains on, and for no"),
        (
            ["vae", "--val-split", "0.0001"],
            "leaves 1797 to train on and holds 0 out; 0.00056 holds one out",
        ),
        (["vae", "--val-split", "1"], "--val-split: must be a number from 0 to below 1, got '1'"),
        (["vae", "--val-split", "0.1", "--val-data", "x"], "--val-data: not allowed with argument --val-split"),
        (
            ["vae", "--val-data", "digits"],
            "--val-data: digits is the value of --data; --val-split holds a share of it out",
        ),
        (["vae", "--val-data", "nowhere"], "--val-data: 'nowhere' is neither a folder"),
        (
            ["vae", "--data", "photos", "--val-split", "0.1"],
            "--val-split: a share of 0.1 of 2 pictures that images are",
        ),
        (["cvae", "--data", "photos", "--val-split", "0.5"], "--val-split: leaves no image of class"),
        (
            ["frame-filler", "--val-split", "0.00001"],
            "--val-split: a share of 1e-05 of 10000 sequences is none, 0.0001 is one",
        ),
        (
            ["vae", "--data", "{}/photos", "--val-data", "{}/copy"],
            "--val-data: 1 of its 2 images are among those to",
        ),
        (["cvae", "--data", "{}/photos", "--val-data", "digits"], "--val-data: class 0 is none of photos"),
    ],
)
def test_bad_ways_to_hold_data_out_give_one_line(
    flags: list[str], message: str, held_out_runs: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(held_out_runs["out"] / "photos", tmp_path / "photos")
    (tmp_path / "copy").mkdir()
    for name in ("copy.png", "new.png"):
        Image.new("L", (8, 8), 2 if name == "copy.png" else 201).save(tmp_path / "copy" / name)
    flags = [flag.format(tmp_path) for flag in flags]
    with pytest.raises(SystemExit, match="2"):
        main(["train", *flags, "--image-size", "8", "--batch-size", "2", "--out", str(tmp_path / "runs")])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "runs").exists()


def test_train_pix2pix_and_clips_with_data_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "clip").mkdir()
    for index in range(20):
        Image.new("RGB", (16, 8), (12 * index, 0, 0)).save(tmp_path / "pairs" / f"{index}.png")
        Image.new("L", (8, 8), 12 * index).save(tmp_path / "clip" / f"{index}.png")
    flags = ["--image-size", "8", "--channels", "2", "--batch-size", "2", "--steps", "1", "--val-split", "0.3"]
    flags += ["--out", str(tmp_path), "--device", "cpu"]
    assert main(["train", "pix2pix", "--data", str(tmp_path / "pairs"), *flags]) == 0
    clip = ["--data", str(tmp_path / "clip"), "--frames", "4", "--hidden-size", "4"]
    assert main(["train", "frame-filler", *clip, *flags]) == 0
    out = capsys.readouterr().out
    assert "14 images" in out
    assert "(6 of" in out
    assert "translations-000001.png of held-out images" in out
    assert "11 sequences of 4 frames" in out
    assert "(3 of" in out
    pix2pix, filler = (tmp_path / name for name in ("00000-pix2pix-pairs", "00001-frame-filler-clip"))
    assert "val_l1" in (pix2pix / "stats.jsonl").read_text()
    assert "val_mse" in (filler / "stats.jsonl").read_text()
    assert main(["translate", str(pix2pix), "--out", str(tmp_path / "a.png")]) == 0
    fill = ["edit", "fill", str(filler), "--missing", "2", "--out", str(tmp_path / "a.png"), "--device", "cpu"]
    assert main([*fill, "--frames", "5"]) == 0
    out = capsys.readouterr().out
    assert "6 held-out pairs of folder" in out
    assert "2 held-out sequences of" in out
