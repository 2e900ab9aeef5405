import re
from pathlib import Path

import pytest
from tiny_runs import TINY_SEQUENCES

from genimg_fast.cli import main


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
        (
            ["train", "dcgan", "--batch-size", "1"],
            "argument --batch-size: must be at least 2 for batch norm, got 1",
        ),
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
    ],
)
def test_bad_arguments_give_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("genimg-fast")
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_the_bare_command_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([])
    assert "\ncommands:\n" in capsys.readouterr().out


def test_the_usage_of_a_training_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    for model, usage in ("vae", "[options]"), ("pix2pix", "--data FOLDER [options]"):
        with pytest.raises(SystemExit, match="0"):
            main(["train", model, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: genimg-fast train {model} {usage}\n\n")


def test_the_help_names_all_sources_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "dcgan", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "a folder of images or of IDX files, or tar shards" in text
