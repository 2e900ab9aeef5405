from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import SMALL_MODELS

import genimg_fast as gf
from genimg_fast.models import exporting
from genimg_fast.models.exporting import parts

onnxruntime = pytest.importorskip("onnxruntime")  # of the extra

PARTS = {
    "autoencoder": ["encoder", "decoder"],
    "cdcgan": ["sampler"],
    "cvae": ["sampler", "encoder", "decoder"],
    "dcgan": ["sampler"],
    "deep-image-prior": [],
    "frame-filler": [],
    "frame-predictor": [],
    "glo": ["sampler", "decoder"],
    "mlp-gan": ["sampler"],
    "mlp-vae": ["sampler", "encoder", "decoder"],
    "cyclegan": ["a2b", "b2a"],
    "pix2pix": ["translator"],
    "resgan": ["sampler"],
    "restorer": [],
    "resvae": ["sampler", "encoder", "decoder"],
    "rnn": [],
    "row-rnn": [],
    "style-net": [],
    "vae": ["sampler", "encoder", "decoder"],
    "vqvae": ["encoder", "decoder"],
    "wgan": ["sampler"],
}


def make(name: str) -> Any:
    """A model whose batch norm has statistics of its own."""
    model = gf.models.create_model(name, **SMALL_MODELS[name])
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.mark.parametrize("name", gf.models.list_models())
def test_parts(name: str) -> None:
    assert list(parts(make(name))) == PARTS[name]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (name, part)
        for name, found in PARTS.items()
        for part in found
        # The networks of these are those of others, and a VAE's decoder is its sampler.
        if name not in ("dcgan", "wgan", "vae")
        and (name, part) not in (("cvae", "decoder"), ("mlp-vae", "decoder"), ("resvae", "decoder"))
    ],
)
def test_a_program_of_torch_export(name: str, part: Any, tmp_path: Path) -> None:
    model = make(name)
    assert gf.models.export(model, tmp_path / "part.pt2", to="torch-export", part=part) <= 1e-6
    assert model.training
    program = torch.export.load(tmp_path / "part.pt2").module()
    chosen = parts(model.eval())[part]
    for batch in (1, 5):
        inputs = [draw(batch, torch.Generator().manual_seed(1)) for draw in chosen.inputs.values()]
        torch.testing.assert_close(program(*inputs), chosen.function(*inputs))
    weights = sum(parameter.numel() for parameter in program.parameters())
    assert weights < sum(parameter.numel() for parameter in model.parameters())  # nothing that it does not need


@pytest.mark.parametrize(("name", "part", "batch"), [("cvae", "encoder", None), ("pix2pix", None, 2)])
def test_a_file_of_onnx(name: str, part: Any, batch: int | None, tmp_path: Path) -> None:
    model = make(name)
    assert gf.models.export(model, tmp_path / "part.onnx", part=part, batch=batch) <= 1e-6
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx")
    images = torch.rand(2, 1 if name == "pix2pix" else 2, 16, 16) * 2 - 1
    inputs = {"images": images, **({"classes": torch.tensor([2, 0])} if name == "cvae" else {})}
    names = ["mean", "logvar"] if name == "cvae" else ["translations"]
    assert [output.name for output in session.get_outputs()] == names
    assert session.get_inputs()[0].shape == [batch or "batch", *images.shape[1:]]
    found = session.run(names, {key: value.numpy() for key, value in inputs.items()})
    expected = model.eval().encode(*inputs.values()) if name == "cvae" else [model.translate(images)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-5, atol=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == ["part.onnx"]


def test_files_of_onnx_that_code_and_decode(tmp_path: Path) -> None:
    model, images = make("vqvae").eval(), torch.rand(5, 2, 16, 16) * 2 - 1
    sessions = []
    for part in ("encoder", "decoder"):
        assert gf.models.export(model, tmp_path / part, part=part) <= 1e-6
        sessions.append(onnxruntime.InferenceSession(tmp_path / part))
    (codes,) = sessions[0].run(None, {"images": images.numpy()})
    assert torch.equal(torch.from_numpy(codes), model.encode(images))
    (decoded,) = sessions[1].run(None, {"codes": codes})
    torch.testing.assert_close(torch.from_numpy(decoded), model.reconstruct(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_sampler_in_another_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make("dcgan").to(dtype)
    assert parts(model)["sampler"].outputs == ("images",)
    gf.models.export(model, tmp_path / "part.pt2", to="torch-export")
    program = torch.export.load(tmp_path / "part.pt2").module()
    assert program(torch.randn(2, 8, dtype=dtype)).dtype == dtype
    with pytest.raises(RuntimeError, match=rf"^ONNX Runtime cannot run this model in {dtype}: export model.float"):
        gf.models.export(model, tmp_path / "part.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["part.pt2"]


def test_the_sampler_of_a_glo_draws_what_sample_draws(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = gf.models.GLO(num_images=500, z_dim=3, c_dim=1, channels=2, n_blocks=1)
    with torch.no_grad():
        model.codes.weight.mul_(0.2).add_(torch.tensor([0.3, 0.0, -0.1]))
    noise = torch.randn(20_000, 3)
    model.eval()
    ours = parts(model)["sampler"].function(noise).flatten(1)
    theirs = model.sample(20_000).flatten(1)
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), rtol=0, atol=0.05 * theirs.std(0).mean().item())
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.03, atol=0)


def test_of_a_saved_model_as_safetensors(tmp_path: Path) -> None:
    make("mlp-gan").save_pretrained(tmp_path / "a", config={"classes": ["cat"]})
    assert gf.models.export(tmp_path / "a", tmp_path / "b", to="safetensors") == 0
    model, config = gf.training.load_run(tmp_path / "b")
    assert (model.generator.z_dim, config["classes"]) == (8, ["cat"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rnn", {}, "RNN has no part that runs by itself: no sampler, encoder, decoder, translator, a2b, b2a"),
        ("dcgan", {"part": "encoder"}, "part must be one of sampler, got 'encoder'"),
        ("autoencoder", {}, "part must be one of encoder, decoder, got None"),
        (
            "dcgan",
            {"to": "safetensors", "part": "sampler"},
            "part must be left out: safetensors hold the w",
        ),
        ("dcgan", {"to": "safetensors", "batch": 2}, "batch must be left out: safetensors hold the w"),
        ("dcgan", {"to": "tflite"}, "to must be one of onnx, torch-export, safetensors, got 'tflite'"),
        ("dcgan", {"batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_exported(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        gf.models.export(make(name), tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_wrong_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = exporting._save_program

    def off(program: Any, path: Path) -> Any:
        run = save(program, path)
        return lambda inputs: run(inputs) + 0.01

    monkeypatch.setattr(exporting, "_save_program", off)
    with pytest.raises(RuntimeError, match=r"the exported program computes something else: it is off by 0\.01"):
        gf.models.export(make("dcgan"), tmp_path / "x.pt2", to="torch-export")
    assert list(tmp_path.iterdir()) == []
