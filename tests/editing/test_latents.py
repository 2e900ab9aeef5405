from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast.editing import attribute_direction, mix, project, vary


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dcgan() -> gf.models.DCGAN:
    torch.manual_seed(0)
    model = gf.models.DCGAN(z_dim=4, c_dim=1, channels=8, n_blocks=1)
    for parameter in model.generator.parameters():  # untrained, its images hardly depend on the noise
        parameter.data.mul_(4)
    return model


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=generator()) * 2 - 1


MODELS: dict[str, Callable[[], Any]] = {
    "vae": lambda: gf.models.VAE(z_dim=4, c_dim=1, channels=4, n_blocks=1),
    "bernoulli": lambda: gf.models.VAE(z_dim=4, c_dim=1, channels=4, n_blocks=1, likelihood="bernoulli"),
    "vqvae": lambda: gf.models.VQVAE(c_dim=1, channels=4, code_dim=3, num_codes=16, image_size=8),
    "autoencoder": lambda: gf.models.Autoencoder(z_dim=4, c_dim=1, channels=4, n_blocks=1),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_an_encoder_encodes(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    z = project(model, images())
    decoded = gf.editing.latents.Latents(model.eval()).decode(z)
    torch.testing.assert_close(decoded, model.reconstruct(images()))


def test_a_generators_image_is_found_again() -> None:
    model = dcgan().eval()
    wanted = model(torch.randn(2, 4, generator=generator(1))).detach()
    near = model(project(model, wanted, steps=0, generator=generator()))
    found = model(project(model, wanted, steps=150, generator=generator()))
    assert (found - wanted).square().mean() < 0.05 * (near - wanted).square().mean()


def test_steps_improve_what_an_encoder_found() -> None:
    torch.manual_seed(0)
    model = MODELS["vae"]()
    for parameter in model.decoder.parameters():
        parameter.data.mul_(4)
    encoded, searched = (project(model, images(), steps=steps) for steps in (0, 30))
    errors = [(model.eval().decode(z) - images()).square().mean() for z in (encoded, searched)]
    assert errors[1] < 0.9 * errors[0]


def test_the_model_stays_as_it_was() -> None:
    model = dcgan().train()
    model.discriminator.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    project(model, images(1), steps=3, generator=generator())
    assert model.generator.training
    assert not model.discriminator.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_classes() -> None:
    model = gf.models.ConditionalDCGAN(num_classes=3, z_dim=4, c_dim=1, channels=4, n_blocks=1)
    z = project(model, images(2), labels=torch.tensor([0, 2]), steps=2, generator=generator())
    assert z.shape == (2, 4)
    with pytest.raises(ValueError, match="labels must be given: the model has 3 classes"):
        project(model, images(2))
    with pytest.raises(ValueError, match="labels must be 2, one for each image, got 3"):
        project(model, images(2), labels=torch.tensor([0, 1, 2]))


def test_what_cannot_be_projected_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model must have latents: .* got Linear"):
        project(torch.nn.Linear(2, 2), images())
    with pytest.raises(ValueError, match="images"):
        project(MODELS["vae"](), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="steps must be at least 0, and 0 for a VQVAE, got 5"):
        project(MODELS["vqvae"](), images(), steps=5)


def test_the_latents_of_a_model_without_an_encoder_or_noise() -> None:
    torch.manual_seed(0)
    model = gf.models.GLO(8, z_dim=4, c_dim=1, channels=4, n_blocks=1).eval()
    for parameter in model.decoder.parameters():
        parameter.data.mul_(4)
    wanted = model.decode(model.codes.weight[:2]).detach()
    found, near = (project(model, wanted, steps=steps, generator=generator(1)) for steps in (60, 0))
    assert (model.decode(found) - wanted).square().mean() < (model.decode(near) - wanted).square().mean()
    assert found.norm(dim=1).max() <= 1 + 1e-6
    assert vary(model, found, 3, generator=generator()).shape == (6, 4)
    torch.testing.assert_close(mix(model, found), found.mean(0, keepdim=True))


def test_what_is_no_latent_is_refused() -> None:
    vqvae, vae = MODELS["vqvae"](), MODELS["vae"]()
    for edit in (vary, mix):
        with pytest.raises(ValueError, match=r"z must be latents of the model, \(n, 4\), got \(2, 5\)"):
            edit(vae, torch.zeros(2, 5))
        with pytest.raises(
            ValueError, match=r"z must be latents of the model, \(n, 3, grid, grid\), got \(2, 4\)"
        ):
            edit(vqvae, torch.zeros(2, 4))
        with pytest.raises(ValueError, match="z must be a tensor of floating-point numbers, got torch"):
            edit(vae, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"images must be numbers in \[-1, 1\], some are NaN"):
        project(vae, images() * float("nan"))
    assert project(vae, images().double()).dtype == torch.float32  # the model's


def test_variations_keep_the_distribution() -> None:
    model, z = MODELS["vae"](), torch.randn(500, 4, generator=generator())
    assert torch.equal(vary(model, z, 2, strength=0.0), z.repeat_interleave(2, 0))
    varied = vary(model, z, 8, strength=0.6, generator=generator(1))
    assert varied.std().item() == pytest.approx(1, abs=0.03)
    correlation = (varied * z.repeat_interleave(8, 0)).mean() / z.square().mean()
    assert correlation.item() == pytest.approx(0.8, abs=0.04)
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\], got 1.5"):
        vary(model, z, strength=1.5)
    with pytest.raises(ValueError, match="n must be at least 1"):
        vary(model, z, 0)


def test_a_share_of_codes_is_exchanged() -> None:
    torch.manual_seed(0)
    model = gf.models.VQVAE(c_dim=1, channels=4, code_dim=3, num_codes=16, image_size=32)
    z = project(model, torch.rand(16, 1, 32, 32, generator=generator()))
    varied = vary(model, z, 1, strength=0.25, generator=generator())
    changed = (model.codebook(varied) != model.codebook(z)).float().mean()
    assert changed.item() == pytest.approx(0.25, abs=0.05)
    torch.testing.assert_close(model.codebook.look_up(model.codebook(varied)), varied)


def test_directions_of_an_attribute() -> None:
    common = torch.randn(400, 3, generator=generator()) * torch.tensor([1.0, 1.0, 3.0])
    by_chance = torch.randn(400, 1, generator=generator(1)) * torch.tensor([0.0, 0.0, 3.0])
    attribute = torch.tensor([4.0, 0.0, 0.0])
    mean = attribute_direction(common, common + attribute)
    torch.testing.assert_close(mean, attribute)
    linear = attribute_direction(common, common + by_chance + attribute, method="linear")
    assert linear[0].item() == pytest.approx(4, abs=0.3)
    assert linear[1:].abs().max() < 0.5
    with pytest.raises(ValueError, match="having must be latents of the shape of those without"):
        attribute_direction(common, common[:0])
    with pytest.raises(ValueError, match="having must have another mean"):
        attribute_direction(common, common)


def test_mixtures() -> None:
    model, z = MODELS["vae"](), torch.randn(3, 4, generator=generator())
    torch.testing.assert_close(mix(model, z, weights=[0, 2, 0]), z[1:2])
    mixed = mix(model, z, weights=[1, 1, 2])
    assert mixed.norm().item() == pytest.approx((z.norm(dim=1) @ torch.tensor([0.25, 0.25, 0.5])).item(), rel=1e-5)
    torch.testing.assert_close(
        mixed / mixed.norm(), (z[0] + z[1] + 2 * z[2])[None] / (z[0] + z[1] + 2 * z[2]).norm()
    )
    codes = MODELS["autoencoder"]()
    torch.testing.assert_close(mix(codes, z), z.mean(0, keepdim=True))
    for weights in ([1, 2], [0, 0, 0], [1, -1, 1], [float("nan"), 1, 1]):
        with pytest.raises(ValueError, match="weights must be 3 numbers of at least 0, not all 0"):
            mix(model, z, weights=weights)
