"""Images that are no images are refused everywhere, in words that say what to do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast import losses, metrics, models
from genimg_fast._images import check_values


def square(channels: int, *, size: int = 16, batch: int = 2) -> Tensor:
    return torch.rand(batch, channels, size, size) * 2 - 1


def clips() -> Tensor:
    return torch.zeros(2, 3, 1, 16, 16)


SMALL = {"c_dim": 3, "channels": 4, "n_blocks": 2}
FRAMES = {"channels": 4, "n_blocks": 2, "hidden_size": 4}
NETWORK = metrics.ClassifierNetwork(
    gf.data.ImageDataset(torch.zeros(10, 1, 16, 16, dtype=torch.uint8), torch.arange(10) % 2), steps=0
)

USES: dict[str, tuple[Callable[[Tensor], object], Tensor]] = {
    "vae": (models.VAE(**SMALL), square(3)),
    "vae.encode": (models.VAE(**SMALL).encode, square(3)),
    "vae.reconstruct": (models.VAE(**SMALL).reconstruct, square(3)),
    "vae.interpolate": (lambda x: models.VAE(**SMALL).interpolate(square(3), x), square(3)),
    "mlp-vae": (models.MLPVAE(image_size=16, c_dim=3), square(3)),
    "bound": (lambda x: losses.importance_weighted_bound(models.VAE(**SMALL), x, k=2), square(3)),
    "autoencoder": (models.Autoencoder(**SMALL), square(3)),
    "autoencoder.reconstruct": (models.Autoencoder(**SMALL).reconstruct, square(3)),
    "discriminator": (models.DCGANDiscriminator(**SMALL), square(3)),
    "mlp discriminator": (models.MLPDiscriminator(c_dim=3, image_size=16), square(3)),
    "pix2pix.translate": (models.Pix2Pix(3, 3, 4, 16).translate, square(3)),
    "unet": (models.UNetGenerator(3, 3, 4, 16), square(3)),
    "resnet": (models.ResNetGenerator(3, 3, 4, 1), square(3)),
    "patches": (lambda x: models.PatchDiscriminator(6, 4, 1)(x, x), square(3)),
    "row-rnn": (models.RowRNN(3, 16, hidden_size=8, components=2), square(3)),
    "row-rnn.complete": (models.RowRNN(3, 16, hidden_size=8, components=2).complete, square(3)),
    "predictor": (models.FramePredictor(**FRAMES), clips()),
    "predictor.rollout": (lambda x: models.FramePredictor(**FRAMES).rollout(x, 2), clips()),
    "filler.fill": (lambda x: models.FrameFiller(**FRAMES).fill(x, torch.tensor([True, False, True])), clips()),
    "psnr": (lambda x: metrics.psnr(x, x), square(3)),
    "ssim": (lambda x: metrics.ssim(x, x), square(3)),
    "lpips": (lambda x: metrics.PerceptualSimilarity(lambda a, b: (a - b).mean((1, 2, 3)))(x, x), square(3)),
    "features": (NETWORK, square(3)),
    "statistics": (lambda x: metrics.extract_features([x], NETWORK), square(3)),
    "bernoulli": (lambda x: losses.bernoulli_log_likelihood(x, torch.zeros(x.shape)), square(3)),
    "gaussian": (lambda x: losses.gaussian_log_likelihood(x, torch.zeros(x.shape)), square(3)),
    "logistic": (lambda x: losses.logistic_log_likelihood(x, *torch.zeros(2, *x.shape)), square(3)),
}
every_use = pytest.mark.parametrize("use", USES)


@every_use
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_integers_are_refused(use: str, dtype: torch.dtype) -> None:
    call, images = USES[use]
    call(images)
    with pytest.raises(
        ValueError, match=r"must be floating-point numbers in \[-1, 1\], got torch\.\w+: take x / 127.5"
    ):
        call(images.add(1).mul(127.5).to(dtype))


@pytest.mark.parametrize("use", [use for use in USES if use != "gaussian"])  # a density of any numbers
def test_numbers_up_to_255_are_refused(use: str) -> None:
    call, images = USES[use]
    with pytest.raises(
        ValueError, match=r"must be in \[-1, 1\], got -?[\d.]+ to [\d.]+: of 0\.\.255, take x / 127\.5"
    ):
        call((torch.rand(images.shape) * 255).round())


@pytest.mark.parametrize("size", [1, 16])  # of one pixel, they are in both formats
def test_numbers_up_to_255_are_refused_in_channels_last(size: int) -> None:
    images = torch.linspace(0, 255, 6 * size**2).view(2, 3, size, size).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"must be in \[-1, 1\], got 0 to 255"):
        check_values(images)


# To densities of independent pixels the order does not matter.
@pytest.mark.parametrize("use", sorted({*USES} - {"bernoulli", "gaussian", "logistic"}))
def test_channels_that_are_last_are_refused(use: str) -> None:
    call, images = USES[use]
    with pytest.raises(ValueError, match=r"\((.*, )?16, [13]\)"):
        call(images.movedim(-3, -1))


def test_a_data_set_with_channels_last_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"got \(5, 16, 16, 3\): its channels are last, take permute\(0, 3, 1, 2\)"
    ):
        gf.data.ImageDataset(torch.zeros(5, 16, 16, 3, dtype=torch.uint8))


def test_noise_and_overshoot_pass_and_transforms_work() -> None:
    images, logits = torch.randn(2, 3, 3, 16, 16)
    metrics.psnr(images, logits)
    losses.bernoulli_log_likelihood(images.bfloat16(), logits)
    each = torch.func.vmap(lambda x, y: losses.bernoulli_log_likelihood(x[None], y[None])[0])(images, logits)
    torch.testing.assert_close(each, losses.bernoulli_log_likelihood(images, logits))
    compiled = torch.compile(losses.bernoulli_log_likelihood, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, logits), losses.bernoulli_log_likelihood(images, logits))
    traced = torch.fx.symbolic_trace(models.UNetGenerator(3, 3, 4, 16).eval())
    assert traced(images).shape == images.shape
    assert losses.bernoulli_log_likelihood(images[:0], logits[:0]).shape == (0,)
    assert losses.bernoulli_log_likelihood(images.to("meta"), logits.to("meta")).shape == (3,)
