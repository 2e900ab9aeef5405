import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import PLAIN, TINY_VAES, animation, image_size, png_names, side
from torch.utils._python_dispatch import TorchDispatchMode

import genimg_fast as gf
from genimg_fast.cli import main
from genimg_fast.training import outputs


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


def test_a_conditional_model_has_its_classes_in_columns(vae_runs: dict[str, Path], tmp_path: Path) -> None:
    for flags, rows in (([], 8), (["--n", "30"], 3)):
        command = ["sample", str(vae_runs["cvae"]), *flags, *PLAIN, "--out", str(tmp_path / "grid.png")]
        assert main(command) == 0
        assert image_size(tmp_path / "grid.png") == (side(10), side(rows))


@pytest.mark.parametrize(("name", "panels"), [("frame-predictor", 2), ("frame-filler", 3)])
@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_sample_of_frames(
    name: str, panels: int, suffix: str, sequence_runs: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], device: str,
) -> None:  # fmt: skip
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


def test_samples_are_the_same_in_every_form(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", models["cvae"], "--n", "12", "--seed", "3"]
    for out in ("grid.png", "samples/", "samples.npz"):
        assert main([*command, "--out", out, "--plain", "--scale", "1"]) == 0
        assert capsys.readouterr().out == f"{out}\n"
    assert png_names("samples")[:2] == ["00000-digit 0.png", "00001-digit 1.png"]
    with np.load("samples.npz") as arrays:
        assert arrays["arr_0"].shape == (12, 8, 8, 1)
        assert arrays["arr_1"].tolist() == [k % 10 for k in range(12)]
        for name, image in zip(png_names("samples"), arrays["arr_0"][..., 0], strict=True):
            assert (np.asarray(Image.open(Path("samples", name))) == image).all()
        assert (np.asarray(Image.open("grid.png"))[:8, :8] == arrays["arr_0"][0, ..., 0]).all()
    assert main([*command, "--class", "digit 7", "--out", "sevens"]) == 0
    assert {name[5:] for name in png_names("sevens")} == {"-digit 7.png"}


class BatchNorms(TorchDispatchMode):
    """Notes how many images each batch norm gets."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "batch_norm" in func.name():
            self.batches.append(len(args[0]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["dcgan", "cvae", "pix2pix"])
def test_batch_norms_are_folded(name: str, models: dict[str, str]) -> None:
    Path("pairs").mkdir()
    for k in range(5):
        Image.fromarray(np.full((8, 16), 60 * k, np.uint8)).save(f"pairs/{k}.png")
    command = ["translate", "--data", "pairs"] if name == "pix2pix" else ["sample"]
    with BatchNorms() as seen:
        assert main([*command, models[name], "--n", "5", "--out", "out.npz"]) == 0
    assert set(seen.batches) == {1}  # the image that shows what can be folded
    model, _ = gf.training.load_run(models[name])
    with np.load("out.npz") as arrays:
        if name == "pix2pix":
            inputs = torch.from_numpy(arrays["input"]).permute(0, 3, 1, 2) / 127.5 - 1
            expected, found = model.translate(inputs), arrays["output"]
        else:
            given = {"labels": torch.arange(5)} if name == "cvae" else {}
            expected = model.sample(5, **given, generator=torch.Generator().manual_seed(0))
            found = arrays["arr_0"]
    expected = expected.permute(0, 2, 3, 1).add(1).mul(127.5)
    torch.testing.assert_close(torch.from_numpy(found).float(), expected, rtol=0, atol=1.1)


def test_arrays_have_all_classes_of_many() -> None:
    model = gf.models.ConditionalVAE(40, z_dim=4, c_dim=1, channels=2, n_blocks=1)
    model.save_pretrained("many", config={"classes": [str(k) for k in range(40)]})
    for flags, n in ((["--n", "50"], 50), ([], 320)):
        assert main(["sample", "many", *flags, "--out", "many.npz"]) == 0
        with np.load("many.npz") as arrays:
            assert arrays["arr_1"].tolist() == [k % 40 for k in range(n)]


def test_batches_are_what_one_draw_would_be(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["sample", models["dcgan"], "--n", "96", "--out", "whole.npz"]) == 0
    monkeypatch.setattr(outputs, "_MOST_AT_A_TIME", 32)
    assert main(["sample", models["dcgan"], "--n", "96", "--out", "parts.npz"]) == 0
    with np.load("whole.npz") as whole, np.load("parts.npz") as parts:
        assert np.abs(whole["arr_0"].astype(int) - parts["arr_0"]).max() <= 1


@pytest.mark.parametrize(("name", "ends"), [("dcgan", 0), ("cvae", 2)])
def test_morphs(name: str, ends: int, models: dict[str, str]) -> None:
    command = ["interpolate", models[name], "--n", "3", "--steps", "4"]
    assert main([*command, "--out", "morph.npz"]) == 0
    with np.load("morph.npz") as arrays:
        assert arrays["morph" if ends else "arr_0"].shape == (3, 4, 8, 8, 1)
        assert ("from" in arrays.files) == bool(ends)
    assert main([*command, "--out", "morph"]) == 0
    assert len(png_names("morph")) == 3 * (4 + ends)
    assert main([*command, "--out", "morph.mp4"]) == 0
    with av.open("morph.mp4") as video:
        assert len(list(video.decode(video=0))) == 6  # forth and back


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sample", "dcgan", "--out", "full"], "argument --out: full is a folder with something in it"),
        (["sample", "dcgan", "--out", "a.mp4"], "argument --out: 'a.mp4' is a video, and nothing moves here"),
        (["sample", "dcgan", "--out", "a.txt"], "argument --out: 'a.txt' does not end like an image file"),
        (["sample", "dcgan", "--out", "gone/a.npz"], "argument --out: "),
        (["sample", "vqvae"], "argument RUN: vqvae has no prior over its codes to draw from, only reconstructs"),
        (["sample", "rnn"], "argument RUN: rnn does not generate images"),
    ],
)  # fmt: skip
def test_bad_use_is_one_line(command: list[str], message: str, refused: Callable[[list[str]], str]) -> None:
    assert message in refused(command)


def test_a_picture_for_which_there_is_no_room_is_told_at_once(
    models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", models["dcgan"], "--n", "2000000000"]) == 1
    assert re.search(r"error: out of memory( for [^;]*)?; reduce --n$", capsys.readouterr().err.strip())
    assert list(Path().iterdir()) == []
