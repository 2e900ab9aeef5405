from collections.abc import Callable

import onnxruntime
import pytest
import torch

import genimg_fast as gf
from genimg_fast.cli import main


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
        (["export", "dcgan"], "required: --to"),
        (["export", "dcgan", "--to", "tflite"], "argument --to: invalid choice: 'tflite'"),
        (["export", "dcgan", "--to", "onnx", "--part", "encoder"], "argument --part: must be one of sampler"),
        (["export", "autoencoder", "--to", "onnx"], "argument --part: must be one of encoder, decoder, got None"),
        (["export", "row-rnn", "--to", "onnx"], "argument RUN: row-rnn has no part that runs by itself"),
        (["export", "dcgan", "--to", "onnx", "--batch", "0"], "argument --batch: must be an integer of at"),
        (["export", "dcgan", "--to", "onnx", "--out", "gone/x.onnx"], "argument --out: "),
        (["export", "dcgan", "--to", "safetensors", "--part", "sampler"], "argument --part: must be left out"),
        (["export", "dcgan", "--to", "safetensors", "--batch", "2"], "argument --batch: is for programs"),
        (["export", "nowhere", "--to", "onnx"], "argument RUN: no checkpoint at nowhere"),
    ],
)  # fmt: skip
def test_bad_use_is_one_line(command: list[str], message: str, refused: Callable[[list[str]], str]) -> None:
    assert message in refused(command)


def test_no_folder_of_another_model(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", models["dcgan"], "--to", "safetensors", "--out", models["vae"]])
    (line,) = capsys.readouterr().err.splitlines()
    assert "argument --out: " in line
    assert "holds another model" in line
