"""What the commands that use a model write. Their pictures: tests/test_cli.py."""

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import genimg_fast as gf
from genimg_fast.cli import main
from genimg_fast.training import outputs

SIZES = {"z_dim": 4, "c_dim": 1, "channels": 2, "n_blocks": 1}
FRAMES = {"channels": 2, "n_blocks": 1, "hidden_size": 4, "core": "gru"}
MODELS: dict[str, Any] = {
    "dcgan": lambda: gf.models.DCGAN(**SIZES),
    "cvae": lambda: gf.models.ConditionalVAE(10, **SIZES),
    "vae": lambda: gf.models.VAE(**SIZES),
    "autoencoder": lambda: gf.models.Autoencoder(**SIZES),
    "pix2pix": lambda: gf.models.Pix2Pix(1, 1, channels=2, image_size=8),
    "rnn": lambda: gf.models.RNN(3, 4),
    "row-rnn": lambda: gf.models.RowRNN(image_size=8, hidden_size=4),
    "frame-predictor": lambda: gf.models.FramePredictor(**FRAMES),
    "frame-filler": lambda: gf.models.FrameFiller(**FRAMES),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of models, with what a run says of its data."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, make in MODELS.items():
        frames = {"data": "moving-digits", "frames": 5, "context": 3, "speed": [0.1, 0.1]}
        images = {"data": "digits", "classes": [f"digit {k}" for k in range(10)]}
        make().save_pretrained(folder / name, config=frames if name.startswith("frame") else images)
    return {name: str(folder / name) for name in MODELS}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names(folder: str) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in Path(folder).rglob("*.png"))


def test_samples_are_the_same_in_every_form(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", models["cvae"], "--n", "12", "--seed", "3"]
    for out in ("grid.png", "samples/", "samples.npz"):
        assert main([*command, "--out", out, "--plain", "--scale", "1"]) == 0
        assert capsys.readouterr().out == f"{out}\n"
    assert names("samples")[:2] == ["00000-digit 0.png", "00001-digit 1.png"]
    with np.load("samples.npz") as arrays:
        assert arrays["arr_0"].shape == (12, 8, 8, 1)
        assert arrays["arr_1"].tolist() == [k % 10 for k in range(12)]
        for name, image in zip(names("samples"), arrays["arr_0"][..., 0], strict=True):
            assert (np.asarray(Image.open(Path("samples", name))) == image).all()
        assert (np.asarray(Image.open("grid.png"))[:8, :8] == arrays["arr_0"][0, ..., 0]).all()
    assert main([*command, "--class", "digit 7", "--out", "sevens"]) == 0
    assert {name[5:] for name in names("sevens")} == {"-digit 7.png"}


def test_batches_are_what_one_draw_would_be(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["sample", models["dcgan"], "--n", "96", "--out", "whole.npz"]) == 0
    monkeypatch.setattr(outputs, "_MOST_AT_A_TIME", 32)
    assert main(["sample", models["dcgan"], "--n", "96", "--out", "parts.npz"]) == 0
    with np.load("whole.npz") as whole, np.load("parts.npz") as parts:
        assert np.abs(whole["arr_0"].astype(int) - parts["arr_0"]).max() <= 1


def test_reconstructions_beside_their_images(models: dict[str, str]) -> None:
    assert main(["reconstruct", models["vae"], "--n", "5", "--out", "out"]) == 0
    inputs, results = names("out/input"), names("out/output")
    assert len(inputs) == 5
    assert inputs == results
    assert all(name[5] == "-" and name[6].isdigit() for name in inputs)
    assert main(["reconstruct", models["autoencoder"], "--n", "5", "--out", "out.npz"]) == 0
    with np.load("out.npz") as arrays:
        assert arrays.files == ["input", "output", "labels"]


def test_translations(models: dict[str, str]) -> None:
    Path("pairs").mkdir()
    for k in range(3):
        Image.fromarray(np.full((8, 16), 60 * k, np.uint8)).save(f"pairs/{k}.png")
    assert main(["translate", models["pix2pix"], "--data", "pairs", "--out", "out/"]) == 0
    assert names("out") == [f"{part}/0000{k}.png" for part in ("input", "output", "target") for k in range(3)]


@pytest.mark.parametrize(("name", "ends"), [("dcgan", 0), ("cvae", 2)])
def test_morphs(name: str, ends: int, models: dict[str, str]) -> None:
    command = ["interpolate", models[name], "--n", "3", "--steps", "4"]
    assert main([*command, "--out", "morph.npz"]) == 0
    with np.load("morph.npz") as arrays:
        assert arrays["morph" if ends else "arr_0"].shape == (3, 4, 8, 8, 1)
        assert ("from" in arrays.files) == bool(ends)
    assert main([*command, "--out", "morph"]) == 0
    assert len(names("morph")) == 3 * (4 + ends)
    assert main([*command, "--out", "morph.mp4"]) == 0
    with av.open("morph.mp4") as video:
        assert len(list(video.decode(video=0))) == 6  # forth and back


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
    assert len(names("frames")) == 3 * steps * len(whole.files)
    with av.open("clip.webm") as video:
        assert len(list(video.decode(video=0))) == steps


def test_completions(models: dict[str, str]) -> None:
    assert main(["edit", "complete", models["row-rnn"], "--n", "2", "--rows", "3", "--out", "out"]) == 0
    assert names("out") == [f"{part}/0000{k}.png" for part in ("given", "model", "truth") for k in range(2)]


def test_export(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", models["dcgan"], "--to", "onnx"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("largest difference from the model, on random input: ")
    assert float(out[0].split()[-1]) < 1e-5
    assert out[1:] == ["sampler.onnx"]
    noise = torch.randn(5, 4)
    (images,) = onnxruntime.InferenceSession("sampler.onnx").run(None, {"noise": noise.numpy()})
    expected = gf.models.load(models["dcgan"])(noise)
    torch.testing.assert_close(torch.from_numpy(images), expected, rtol=1e-5, atol=1e-6)

    flags = ["--part", "encoder", "--batch", "3", "--out", "e.pt2"]
    assert main(["export", models["cvae"], "--to", "torch-export", *flags]) == 0
    encode = torch.export.load("e.pt2").module()
    assert encode(torch.zeros(3, 1, 8, 8), torch.tensor([1, 2, 3]))[0].shape == (3, 4)
    assert main(["export", models["cvae"], "--to", "safetensors"]) == 0
    assert main(["sample", "pretrained", "--class", "digit 3", "--n", "2", "--out", "threes"]) == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sample", "dcgan", "--out", "full"], "argument --out: full is a folder with something in it"),
        (["sample", "dcgan", "--out", "a.mp4"], "argument --out: 'a.mp4' is a video, and nothing moves here"),
        (["sample", "dcgan", "--out", "a.txt"], "argument --out: 'a.txt' does not end like an image file"),
        (["sample", "dcgan", "--out", "gone/a.npz"], "argument --out: "),
        (["export", "dcgan"], "required: --to"),
        (["export", "dcgan", "--to", "tflite"], "argument --to: invalid choice: 'tflite'"),
        (["export", "dcgan", "--to", "onnx", "--part", "encoder"], "argument --part: must be one of sampler"),
        (["export", "autoencoder", "--to", "onnx"], "argument --part: must be one of encoder, decoder, got None"),
        (["export", "row-rnn", "--to", "onnx"], "argument RUN: row-rnn has no part that runs by itself"),
        (["export", "dcgan", "--to", "onnx", "--batch", "0"], "argument --batch: must be an integer of at"),
        (["export", "dcgan", "--to", "onnx", "--out", "gone/x.onnx"], "argument --out: "),
        (["export", "dcgan", "--to", "safetensors", "--part", "sampler"], "argument --part: must be left out"),
        (["export", "nowhere", "--to", "onnx"], "argument RUN: no checkpoint at nowhere"),
        (["sample", "rnn"], "argument RUN: rnn does not generate images"),
    ],
)  # fmt: skip
def test_bad_use_is_one_line(
    command: list[str], message: str, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("full").mkdir()
    Path("full", "mine").touch()
    with pytest.raises(SystemExit, match="2"):
        main([command[0], models.get(command[1], command[1]), *command[2:]])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert [str(file) for file in Path().rglob("*")] == ["full", "full/mine"]


def test_a_picture_for_which_there_is_no_room_is_told_at_once(
    models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", models["dcgan"], "--n", "2000000000"]) == 1
    assert re.search(r"error: out of memory( for [^;]*)?; reduce --n$", capsys.readouterr().err.strip())
    assert list(Path().iterdir()) == []
