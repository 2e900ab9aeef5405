import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import genimg_fast as gf
from genimg_fast.cli import main

SMALL = ["--image-size", "8", "--z-dim", "4", "--batch-size", "8"]
TINY = ["train", "dcgan", *SMALL, "--channels", "2"]
TINY_VAES = {
    "vae": ["train", "vae", *SMALL, "--channels", "2"],
    "cvae": ["train", "cvae", *SMALL, "--channels", "2", "--likelihood", "gaussian", "--free-bits", "0.1"],
    "mlp-vae": ["train", "mlp-vae", *SMALL, "--hidden", "12", "8", "--beta", "2", "--warmup", "5"],
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


def image_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_train(run: Path) -> None:
    assert {f.name for f in run.iterdir()} == {
        "config.json", "stats.jsonl", "real.png", "losses.png", "checkpoint.pt", "samples-000003.png"
    }  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    assert config["model_args"] == {"z_dim": 4, "c_dim": 1, "channels": 2, "n_blocks": 1}
    assert (config["data"], config["lr"], config["seed"]) == ("digits", 2e-4, 0)
    assert config["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("name", "model_args", "trainer_args"),
    [
        ("vae", {"z_dim": 4, "c_dim": 1, "channels": 2, "n_blocks": 1, "likelihood": "bernoulli"}, {}),
        (
            "cvae",
            {"num_classes": 10, "z_dim": 4, "c_dim": 1, "channels": 2, "n_blocks": 1, "likelihood": "gaussian"},
            {"free_bits": 0.1},
        ),
        (
            "mlp-vae",
            {"z_dim": 4, "c_dim": 1, "image_size": 8, "hidden": [12, 8], "likelihood": "bernoulli"},
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
    expected = {"lr": 1e-3, "decay_steps": 3, "beta": 1.0, "warmup": 0, "free_bits": 0.0, **trainer_args}
    assert config["model_args"] == model_args
    assert {key: config[key] for key in expected} == expected
    (row,) = map(json.loads, (vae_runs[name] / "stats.jsonl").read_text().splitlines())
    assert {"loss", "reconstruction", "kl", "active_units"} <= row.keys()


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

    first = sample(run, "--n", "9", "--seed", "5")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (3 * (8 + 2) + 2,) * 2
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
    assert main(["reconstruct", str(vae_runs[name]), "--n", "9", "--out", str(out), "--device", device]) == 0
    assert image_size(out) == (3 * (2 * 8 + 2) + 2, 3 * (8 + 2) + 2)


@pytest.mark.parametrize("mode", ["linear", "spherical"])
@pytest.mark.parametrize("name", ["dcgan", *TINY_VAES])
def test_interpolate(
    name: str, mode: str, run: Path, vae_runs: dict[str, Path], tmp_path: Path, device: str
) -> None:
    source = str(run if name == "dcgan" else vae_runs[name])
    flags = ["--n", "4", "--steps", "6", "--mode", mode, "--device", device]
    grid, animation = tmp_path / "path.png", tmp_path / "path.gif"
    assert main(["interpolate", source, *flags, "--out", str(grid)]) == 0
    assert image_size(grid) == (6 * (8 + 2) + 2, 4 * (8 + 2) + 2)
    assert main(["interpolate", source, *flags, "--out", str(animation)]) == 0
    with Image.open(animation) as frames:
        assert frames.size == (2 * (8 + 2) + 2,) * 2
        assert frames.info["loop"] == 0
        assert frames.n_frames > 1  # at most 10: Pillow merges frames that are equal


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
    assert main(["reconstruct", str(vae_runs["vae"]), "--n", "12", *flags]) == 0
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
        ("reconstruct", "dcgan", [], "argument RUN: dcgan has no encoder; this is for VAEs"),
        ("latent", "dcgan", [], "argument RUN: dcgan has no encoder; this is for VAEs"),
        ("sample", "dcgan", ["--class", "7"], "argument --class: dcgan is not class-conditional"),
        ("sample", "vae", ["--class", "7"], "argument --class: vae is not class-conditional"),
        ("sample", "cvae", ["--class", "10"], "argument --class: must be one of 0, 1, 2, .*, 9, got '10'"),
        ("sample", "cvae", ["--class", "-1"], "argument --class: "),
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


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr().out == f"{gf.info()}\n"


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genimg_fast.cli.demo.DEMO", [*TINY, "--data", "digits"])
    assert main(["demo", "--out", str(tmp_path), "--steps", "2"]) == 0
    text = capsys.readouterr().out
    assert f"generated digits: {tmp_path / '00000-dcgan-digits' / 'samples-000002.png'}" in text
    assert "step of 8 images:" in text
    assert "with plain torch.nn" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train"],
        *(["train", model] for model in ("dcgan", "vae", "cvae", "mlp-vae")),
        *([command] for command in ("sample", "reconstruct", "interpolate", "latent", "demo", "info")),
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
        (["train", "dcgan", "--seed", "-1"], "argument --seed: must be an integer of at least 0"),
        (["train", "dcgan", "--c-dim", "2"], "argument --c-dim: invalid choice"),
        (["train", "dcgan", "--loss", "l2"], "argument --loss: invalid choice: 'l2'"),
        (["train", "dcgan", "--backend", "fast"], "argument --backend: invalid choice: 'fast'"),
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
        (["train", "dcgan", "--stpes", "3"], "unrecognized arguments: --stpes 3"),
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
    assert "argument RUN: unknown model 'dcgam'; did you mean dcgan?" in capsys.readouterr().err


def test_nan_is_one_line_that_names_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--steps", "40", "--lr", "1e30", "--out", str(tmp_path), "--device", "cpu"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("genimg-fast: error: ")
    assert " at step " in last


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
