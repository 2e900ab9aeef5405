from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import PLAIN, TINY_VAES, image_size, png_names, side

from genimg_fast.cli import main


@pytest.mark.parametrize("name", TINY_VAES)
def test_reconstruct(name: str, vae_runs: dict[str, Path], tmp_path: Path, device: str) -> None:
    out = tmp_path / "pairs.png"
    command = ["reconstruct", str(vae_runs[name]), "--out", str(out), "--device", device]
    assert main([*command, "--n", "9", *PLAIN]) == 0
    assert image_size(out) == (side(6, 2), side(3))
    assert main(command) == 0
    assert image_size(out)[0] == 8 * 64 + 7 * 4 + 3 * 12 + 2 * 4  # 36 pairs


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


def test_reconstructions_beside_their_images(models: dict[str, str]) -> None:
    assert main(["reconstruct", models["vae"], "--n", "5", "--out", "out"]) == 0
    inputs, results = png_names("out/input"), png_names("out/output")
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
    assert png_names("out") == [f"{part}/0000{k}.png" for part in ("input", "output", "target") for k in range(3)]
