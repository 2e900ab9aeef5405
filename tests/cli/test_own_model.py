import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import genimg_fast as gf
from genimg_fast.cli import main
from genimg_fast.models import registry
from genimg_fast.training import trainables

TINY_GAN = Path(__file__).with_name("tiny_gan.py")
PAGE = Path(__file__).parents[2] / "docs" / "own-model.md"
SMALL = ["--image-size", "8", "--z-dim", "4", "--hidden", "8", "--batch-size", "8", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what a test has registered."""
    monkeypatch.setattr(trainables, "_trainables", {**trainables._trainables})
    monkeypatch.setattr(trainables, "_files", {})
    monkeypatch.setattr(registry, "_builders", {**registry._builders})
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    with gf.backend(gf.get_backend()):
        yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).endswith(("tiny_gan.py", "mine.py")):
            del sys.modules[name]


def forget() -> None:
    """Be another process, which has not run the file."""
    trainables._trainables.pop("tiny-gan", None)
    trainables._files.clear()
    registry._builders.pop("tiny-gan", None)
    sys.modules.pop("tiny_gan", None)


def test_a_model_of_ones_own_is_trained_resumed_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(TINY_GAN, tmp_path)
    monkeypatch.chdir(tmp_path)
    train = ["train", "tiny_gan.py:TinyGAN", *SMALL, "--data", "digits", "--resume", "auto"]
    assert main([*train, "--steps", "2"]) == 0
    assert main([*train, "--steps", "3"]) == 0
    run = Path("runs", "00000-tiny-gan-digits")
    assert {"samples-000003.png", "losses.png", "checkpoint.pt"} <= {file.name for file in run.iterdir()}
    config = json.loads((run / "config.json").read_text())
    assert config["model_args"] == {"z_dim": 4, "hidden": 8, "c_dim": 1, "image_size": 8}
    assert (config["model"], config["code"], config["lr"]) == ("tiny-gan", str(tmp_path / "tiny_gan.py"), 1e-3)
    assert [json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines()] == [2, 3]
    assert torch.load(run / "checkpoint.pt", weights_only=True)["ema"] is not None

    forget()
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["sample", str(run)])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument RUN: tiny-gan is a model of {tmp_path / 'tiny_gan.py'}: import that first, or" in line
    assert main(["--code", "tiny_gan.py", "sample", str(run), "--n", "4", "--out", "grid.png"]) == 0
    assert Path("grid.png").exists()


def test_its_options_are_those_of_its_signature(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", f"{TINY_GAN}:tiny-gan", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "A GAN of two small networks." in text
    assert "--z-dim N length of a noise vector (default: 16) --hidden N width of the hidden layers" in text
    assert "--lr X learning rate of Adam (default: 0.001)" in text
    assert "--image-size N height and width, in pixels (default: 16)" in text
    with pytest.raises(SystemExit, match="2"):
        main(["train", f"{TINY_GAN}:TinyGAN", "--z-dim", "0"])
    assert "argument --z-dim: must be an integer of at least 1, got '0'" in capsys.readouterr().err


@pytest.mark.skipif(not PAGE.exists(), reason="tests run without the documentation")
def test_the_page_shows_this_file() -> None:
    assert TINY_GAN.read_text() in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


REGISTERED = """
import genimg_fast as gf
def add(name):
    @gf.training.trainable(name, trainer=gf.training.GANTrainer)
    class Model(gf.models.DCGAN):
        def __init__(self, z_dim: int = 8, n_blocks: int = 1):
            if z_dim % 2: raise ValueError(f"z_dim must be even, got {z_dim}")
            super().__init__(z_dim, 1, 4, n_blocks)
"""


@pytest.mark.parametrize(
    ("code", "what", "message"),
    [
        ("x = 1", "mine.py:Model", "mine.py registers no model: put @gf.training.trainable"),
        (REGISTERED + "add('one')", "mine.py:Modle", "mine.py has no model Modle; did you mean Model?"),
        (
            REGISTERED + "add('one')\nadd('two')",
            "mine.py",
            "mine.py has several models: mine.py:NAME is one, of one,",
        ),
        (
            REGISTERED + "add('dcgan')",
            "mine.py",
            "mine.py fails in line 4: ValueError: something named 'dcgan' is",
        ),
        ("import genimg_fast\n1 / 0", "mine.py:Model", "mine.py fails in line 2: ZeroDivisionError: division by"),
        ("def f(:", "mine.py:Model", "mine.py fails in line 1: SyntaxError: invalid syntax"),
        (None, "mine.py:Model", "there is no file mine.py"),
        (REGISTERED.replace(": int = 8", "") + "add('one')", "mine.py", "one: the parameter z_dim of its model"),
    ],
)
def test_a_file_that_will_not_do_is_one_line(
    code: str | None, what: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if code is not None:
        Path("mine.py").write_text(code)
    with pytest.raises(SystemExit, match="2"):
        main(["train", what, "--steps", "1"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "argument model: " in line
    assert message in line
    assert not Path("runs").exists()


def test_an_error_of_the_model_names_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(REGISTERED + "add('one')")
    with pytest.raises(SystemExit, match="2"):
        main(["train", "mine.py", "--z-dim", "3", "--image-size", "8", "--device", "cpu"])
    assert "mine.py: error: argument --z-dim: must be even, got 3 (see" in capsys.readouterr().err
    assert not Path("runs").exists()


SETTINGS = [
    "--z-dim",
    "6",
    "--betas",
    "0.25",
    "0.75",
    "--lr",
    "1e-5",
    "--flip",
    "--val-split",
    "0.1",
    "--out",
    "a: b",
]


@pytest.mark.parametrize("command", [["train"], ["train", "wgan"]])
def test_printed_options_are_read_again(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["train", "wgan", *SETTINGS, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "\n# model\nz_dim: 6\nchannels: 64\n" in printed
    assert "\nbetas: [0.25, 0.75]\n" in printed
    (tmp_path / "wgan.yaml").write_text(printed)
    assert main([*command, "--config", str(tmp_path / "wgan.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(printed.encode())))
    assert main([*command, "--config", "-", "--print-config", "--z-dim", "7"]) == 0
    assert capsys.readouterr().out == printed.replace("z_dim: 6", "z_dim: 7")


def test_a_training_takes_its_options_from_a_file(tmp_path: Path) -> None:
    text = (
        "model: mlp-gan\nimage_size: 8\nz_dim: 4\nhidden: [5, 6]\nbatch_size: 8\nsteps: 1\nlr: 5e-4\ndevice: cpu\n"
    )
    (tmp_path / "a.yaml").write_text(f"{text}out: {tmp_path}\n")
    assert main(["train", "--config", str(tmp_path / "a.yaml"), "--seed", "3", "--device", "cpu"]) == 0
    config = json.loads((tmp_path / "00000-mlp-gan-digits" / "config.json").read_text())
    assert (config["model_args"]["hidden"], config["lr"], config["seed"]) == ([5, 6], 5e-4, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1\nz_dmi: 3", "a.yaml:2: z_dmi: there is no such option; did you mean z_dim"),
        ("# size\n\nz_dim: three", "a.yaml:3: z_dim: must be an integer of at least 1, got 'three'"),
        ("z_dim: [3]", "a.yaml:1: z_dim: must be a single value, got a list"),
        ("z_dim:", "a.yaml:1: z_dim: must have a value, got null"),
        ("betas: 0.5", "a.yaml:1: betas: must be a list, such as [1, 2], got '0.5'"),
        ("betas: [0.5]", "a.yaml:1: betas: must have 2, got 1"),
        ("betas: [0.5, {a: 1}]", "a.yaml:1: betas: must be a single value, got a mapping"),
        ("flip: 1", "a.yaml:1: flip: must be true or false, got '1'"),
        ("loss: hing", "a.yaml:1: loss: invalid choice: 'hing'; did you mean hinge?"),
        ("lr: 1\nlr: 2", "a.yaml:2: lr: is in line 1 already"),
        ("model: vae", "a.yaml:1: model: is vae, and the command trains dcgan"),
        ("- lr", "a.yaml:1: must be a mapping, such as 'lr: 0.001'"),
        ("lr: 'a", "a.yaml:1: found unexpected end of stream"),
        ("lr: \x00", "a.yaml is no YAML: "),
        (20000 * "[", "a.yaml is no YAML: "),
        (None, "[Errno 2] No such file or directory: 'a.yaml'"),
    ],
)
def test_a_bad_file_of_options_is_one_line(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("a.yaml").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "dcgan", "--config", "a.yaml"])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument --config: {message}" in line


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
