import pytest
import torch
from torch import nn

import genimg_fast as gf


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("n_blocks", "generator", "discriminator"), [(3, 1_068_928, 663_296), (4, 3_576_704, 2_765_568)]
)
def test_parameter_counts(n_blocks: int, generator: int, discriminator: int) -> None:
    model = gf.models.DCGAN(z_dim=100, c_dim=3, channels=64, n_blocks=n_blocks)
    assert count(model.generator) == generator
    assert count(model.discriminator) == discriminator


def test_defaults_are_the_32_pixel_network() -> None:
    model = gf.models.DCGAN()
    convolutions = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [
        (100, 256), (256, 128), (128, 64), (64, 3),
        (3, 64), (64, 128), (128, 256), (256, 1),
    ]  # fmt: skip
    assert all(m.kernel_size == (4, 4) and m.bias is None for m in convolutions)


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("c_dim", [1, 3, 5])
def test_shapes(n_blocks: int, c_dim: int, device: str) -> None:
    model = gf.models.DCGAN(z_dim=7, c_dim=c_dim, channels=3, n_blocks=n_blocks).to(device)
    size = 4 * 2**n_blocks
    assert model.image_size == model.generator.image_size == model.discriminator.image_size == size
    images = model.generator(torch.randn(2, 7, device=device))
    assert images.shape == (2, c_dim, size, size)
    assert images.abs().max() <= 1
    assert model.discriminator(images).shape == (2,)
    assert model.generator(torch.randn(0, 7, 1, 1, device=device)).shape == (0, c_dim, size, size)


def pytorch_example(nz: int, ngf: int, nc: int) -> tuple[nn.Module, nn.Module]:
    """The two networks of PyTorch's DCGAN tutorial, for 64x64 images."""
    g = nn.Module()
    g.main = nn.Sequential(
        nn.ConvTranspose2d(nz, ngf * 8, 4, 1, 0, bias=False), nn.BatchNorm2d(ngf * 8), nn.ReLU(True),
        nn.ConvTranspose2d(ngf * 8, ngf * 4, 4, 2, 1, bias=False), nn.BatchNorm2d(ngf * 4), nn.ReLU(True),
        nn.ConvTranspose2d(ngf * 4, ngf * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(ngf * 2), nn.ReLU(True),
        nn.ConvTranspose2d(ngf * 2, ngf, 4, 2, 1, bias=False), nn.BatchNorm2d(ngf), nn.ReLU(True),
        nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    d = nn.Module()
    d.main = nn.Sequential(
        nn.Conv2d(nc, ngf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(ngf, ngf * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(ngf * 2), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(ngf * 2, ngf * 4, 4, 2, 1, bias=False), nn.BatchNorm2d(ngf * 4), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(ngf * 4, ngf * 8, 4, 2, 1, bias=False), nn.BatchNorm2d(ngf * 8), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(ngf * 8, 1, 4, 1, 0, bias=False), nn.Sigmoid(),
    )  # fmt: skip
    return g, d


def test_pytorch_example_loads_and_gives_the_same_numbers(device: str) -> None:
    g, d = (module.to(device) for module in pytorch_example(nz=10, ngf=4, nc=3))
    model = gf.models.DCGAN(z_dim=10, c_dim=3, channels=4, n_blocks=4).to(device)
    model.generator.load_state_dict(g.state_dict())
    model.discriminator.load_state_dict(d.state_dict())
    z = torch.randn(6, 10, 1, 1, device=device)
    for training in (True, False):
        for module in (g, d, model):
            module.train(training)
        images = g.main(z)
        torch.testing.assert_close(model.generator(z), images)
        torch.testing.assert_close(model.discriminator(images).sigmoid(), d.main(images).flatten())


def test_initialisation() -> None:
    model = gf.models.DCGAN()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.06)
            assert abs(module.weight.mean().item()) < 0.002
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.01)
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.3)
            assert module.bias.abs().max() == 0


def test_noise_with_and_without_trailing_dimensions() -> None:
    generator = gf.models.DCGANGenerator(z_dim=5, c_dim=1, channels=2, n_blocks=1).eval()
    z = torch.randn(3, 10)[:, ::2]
    assert torch.equal(generator(z), generator(z[:, :, None, None]))


def test_sample_is_seeded_and_leaves_the_model_as_it_was(device: str) -> None:
    model = gf.models.DCGAN(z_dim=5, c_dim=1, channels=2, n_blocks=1).to(device)
    model.generator.main[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]

    def draw(seed: int) -> torch.Tensor:
        return model.sample(3, generator=torch.Generator().manual_seed(seed))

    images = draw(1)
    assert images.shape == (3, 1, 8, 8)
    assert not images.requires_grad
    assert torch.equal(draw(1), images)
    assert not torch.equal(draw(2), images)
    assert model.generator.sample(2).shape == (2, 1, 8, 8)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("shape", [(100,), (100, 1), (4, 99), (4, 100, 1), (4, 100, 2, 2)])
def test_generator_names_the_shape_it_expects(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected noise of shape \(batch, 100\) or .*got \("):
        gf.models.DCGANGenerator(channels=2)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3, 32, 32), (4, 1, 32, 32), (4, 3, 64, 64)])
def test_discriminator_names_the_shape_it_expects(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 3, 32, 32\), got \("):
        gf.models.DCGANDiscriminator(channels=2)(torch.zeros(shape))


@pytest.mark.parametrize("argument", ["z_dim", "c_dim", "channels", "n_blocks"])
def test_sizes_must_be_positive(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        gf.models.DCGAN(**{argument: 0})
