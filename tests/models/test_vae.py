import math

import pytest
import torch
from torch import Tensor, nn

import genimg_fast as gf
from genimg_fast.models import (
    LIKELIHOODS,
    MLPVAE,
    VAE,
    BaseVAE,
    ConditionalVAE,
    ResidualVAE,
    interpolate_latents,
    residual_vae,
)

SIZES = {"z_dim": 5, "c_dim": 2, "channels": 3, "n_blocks": 2}


def make(kind: str, likelihood: str = "bernoulli") -> BaseVAE:
    """A small model for images of shape (2, 16, 16)."""
    if kind == "mlp-vae":
        return MLPVAE(z_dim=5, c_dim=2, image_size=16, hidden=(12, 8), likelihood=likelihood)
    if kind == "cvae":
        return ConditionalVAE(3, **SIZES, likelihood=likelihood)
    if kind == "resvae":
        return ResidualVAE(**SIZES, likelihood=likelihood)
    return VAE(**SIZES, likelihood=likelihood)


def batch(kind: str, device: str = "cpu") -> tuple[Tensor, Tensor | None]:
    images = torch.rand(6, 2, 16, 16, device=device) * 2 - 1
    return images, torch.arange(6, device=device) % 3 if kind == "cvae" else None


every_kind = pytest.mark.parametrize("kind", ["vae", "cvae", "mlp-vae", "resvae"])
every_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)


@every_kind
@every_likelihood
def test_shapes_and_ranges(kind: str, likelihood: str, device: str) -> None:
    model = make(kind, likelihood).to(device)
    images, labels = batch(kind, device)
    output = model(images, labels)
    assert output.z.shape == output.mu.shape == output.logvar.shape == (6, 5)
    assert output.kl.shape == model.log_likelihood(images, output.reconstruction).shape == (6,)
    assert output.reconstruction.shape == images.shape
    for result in (model.to_images(output.reconstruction), model.reconstruct(images, labels), model.sample(6)):
        assert result.shape == images.shape
        assert result.abs().max() <= 1
    empty = model(images[:0], None if labels is None else labels[:0])
    assert empty.reconstruction.shape == (0, 2, 16, 16)


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 4])
def test_image_size_follows_the_number_of_blocks(n_blocks: int) -> None:
    model = VAE(z_dim=4, c_dim=1, channels=2, n_blocks=n_blocks)
    assert model.image_size == 4 * 2**n_blocks
    assert model.reconstruct(torch.zeros(2, 1, model.image_size, model.image_size)).shape[2] == model.image_size


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 5])
def test_a_residual_vae_of_any_depth(n_blocks: int) -> None:
    model = ResidualVAE(z_dim=4, c_dim=1, channels=2, n_blocks=n_blocks).train()
    images = torch.rand(1, 1, 4 * 2**n_blocks, 4 * 2**n_blocks) * 2 - 1  # a batch of one, in training
    torch.testing.assert_close(model.encode(images), model.eval().encode(images), rtol=0, atol=0)
    assert model.reconstruct(images).shape == images.shape
    widths = [m.num_channels for m in model.encoder.modules() if isinstance(m, gf.nn.GroupNormAct)]
    assert max(widths) == 2 * min(2 ** (n_blocks - 1), 8)


@pytest.mark.parametrize("scale", ["halve", "keep", "double"])
@pytest.mark.parametrize("outputs", [8, 16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_residual_block_equals_plain_layers(
    scale: str, outputs: int, layout: torch.memory_format, device: str
) -> None:
    block = residual_vae._Block(8, outputs, scale).to(device, memory_format=layout)
    x = torch.randn(3, 8, 6, 6, device=device).contiguous(memory_format=layout).requires_grad_()
    functional = nn.functional

    def norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
        return functional.silu(functional.group_norm(x, layer.num_groups, layer.weight, layer.bias))

    def resized(x: Tensor) -> Tensor:
        if scale == "double":
            return functional.interpolate(x, scale_factor=2)
        return functional.avg_pool2d(x, 2) if scale == "halve" else x

    h = norm(block.norm1, x)
    h = block.conv2(norm(block.norm2, block.conv1(resized(h) if scale == "double" else h)))
    expected = (resized(h) if scale == "halve" else h) + block.shortcut(resized(x))
    found = block(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    inputs = [x, *block.parameters()]
    weights = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        rtol=1e-3, atol=1e-4,
    )  # fmt: skip


def test_defaults_are_the_networks_of_the_dcgan() -> None:
    model = VAE()
    convolutions = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [
        (3, 64), (64, 128), (128, 256), (256, 200),
        (100, 256), (256, 128), (128, 64), (64, 3),
    ]  # fmt: skip
    # The last layers set the pixels' and the moments' level; where batch norm follows, a bias would do nothing.
    assert [m.bias is not None for m in convolutions] == [True, False, False, True, False, False, False, True]


@every_kind
def test_samples_with_the_noise_it_is_given(kind: str, device: str) -> None:
    model = make(kind).to(device)
    images, labels = batch(kind, device)
    noise = torch.randn(6, 5, device=device)
    output = model(images, labels, noise=noise)
    torch.testing.assert_close(output.z, output.mu + (output.logvar / 2).exp() * noise)
    posterior = torch.distributions.Normal(output.mu, (output.logvar / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(output.mu), torch.ones_like(output.mu))
    kl = torch.distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(output.kl, kl.sum(1))
    torch.testing.assert_close(model(images, labels, free_bits=0.3).kl, kl.clamp(min=0.3).sum(1))


def test_forward_samples_in_evaluation_mode_too() -> None:
    # With the mean instead, the ELBO of a test set would look better than it is.
    model = make("vae").eval()
    images, _ = batch("vae")
    output = model(images, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(output.z, output.mu)
    assert torch.equal(model(images, generator=torch.Generator().manual_seed(1)).z, output.z)


@every_kind
@every_likelihood
def test_a_perfect_decoder_gets_the_images_back(kind: str, likelihood: str) -> None:
    # What decode returns, to_images and log_likelihood have to agree on the range of images.
    model = make(kind, likelihood)
    images = torch.rand(4, 2, 16, 16) * 1.8 - 0.9
    decoded = ((images + 1) / 2).logit() if likelihood == "bernoulli" else images
    torch.testing.assert_close(model.to_images(decoded), images)
    best = model.log_likelihood(images, decoded)
    for shift in (-0.05, 0.05):
        assert (model.log_likelihood(images, decoded + shift) < best).all()


def test_log_likelihoods() -> None:
    images, decoded = torch.rand(2, 4, 2, 16, 16, dtype=torch.float64).mul(2).sub(1).unbind()
    gaussian = make("vae", "gaussian").double()
    with torch.no_grad():
        gaussian.image_logvar.fill_(-1.5)
    for model, distribution, outcome in (
        (gaussian, torch.distributions.Normal(decoded, math.exp(-0.75)), images),
        (make("vae", "mse"), torch.distributions.Normal(decoded, 1.0), images),
        (make("vae"), torch.distributions.Bernoulli(logits=decoded, validate_args=False), (images + 1) / 2),
    ):
        expected = distribution.log_prob(outcome).sum((1, 2, 3))
        torch.testing.assert_close(model.log_likelihood(images, decoded), expected)


@every_kind
def test_using_a_model_leaves_it_as_it_was(kind: str, device: str) -> None:
    model = make(kind).to(device)
    next(model.decoder.children()).eval()
    images, labels = batch(kind, device)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]

    def draw(seed: int) -> Tensor:
        return model.sample(4, generator=torch.Generator().manual_seed(seed))

    samples = draw(1)
    assert torch.equal(draw(1), samples)
    assert not torch.equal(draw(2), samples)
    reconstructions = model.reconstruct(images, labels)
    fewer = model.reconstruct(images[:2], None if labels is None else labels[:2])
    torch.testing.assert_close(fewer, reconstructions[:2])
    path = model.interpolate(images, images.flip(0), labels=labels)
    assert not any(result.requires_grad for result in (samples, reconstructions, path))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every_kind
@pytest.mark.parametrize("mode", ["linear", "spherical"])
def test_interpolation_goes_from_one_reconstruction_to_the_other(kind: str, mode: str) -> None:
    model = make(kind)
    images, labels = batch(kind)
    others = images.flip(0)
    path = model.interpolate(images, others, steps=7, mode=mode, labels=labels)
    assert path.shape == (6, 7, 2, 16, 16)
    torch.testing.assert_close(path[:, 0], model.reconstruct(images, labels))
    torch.testing.assert_close(path[:, -1], model.reconstruct(others, labels))


def test_interpolated_latents() -> None:
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    torch.testing.assert_close(interpolate_latents(a, b, 3)[0, 1], torch.tensor([1.5, 1.5]))
    arc = interpolate_latents(a, b, 5, "spherical")[0]
    angles = torch.linspace(0, math.pi / 2, 5)
    torch.testing.assert_close(arc, 3 * torch.stack([angles.cos(), angles.sin()], 1))
    longer = interpolate_latents(torch.randn(8, 20), 2 * torch.randn(8, 20), 4, "spherical")
    assert (longer[:, 1:].norm(dim=-1) > longer[:, :1].norm(dim=-1) * 0.9).all()  # no dip between the ends
    for other in (a, -a, 2 * a):  # no arc, or no one arc: straight on
        torch.testing.assert_close(interpolate_latents(a, other, 4, "spherical"), interpolate_latents(a, other, 4))


def test_conditional_model_looks_at_the_class() -> None:
    model = make("cvae").eval()
    images, labels = batch("cvae")
    other = (labels + 1) % 3
    assert (model.encode(images, labels)[0] != model.encode(images, other)[0]).any(1).all()
    z = torch.randn(6, 5)
    assert (model.decode(z, labels) != model.decode(z, other)).flatten(1).any(1).all()


def test_classes_of_samples() -> None:
    model = make("cvae")

    def draw(n: int, labels: Tensor | int | None = None) -> Tensor:
        return model.sample(n, labels=labels, generator=torch.Generator().manual_seed(0))

    assert torch.equal(draw(6), draw(6, torch.tensor([0, 0, 1, 1, 2, 2])))
    assert torch.equal(draw(6, 2), draw(6, torch.full((6,), 2)))
    assert draw(0).shape == (0, 2, 16, 16)


class PyTorchExample(nn.Module):
    """The network and loss of PyTorch's VAE example, which takes images in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.fc1(images.view(-1, 784)).relu()
        mu, logvar = self.fc21(hidden), self.fc22(hidden)
        reconstruction = self.fc4(self.fc3(mu + noise * (0.5 * logvar).exp()).relu()).sigmoid()
        bce = nn.functional.binary_cross_entropy(reconstruction, images.view(-1, 784), reduction="sum")
        return reconstruction, bce - 0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum()


def test_classic_mlp_has_the_numbers_of_the_pytorch_example(device: str) -> None:
    example, model = PyTorchExample().to(device), MLPVAE().to(device)
    theirs, ours = (sum(p.numel() for p in m.parameters()) for m in (example, model))
    assert theirs == ours == 652_824
    moments = {
        key: torch.cat([getattr(example.fc21, key), getattr(example.fc22, key)]) for key in ("weight", "bias")
    }
    model.load_state_dict(
        {
            **{f"encoder.1.{key}": value for key, value in example.fc1.state_dict().items()},
            **{f"encoder.3.{key}": value for key, value in moments.items()},
            **{f"decoder.0.{key}": value for key, value in example.fc3.state_dict().items()},
            **{f"decoder.2.{key}": value for key, value in example.fc4.state_dict().items()},
        }
    )
    pixels, noise = torch.rand(8, 1, 28, 28, device=device), torch.randn(8, 20, device=device)
    reconstruction, loss = example(pixels, noise)
    images = pixels * 2 - 1
    output = model(images, noise=noise)
    torch.testing.assert_close((model.to_images(output.reconstruction) + 1).view(8, 784) / 2, reconstruction)
    terms = gf.losses.negative_elbo(model.log_likelihood(images, output.reconstruction), output.kl)
    torch.testing.assert_close(terms.loss, loss / 8)  # the example sums over the batch


@every_kind
def test_compiles_without_graph_breaks(kind: str) -> None:
    model = make(kind, "gaussian")
    images, labels = batch(kind)
    noise = torch.randn(6, 5)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, labels, noise=noise), model(images, labels, noise=noise))


def test_bad_arguments() -> None:
    model, conditional = make("vae"), make("cvae")
    images, labels = batch("cvae")
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 2, 16, 16\), got \(6, 2, 8, 8\)"):
        model(images[:, :, :8, :8])
    with pytest.raises(ValueError, match=r"expected latents of shape \(batch, 5\), got \(6, 4\)"):
        model.decode(torch.zeros(6, 4))
    with pytest.raises(ValueError, match="labels are for class-conditional models, and this one is not"):
        model(images, labels)
    with pytest.raises(ValueError, match=r"class-conditional: labels of shape \(6,\) are needed"):
        conditional(images)
    with pytest.raises(
        ValueError, match=r"labels must be int64 of shape \(6,\), got torch.float32 of shape \(6,\)"
    ):
        conditional(images, labels.float())
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(6,\), got torch.int64 of shape \(3,\)"):
        conditional(images, labels[:3])
    with pytest.raises(ValueError, match="likelihood must be one of bernoulli, gaussian, mse, got 'bce'"):
        VAE(likelihood="bce")
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        model.interpolate(images, images, steps=1)
    with pytest.raises(ValueError, match="mode must be 'linear' or 'spherical', got 'cubic'"):
        model.interpolate(images, images, mode="cubic")
    with pytest.raises(
        ValueError, match=r"a and b must both have shape \(batch, z_dim\), got \(2, 3\) and \(2, 4\)"
    ):
        interpolate_latents(torch.zeros(2, 3), torch.zeros(2, 4), 3)


@pytest.mark.parametrize("argument", ["z_dim", "c_dim", "channels", "n_blocks", "num_classes"])
def test_sizes_must_be_positive(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        ConditionalVAE(**{"num_classes": 3, argument: 0})
    with pytest.raises(ValueError, match=r"hidden\[1\] must be at least 1, got 0"):
        MLPVAE(hidden=(4, 0))


def test_weights_of_the_first_mlp_vae_mean_the_same() -> None:
    model = make("mlp-vae").double()
    images = batch("mlp-vae")[0].double()
    state = model.state_dict()
    expected = model.encoder(images)  # its layers saw pixels in [-1, 1]
    state._metadata[""]["version"] = 1
    model.load_state_dict(state)
    torch.testing.assert_close(torch.cat(model.encode(images), 1), expected)
    again = make("mlp-vae").double()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(torch.cat(again.encode(images), 1), expected)
