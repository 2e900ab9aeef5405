import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import genimg_fast as gf
from genimg_fast._signatures import options_of
from genimg_fast.cli import main
from genimg_fast.cli.train import Session
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(TINY_GAN, tmp_path)
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


def test_a_file_of_options_finds_its_model_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(TINY_GAN, tmp_path)
    Path("a.yaml").write_text("model: tiny_gan.py\nz_dim: 3")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for command in ["train"], ["train", "../tiny_gan.py:TinyGAN"], ["train", "tiny-gan"]:
        assert main([*command, "--config", "../a.yaml", "--print-config"]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"model: {tmp_path}/tiny_gan.py:tiny-gan\n")
        assert "\nz_dim: 3\n" in printed
    forget()
    with pytest.raises(SystemExit, match="2"):
        main(["train", "tiny-gan"])
    assert ", or FILE.py:NAME for yours)" in capsys.readouterr().err


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
        ("raise SystemExit(3)", "mine.py:Model", "mine.py fails in line 1: SystemExit: 3"),
        ("def f(:", "mine.py:Model", "mine.py fails in line 1: SyntaxError: invalid syntax"),
        (None, "mine.py:Model", "there is no file mine.py"),
        (REGISTERED.replace(": int = 8", "") + "add('one')", "mine.py", "one: the parameter z_dim of its model"),
    ],
)
def test_a_file_that_will_not_do_is_one_line(
    code: str | None, what: str, message: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if code is not None:
        Path("mine.py").write_text(code)
    with pytest.raises(SystemExit, match="2"):
        main(["train", what, "--steps", "1"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "argument model: " in line
    assert message in line
    assert not Path("runs").exists()


def test_an_error_of_the_model_names_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(REGISTERED + "add('one')")
    with pytest.raises(SystemExit, match="2"):
        main(["train", "mine.py", "--z-dim", "3", "--image-size", "8", "--device", "cpu"])
    assert "mine.py: error: argument --z-dim: must be even, got 3 (see" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            REGISTERED.replace("z_dim", "device") + "add('one')",
            "one: the parameter device has the name of something",
        ),
        (
            REGISTERED.replace("z_dim", "thing") + "add('one')",
            "one: the parameter thing has the name of something",
        ),
        (
            REGISTERED.replace("8,", "8, /,") + "add('one')",
            "one: the parameter z_dim: int = 8 of its model cannot be",
        ),
        (
            REGISTERED.replace("= 1)", "= 1, **more)") + "add('one')",
            "one: the parameter **more of its model cannot be",
        ),
        (
            "class Trainer:\n    def __init__(self, model, **more): pass\n"
            + REGISTERED.replace("gf.training.GANTrainer", "Trainer")
            + "add('one')",
            "one: the parameter **more of its trainer cannot be given by name",
        ),
        (
            REGISTERED.replace("= 1)", "= 1, no_flip: bool = False)") + "add('one')",
            "one: no_flip is what turns off flip: call it otherwise",
        ),
        (REGISTERED + "add('My Model')", "a name is in lower case with hyphens, such as tiny-gan, got 'My Model'"),
        (REGISTERED.replace("Model(gf.models.DCGAN)", "Model") + "add('one')", "one: Model is no torch.nn.Module"),
        (
            REGISTERED.replace("GANTrainer)", "GANTrainer, refuses={'flop': ''})") + "add('one')",
            "one refuses flop,",
        ),
    ],
)
def test_what_the_command_cannot_take_is_refused(code: str, message: str) -> None:
    Path("mine.py").write_text(code)
    with pytest.raises(ValueError, match=r"mine\.py fails in line ") as error:
        trainables.run_file("mine.py")
    assert message in str(error.value)


def test_all_names_of_the_command_are_reserved() -> None:
    assert {*options_of(Session), "config", "help", "print_config", "thing", "execute"} <= trainables._RESERVED
