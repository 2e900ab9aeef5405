import pytest
import torch
from small_models import SMALL_MODELS

import genimg_fast as gf
from genimg_fast.models import registry


def negative_elbo(model: gf.models.BaseVAE, device: str, labels: torch.Tensor | None = None) -> torch.Tensor:
    images = torch.rand(4, 2, 16, 16, device=device) * 2 - 1
    output = model(images, None if labels is None else labels.to(device))
    return gf.losses.negative_elbo(model.log_likelihood(images, output.reconstruction), output.kl).loss


def logits(model: gf.models.BaseGAN, device: str, labels: torch.Tensor | None = None) -> torch.Tensor:
    labels = None if labels is None else labels.to(device)
    return model.discriminator(model(torch.randn(4, 8, device=device), labels), labels)


def quantised(model: gf.models.VQVAE, device: str) -> torch.Tensor:
    images = torch.rand(4, 2, 16, 16, device=device) * 2 - 1
    output = model(images)
    return (output.reconstruction - images).square().mean() + output.commitment


def patch_logits(model: gf.models.Pix2Pix, device: str) -> torch.Tensor:
    images = torch.rand(4, 1, 16, 16, device=device) * 2 - 1
    return model.discriminator(images, model(images))


def logits_of_both_kinds(model: gf.models.CycleGAN, device: str) -> torch.Tensor:
    images = torch.rand(4, 2, 16, 16, device=device) * 2 - 1
    return model.judge_a(model(images, direction="b2a")) + model.judge_b(model(images))


def row_likelihood(model: gf.models.RowRNN, device: str) -> torch.Tensor:
    images = torch.rand(4, 2, 16, 16, device=device) * 2 - 1
    return model.log_likelihood(images, model(images))


def frames(device: str) -> torch.Tensor:
    return torch.rand(2, 5, 2, 16, 16, device=device) * 2 - 1


# How to run each registered model so that its output depends on all of its parameters. A new model needs a line.
RUN = {
    "dcgan": logits,
    "wgan": logits,
    "cdcgan": lambda model, device: logits(model, device, torch.tensor([0, 1, 2, 0])),
    "resgan": logits,
    "mlp-gan": logits,
    "pix2pix": patch_logits,
    "cyclegan": logits_of_both_kinds,
    "autoencoder": lambda model, device: model(torch.rand(4, 2, 16, 16, device=device) * 2 - 1),
    "vqvae": quantised,
    "glo": lambda model, device: model(torch.arange(4, device=device)),
    "deep-image-prior": lambda model, device: model(),
    "vae": negative_elbo,
    "cvae": lambda model, device: negative_elbo(model, device, torch.tensor([0, 1, 2, 0])),
    "resvae": negative_elbo,
    "mlp-vae": negative_elbo,
    "rnn": lambda model, device: model(torch.randn(6, 4, 3, device=device)).output,
    "frame-predictor": lambda model, device: model(frames(device)).decoded,
    "frame-filler": lambda model, device: (
        model(frames(device), torch.tensor([True, False, True, False, True], device=device)).decoded
    ),
    "restorer": lambda model, device: model(
        torch.rand(4, 2, 16, 16, device=device) * 2 - 1, torch.full((4,), 25.0, device=device)
    ),
    "style-net": lambda model, device: model(torch.rand(4, 2, 16, 16, device=device) * 2 - 1),
    "row-rnn": row_likelihood,
}


@pytest.mark.parametrize("name", gf.models.list_models())
def test_every_parameter_gets_a_gradient(name: str, device: str) -> None:
    model = gf.models.create_model(name, **SMALL_MODELS[name]).to(device)
    RUN[name](model, device).square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_create_and_list() -> None:
    assert "dcgan" in gf.models.list_models()
    assert gf.models.list_models("dc*") == ["dcgan"]
    assert gf.models.list_models("*vae") == ["cvae", "mlp-vae", "resvae", "vae", "vqvae"]
    assert gf.models.list_models("nothing*") == []
    with pytest.warns(UserWarning, match=r"no model matches 'dcgn'; did you mean dcgan, cdcgan\?"):
        assert gf.models.list_models("dcgn") == []
    assert isinstance(gf.models.create_model("dcgan", **SMALL_MODELS["dcgan"]), gf.models.DCGAN)


def test_unknown_name_lists_close_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'dcgn'; did you mean dcgan, cdcgan\?"):
        gf.models.create_model("dcgn")
    with pytest.raises(ValueError, match=r"known models: .*dcgan"):
        gf.models.create_model("zzz")


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_builders", {})

    @gf.models.register_model("mine")
    def build(width: int) -> torch.nn.Module:
        return torch.nn.Linear(width, width)

    assert gf.models.create_model("mine", width=3).in_features == 3
    with pytest.raises(ValueError, match="'mine' is already registered"):
        gf.models.register_model("mine")(build)
