import json
import os
import re
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import write_images
from matplotlib.figure import Figure
from PIL import Image
from tiny_runs import SMALL, TINY, TINY_FRAMES, TINY_VAES, damaged, image_size

import genimg_fast as gf
from genimg_fast.cli import main
from genimg_fast.data import decode, sources


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
    "vqvae": ["--channels", "2", "--n-halvings", "1", "--num-codes", "6", "--restart", "0.2", "--accumulate", "2"],
    "glo": ["--channels", "2", "--schedule", "linear", "--ema", "0"],
}


@pytest.mark.parametrize("name", GANS)
def test_train_resume_and_use_the_others(name: str, tmp_path: Path, device: str) -> None:
    small = [flag if flag != "--z-dim" or name != "vqvae" else "--code-dim" for flag in SMALL]
    flags = ["train", name, *small, *GANS[name], "--out", str(tmp_path), "--device", device, "--resume", "auto"]
    constant = ["--schedule", "constant"] if name in ("autoencoder", "vqvae", "glo", "cdcgan", "mlp-gan") else []
    assert main([*flags, *constant, "--steps", "2"]) == 0
    assert main([*flags, *constant, "--steps", "3"]) == 0  # goes on
    (run,) = tmp_path.iterdir()
    assert run.name == f"00000-{name}-digits"
    steps = [json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines()]
    assert steps == [2, 3]
    with pytest.raises(SystemExit, match="2"):
        main([*flags, *constant, "--steps", "4", "--lr", "0.5"])  # another setting
    grid = tmp_path / "grid.png"
    if name in ("autoencoder", "vqvae"):
        assert main(["reconstruct", str(run), "--n", "4", "--out", str(grid)]) == 0
    else:
        assert main(["sample", str(run), "--n", "4", "--out", str(grid)]) == 0
    assert image_size(grid)[0] > 8
    if name == "cdcgan":
        assert main(["sample", str(run), "--class", "7", "--out", str(grid)]) == 0
        assert main(["interpolate", str(run), "--n", "2", "--steps", "3", "--out", str(grid)]) == 0


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


def test_train_on_crops_of_photographs_that_move(tmp_path: Path, device: str) -> None:
    flags = ["--data", "photos", "--crops", "20", "--flip", "--shift", "1", "--out", str(tmp_path)]
    assert main([*TINY, *flags, "--steps", "1", "--device", device]) == 0
    config = json.loads((tmp_path / "00000-dcgan-photos" / "config.json").read_text())
    assert (config["classes"], config["crops"]) == (["china", "flower"], 20)


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


def test_train_cyclegan_on_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, colour in (("horses", 40), ("zebras", 200)):
        (tmp_path / kind).mkdir()
        for index in range(6):
            Image.new("L", (8, 8), colour + index).save(tmp_path / kind / f"{index}.png")
    folders = [str(tmp_path / kind) for kind in ("horses", "zebras")]
    flags = ["train", "cyclegan", "--data", *folders, "--channels", "2", "--n-residual", "1", "--flip"]
    flags += ["--schedule", "constant"]
    flags += ["--steps", "2", "--val-split", "0.3", "--out", str(tmp_path), "--device", "cpu"]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "image size 8 instead of 256: the images have 8 pixels a side" in out
    assert "6 images of kind A, 6 of kind B" in out
    run = tmp_path / "00000-cyclegan-horses-zebras"
    assert "val_cycle" in (run / "stats.jsonl").read_text()
    assert (run / "translations-000002.png").exists()
    assert json.loads((run / "config.json").read_text())["data"] == folders
    assert main([*flags, "--steps", "3", "--resume", "auto"]) == 0
    grid = str(tmp_path / "grid.png")
    for more in ([], ["--direction", "b2a"], ["--data", folders[1]], ["--data", str(tmp_path / "horses")]):
        assert main(["translate", str(run), "--out", grid, *more]) == 0
    out = capsys.readouterr().out
    assert "2 held-out images of kind A of" in out
    assert "2 held-out images of kind B of" in out
    assert "6 images of" in out
    for wrong, message in (
        (["--dropout"], "--dropout: is for pix2pix, and this is a CycleGAN"),
        (["--data", str(tmp_path / "none")], "is neither a folder nor one of"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["translate", str(run), "--out", grid, *wrong])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["train", "cyclegan", "--data", *folders, folders[0], "--out", str(tmp_path)])
    assert "argument --data: must be two folders, or one with two, got 3" in capsys.readouterr().err


def test_train_cyclegan_on_kinds_of_two_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(5):
        for kind in ("A", "B") if index < 2 else ("A",):
            (tmp_path / "both" / kind).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * index + ord(kind)).save(tmp_path / "both" / kind / f"{index}.png")
    both, out = str(tmp_path / "both"), tmp_path / "runs"
    flags = ["train", "cyclegan", "--channels", "2", "--n-residual", "1", "--steps", "1", "--out", str(out)]
    for wrong, message in (
        (
            ["--data", both, "--batch-size", "3"],
            f"--batch-size: must be at most 2, the number of images of the smaller kind in {both}",
        ),
        (
            ["--data", f"{both}/A", f"{both}/B", "--val-data", both],
            "--val-data: 5 of its 5 images are among those to train on, too",
        ),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*flags, *wrong])
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_clipped_weights_go_without_gradient_penalty(tmp_path: Path) -> None:
    flags = ["train", "wgan", *SMALL, "--channels", "2", "--clip-weights", "0.01", "--steps", "1"]
    assert main([*flags, "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "00000-wgan-digits" / "config.json").read_text())["gp"] == 0


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


def test_a_run_goes_on_wherever_its_clips_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for clip in range(4):
        folder = tmp_path / "clips" / str(clip)
        files = write_images(folder, 9, grey=True, seed=clip)
        for number, file in enumerate(files):  # out of the folders of their classes
            file.rename(folder / f"{number}{file.suffix}")
    decoded = tmp_path / "decoded.yaml"
    decoded.write_text("memory: 0\ncache: null\nworkers: 1\n")
    cached = ["--memory", "0", "--cache", str(tmp_path / "cache"), "--workers", "0"]
    flags = ["train", "frame-predictor", "--data", str(tmp_path / "clips"), "--image-size", "8", "--frames", "4"]
    flags += ["--channels", "2", "--hidden-size", "2", "--batch-size", "4", "--val-split", "0.3"]
    flags += ["--schedule", "constant", "--forcing-steps", "9", "--out", str(tmp_path), "--device", "cpu"]
    run = str(tmp_path / "00000-frame-predictor-clips")
    assert main([*flags, "--config", str(decoded), "--steps", "1"]) == 0
    for steps, storage in (("2", cached), ("3", ["--config", str(decoded)]), ("4", [])):
        assert main([*flags, *storage, "--steps", steps, "--resume", run]) == 0
        capsys.readouterr()
        assert main(["sample", run, "--n", "2", "--out", str(tmp_path / "a.png")]) == 0
        assert capsys.readouterr().out.startswith("2 held-out sequences of")
    assert len(list((tmp_path / "cache").glob("*.images"))) == 1
    os.utime(next((tmp_path / "clips" / "0").glob("0.*")), (1, 1))
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--config", str(decoded), "--steps", "5", "--resume", run])
    (error,) = capsys.readouterr().err.splitlines()
    assert "the settings differ" in error
    assert "skip" not in error  # nothing can be left out of a clip


def test_a_refused_run_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--out", str(tmp_path), "--device", "cpu"]
    with pytest.raises(SystemExit, match="2"):
        main([*TINY, *flags, "--loss", "hinge", "--label-smoothing", "0.1"])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main([*TINY, *flags, "--tensorboard"]) == 1
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


def test_a_run_goes_on_wherever_its_images_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is resumed, or shown, are the same images in memory, in a cache or decoded as needed; none others."""
    files = write_images(tmp_path / "photos", 30)
    decoded = tmp_path / "decoded.yaml"
    decoded.write_text("memory: 0\ncache: null\nworkers: 1\n")
    cached = ["--memory", "0", "--cache", str(tmp_path / "cache"), "--workers", "0"]
    flags = [*TINY_VAES["vae"], "--data", str(tmp_path / "photos"), "--val-split", "0.3", "--out", str(tmp_path)]
    flags += ["--device", "cpu", "--schedule", "constant"]
    run = str(tmp_path / "00000-vae-photos")
    resume = ["--resume", run]
    assert main([*flags, "--config", str(decoded), "--steps", "1"]) == 0
    for steps, storage in (("2", cached), ("3", ["--config", str(decoded)]), ("4", [])):
        assert main([*flags, *storage, "--steps", steps, *resume]) == 0
        capsys.readouterr()
        assert main(["reconstruct", run, "--out", str(tmp_path / "a.png")]) == 0
        assert capsys.readouterr().out.startswith("9 held-out images of")
    assert len(list((tmp_path / "cache").glob("*.images"))) == 1

    os.utime(files[0], (1, 1))
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--config", str(decoded), "--steps", "5", *resume])
    words = r"files of .*photos have changed; if files were damaged, --skip-broken goes on"
    assert re.search(words, capsys.readouterr().err)
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert main([*flags, "--config", str(decoded), "--steps", "5", *resume]) == 1
    words = r"genimg-fast: error: cannot read image .*000\.png: .*; --skip-broken leaves it out\n"
    assert re.fullmatch(words, capsys.readouterr().err)
    with pytest.warns(UserWarning, match=r"files of .*photos have changed: the training goes on"):
        assert main([*flags, "--skip-broken", "--steps", "5", *resume]) == 0


def test_a_worker_that_is_killed_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "photos", 30)
    (tmp_path / "o.yaml").write_text("memory: 0\ncache: null\nworkers: 1\nc_dim: 3\n")
    read, parent = decode.read_image, os.getpid()

    def killed(*arguments: Any) -> Any:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(*arguments)

    monkeypatch.setattr(sources, "read_image", killed)
    flags = [
        *TINY,
        "--data",
        str(tmp_path / "photos"),
        "--out",
        str(tmp_path),
        "--config",
        str(tmp_path / "o.yaml"),
    ]
    assert main([*flags, "--steps", "9", "--device", "cpu"]) == 1
    assert capsys.readouterr().err == (
        "genimg-fast: error: a process that reads images was killed, for want of memory, perhaps: "
        "--workers 0 does without\n"
    )


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_data_is_loaded_is_one_line(
    signum: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "photos", 30)
    monkeypatch.setattr(sources, "read_image", lambda *arguments: os.kill(os.getpid(), signum))
    flags = [*TINY, "--data", str(tmp_path / "photos"), "--out", str(tmp_path), "--device", "cpu"]
    assert main(flags) == 128 + signum
    assert capsys.readouterr().err == "genimg-fast: stopped while the data was loaded\n"
    assert signal.getsignal(signum) == signal.SIG_DFL


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


def test_a_run_of_before_an_option_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["train", "mlp-vae", "--image-size", "8", "--z-dim", "4", "--hidden", "8", "--batch-size", "8"]
    flags += ["--schedule", "constant", "--out", str(tmp_path), "--device", "cpu", "--resume", "auto"]
    assert main([*flags, "--steps", "1"]) == 0
    checkpoint = tmp_path / "00000-mlp-vae-digits" / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    del state["config"]["betas"]
    torch.save(state, checkpoint)
    assert main([*flags, "--steps", "2"]) == 0
    torch.save(state, checkpoint)
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--steps", "2", "--betas", "0.5", "0.9"])
    assert "--betas was [0.9, 0.999] and is [0.5, 0.9]" in capsys.readouterr().err


def test_the_memory_format_is_told_and_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*TINY, "--schedule", "constant", "--out", str(tmp_path), "--device", "cpu"]
    run = tmp_path / "00000-dcgan-digits"

    def train(*more: str, told: bool, written: object) -> None:
        assert main([*flags, *more]) == 0
        assert (", cpu, channels_last, writing to" in capsys.readouterr().out) == told
        (folder, *_) = sorted(tmp_path.iterdir(), reverse=True)
        config = torch.load(folder / "checkpoint.pt", weights_only=True)["config"]
        assert config["recipe"]["channels_last"] is written

    train("--steps", "1", told=True, written=True)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    state["config"]["recipe"]["channels_last"] = False  # as it was when the other format had to be asked for
    torch.save(state, run / "checkpoint.pt")
    (run / "config.json").write_text(json.dumps(state["config"]))
    train("--steps", "2", "--resume", "auto", told=False, written=False)
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--steps", "3", "--resume", "auto", "--channels-last"])
    assert "--channels-last was False and is True" in capsys.readouterr().err
    del state["config"]["recipe"]["channels_last"]  # before there was a choice
    torch.save(state, run / "checkpoint.pt")
    (run / "config.json").write_text(json.dumps(state["config"]))
    train("--steps", "2", "--resume", "auto", told=False, written=False)
    train("--steps", "1", "--no-channels-last", told=False, written=False)


def test_what_a_run_of_before_left_out_stays_left_out(tmp_path: Path) -> None:
    flags = ["train", "cdcgan", *SMALL, "--channels", "2", "--schedule", "constant", "--lr", "0.004"]
    flags += ["--out", str(tmp_path), "--device", "cpu"]
    run = tmp_path / "00000-cdcgan-digits"
    assert main([*flags, "--lr-d", "0.004", "--steps", "1"]) == 0
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    state["config"]["lr_d"] = None  # as long as that was the default: as lr, not half of it
    torch.save(state, run / "checkpoint.pt")
    (run / "config.json").write_text(json.dumps(state["config"]))
    assert main([*flags, "--steps", "2", "--resume", "auto"]) == 0
    optimizer = torch.load(run / "checkpoint.pt", weights_only=True)["optimizers"]["d"]
    assert optimizer["param_groups"][0]["lr"] == 0.004
    assert json.loads((run / "config.json").read_text())["lr_d"] is None


def test_the_run_to_go_on_with_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["train", "mlp-vae", "--image-size", "8", "--z-dim", "4", "--hidden", "8", "--batch-size", "8"]
    flags += ["--schedule", "constant", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*flags, "--steps", "1", "--resume", "auto"]) == 0
    assert "\nno run to go on with: starting anew\n" in capsys.readouterr().out
    assert main([*flags, "--steps", "2", "--resume", "auto"]) == 0
    assert "\ngoing on at step 1\n" in capsys.readouterr().out
    assert main([*flags, "--steps", "1", "--lr", "0.5"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--steps", "3", "--resume", "auto"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"and is 0.001; those of {tmp_path / '00000-mlp-vae-digits'} are the same (see" in error


def test_another_training_in_the_folder_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gf.training.RunFolder(run, {}).locked():
        assert main([*TINY, "--steps", "9", "--resume", str(run), "--device", "cpu"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"genimg-fast: error: another process (PID {os.getpid()} on ")


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


def test_train_holds_data_out(held_out_runs: dict[str, Path]) -> None:
    config = json.loads((held_out_runs["cvae"] / "config.json").read_text())
    assert (config["val_split"], config["seed"]) == (0.1, 5)
    rows = [json.loads(line) for line in (held_out_runs["cvae"] / "stats.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all({"val_loss", "val_reconstruction", "val_kl"} <= row.keys() for row in rows)
    config = json.loads((held_out_runs["row-rnn"] / "config.json").read_text())
    assert config["val_data"] == str(held_out_runs["out"] / "others")
    assert config["val_sha256"] != config["sha256"]


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
