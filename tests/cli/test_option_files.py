import io
import json
import sys
from pathlib import Path

import pytest

from genimg_fast.cli import main

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
        ("flip: !!bool maybe", "a.yaml:1: flip: must be true or false, got 'maybe'"),
        ("flip: !!bool [a]", "a.yaml:1: flip: must be true or false, got a list"),
        ("loss: hing", "a.yaml:1: loss: invalid choice: 'hing'; did you mean hinge?"),
        ("lr: 1\nlr: 2", "a.yaml:2: lr: is in line 1 already"),
        ("model: vae", "a.yaml:1: model: is vae, and the command trains dcgan"),
        ("- lr", "a.yaml:1: must be a mapping, such as 'lr: 0.001'"),
        ("lr: 'a", "a.yaml:1: found unexpected end of stream"),
        ("model: nope", "a.yaml:1: model: nothing named 'nope' can be trained; known: "),
        ("lr: 1\nmodel: [vae]", "a.yaml:2: model: must be the name of a model, got a list"),
        ("model:", "a.yaml:1: model: must be the name of a model, got null"),
        ("model: ''", "a.yaml:1: model: must be the name of a model, got ''"),
        ("c_dim: 2", "a.yaml:1: c_dim: invalid choice: '2' (choose from 1, 3)"),
        ("z_dim: " + 5000 * "9", f"a.yaml:1: z_dim: must be an integer of at least 1, got '{59 * '9'}... (see"),
        ("lr: 1\nout: \x00", "a.yaml:2: the character '\\x00' is not allowed"),
        ("lr: 1\nout: \udcff", "a.yaml:2: is not in UTF-8"),
        (2000 * "[", "a.yaml is no YAML: "),
        (None, "[Errno 2] No such file or directory: 'a.yaml'"),
    ],
)
def test_a_bad_file_of_options_is_one_line(
    text: str | None, message: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if text is not None:
        Path("a.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(SystemExit, match="2"):
        main(["train", "dcgan", "--config", "a.yaml"])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument --config: {message}" in line


def test_a_flag_turns_off_what_a_file_turns_on(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("flip: true")
    for flag, expected in ((), "true"), (("--no-flip",), "false"), (("--flip",), "true"):
        assert main(["train", "dcgan", "--config", "a.yaml", *flag, "--print-config"]) == 0
        assert f"\nflip: {expected}\n" in capsys.readouterr().out


def test_a_flag_of_three_values(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("channels_last: false")
    Path("b.yaml").write_text("channels_last: null")
    for words, expected in (
        ((), "null"), (("--channels-last",), "true"), (("--no-channels-last",), "false"),
        (("--config", "a.yaml"), "false"), (("--config", "a.yaml", "--channels-last"), "true"),
        (("--config", "b.yaml"), "null"),
    ):  # fmt: skip
        assert main(["train", "dcgan", *words, "--print-config"]) == 0
        assert f"\nchannels_last: {expected}\n" in capsys.readouterr().out


def test_two_files_of_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "dcgan", "--config", "a.yaml", "--config=b.yaml"])
    assert "argument --config: is given 2 times, and takes one file" in capsys.readouterr().err


def test_none_is_said_where_the_default_is_something(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dcgan", "--cache", "none", "--print-config"]) == 0
    assert "\ncache: null" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("seed: 1", ["--config", "a.yaml"], "a.yaml has no model, such as 'model: dcgan', and none stands before"),
        (
            "seed: 1",
            ["--config", "a.yaml", "dcgan"],
            "a.yaml has no model, such as 'model: dcgan', and none stands",
        ),
        (
            "model: dcgn",
            ["--config", "a.yaml"],
            "a.yaml:1: model: nothing named 'dcgn' can be trained; did you mean",
        ),
        ("model: dcgan", ["--config", ""], "must be a file, or - for the standard input, if that is open, got ''"),
        (
            "model: dcgan",
            ["--config", "-"],
            "must be a file, or - for the standard input, if that is open, got '-'",
        ),
    ],
)
def test_what_a_file_of_options_lacks_is_told(
    text: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.yaml").write_text(text)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit, match="2"):
        main(["train", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"genimg-fast train: error: argument --config: {message}")


def test_flags_may_stand_before_a_file_with_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("model: dcgan\nseed: 2")
    assert main(["train", "--lr", "0.5", "--config", "a.yaml", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "\nlr: 0.5\n" in printed
    assert "\nseed: 2\n" in printed
