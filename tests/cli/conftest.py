from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_runs import TINY, TINY_SEQUENCES, TINY_VAES

import genimg_fast as gf
from genimg_fast.cli import main


@pytest.fixture(autouse=True)
def _backend() -> Iterator[None]:
    with gf.backend(gf.get_backend()):  # --backend sets it for the whole process
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    assert main([*TINY, "--steps", "3", "--out", str(out), "--device", "cpu"]) == 0
    return out / "00000-dcgan-digits"


@pytest.fixture(scope="session")
def vae_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("runs")
    runs = {}
    for number, (name, flags) in enumerate(TINY_VAES.items()):
        assert main([*flags, "--steps", "3", "--out", str(out), "--device", "cpu"]) == 0
        runs[name] = out / f"0000{number}-{name}-digits"
    return runs


@pytest.fixture(scope="session")
def sequence_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("runs")
    for flags in TINY_SEQUENCES.values():
        assert main([*flags, "--steps", "3", "--out", str(out), "--device", "cpu"]) == 0
    names = ("00000-frame-predictor-moving-digits", "00001-frame-filler-moving-digits", "00002-row-rnn-digits")
    return {name: out / folder for name, folder in zip(TINY_SEQUENCES, names, strict=True)}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, beside a folder of others."""
    out = tmp_path_factory.mktemp("held-out")
    for folder, first in (("photos", 0), ("others", 100)):
        (out / folder).mkdir()
        for index in range(20):
            Image.new("L", (8, 8), first + 2 * index).save(out / folder / f"{index:02}.png")
    return out / "photos"


@pytest.fixture(scope="session")
def held_out_runs(photos: Path) -> dict[str, Path]:
    """Runs that hold data out: a share of the digits, a share of a folder, and another folder."""
    out, others = photos.parent, str(photos.with_name("others"))
    flags = ["--steps", "2", "--val-every", "1", "--out", str(out), "--device", "cpu"]
    assert main([*TINY_VAES["cvae"], *flags, "--val-split", "0.1", "--seed", "5"]) == 0
    assert main([*TINY, *flags, "--data", str(photos), "--val-split", "0.25"]) == 0
    assert main([*TINY_SEQUENCES["row-rnn"], *flags, "--data", str(photos), "--val-data", others]) == 0
    names = {"cvae": "00000-cvae-digits", "dcgan": "00001-dcgan-photos", "row-rnn": "00002-row-rnn-photos"}
    return {"out": out, **{name: out / folder for name, folder in names.items()}}


SIZES = {"z_dim": 4, "c_dim": 1, "channels": 2, "n_blocks": 1}
FRAMES = {"channels": 2, "n_blocks": 1, "hidden_size": 4, "core": "gru"}
MODELS: dict[str, Any] = {
    "dcgan": lambda: gf.models.DCGAN(**SIZES),
    "cvae": lambda: gf.models.ConditionalVAE(10, **SIZES),
    "vae": lambda: gf.models.VAE(**SIZES),
    "autoencoder": lambda: gf.models.Autoencoder(**SIZES),
    "vqvae": lambda: gf.models.VQVAE(1, 8, 2, num_codes=4, code_dim=2),
    "pix2pix": lambda: gf.models.Pix2Pix(1, 1, channels=2, image_size=8),
    "rnn": lambda: gf.models.RNN(3, 4),
    "row-rnn": lambda: gf.models.RowRNN(image_size=8, hidden_size=4),
    "frame-predictor": lambda: gf.models.FramePredictor(**FRAMES),
    "frame-filler": lambda: gf.models.FrameFiller(**FRAMES),
}


@pytest.fixture(scope="session")
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


@pytest.fixture
def refused(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Give a command a model by its name, where a folder "full" is: it is refused in a line and writes nothing."""

    def error_of(command: list[str]) -> str:
        Path("full").mkdir()
        Path("full", "mine").touch()
        with pytest.raises(SystemExit, match="2"):
            main([command[0], models.get(command[1], command[1]), *command[2:]])
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert [str(file) for file in Path().rglob("*")] == ["full", "full/mine"]
        return error

    return error_of
