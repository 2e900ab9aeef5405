"""A VAE of pre-activation residual blocks with group norm and SiLU.

He et al. 2016, https://arxiv.org/abs/1603.05027. The blocks are those of diffusion models and their autoencoders:
Ho et al. 2020, https://arxiv.org/abs/2006.11239.
"""

from itertools import pairwise

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from genimg_fast import nn
from genimg_fast.models.common import check_sizes, group_norm_act
from genimg_fast.models.registry import register_model
from genimg_fast.models.vae import BaseVAE, Likelihood
from genimg_fast.options import PositiveInt


class _Block(nn.Module):
    """Twice group norm, SiLU and a 3x3 convolution; beside it the input, or a 1x1 convolution if widths differ.

    Norm and SiLU are one operator. The addition is not part of it: the operator adds before its activation, and
    the sum of a pre-activation block goes on as it is.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        scale: ``"halve"`` or ``"double"`` the resolution, or ``"keep"`` it.
    """

    def __init__(self, inputs: int, outputs: int, scale: str = "keep") -> None:
        super().__init__()
        self.scale = scale
        self.norm1 = group_norm_act(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = group_norm_act(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        if self.scale == "double":
            h = interpolate(h, scale_factor=2, mode="nearest")
        h = self.conv2(self.norm2(self.conv1(h)))
        if self.scale == "halve":
            return avg_pool2d(h, 2) + self.shortcut(avg_pool2d(x, 2))
        # A 1x1 convolution and nearest-neighbour doubling commute: on the small images it costs a quarter.
        x = self.shortcut(x)
        return h + (interpolate(x, scale_factor=2, mode="nearest") if self.scale == "double" else x)


@register_model("resvae")
class ResidualVAE(BaseVAE):
    """A VAE of residual blocks with group norm and SiLU, for images of 64x64 pixels and more.

    A strided convolution, a block for each further halving and one at 4x4; the decoder is its mirror image.
    Nothing depends on the other images of a batch: it trains in batches of any size, and does the same in
    evaluation.

    Args:
        z_dim: Length of a latent vector.
        c_dim: Colour channels of the images.
        channels: Feature channels of both networks at half the image's resolution; they double with every halving,
            up to eight times as many.
        n_blocks: Images have ``4 * 2**n_blocks`` pixels a side.
        likelihood: p(x|z): ``"bernoulli"``, ``"gaussian"`` with a learned variance, or ``"mse"``.

    Raises:
        ValueError: If a size is below 1 or the likelihood is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.ResidualVAE(z_dim=32, c_dim=3, channels=16)
        >>> images = torch.rand(2, 3, 64, 64) * 2 - 1
        >>> output = model(images)
        >>> output.z.shape, model.to_images(output.reconstruction).shape
        (torch.Size([2, 32]), torch.Size([2, 3, 64, 64]))
    """

    def __init__(
        self,
        z_dim: PositiveInt = 128,
        c_dim: int = 3,
        channels: PositiveInt = 64,
        n_blocks: int = 4,
        *,
        likelihood: Likelihood = "bernoulli",
    ) -> None:
        check_sizes(channels=channels, n_blocks=n_blocks)
        super().__init__(z_dim=z_dim, c_dim=c_dim, image_size=4 * 2**n_blocks, likelihood=likelihood)
        widths = [channels * min(2**level, 8) for level in range(n_blocks)]
        last = widths[-1]
        down = [_Block(a, b, "halve") for a, b in pairwise(widths)]
        up = [_Block(b, a, "double") for a, b in pairwise(widths)]
        self.encoder = nn.Sequential(
            nn.Conv2d(c_dim, channels, 4, stride=2, padding=1), *down, _Block(last, last),
            group_norm_act(last), nn.Conv2d(last, 2 * z_dim, 4),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (z_dim, 1, 1)), nn.ConvTranspose2d(z_dim, last, 4), _Block(last, last), *reversed(up),
            group_norm_act(channels), nn.ConvTranspose2d(channels, c_dim, 4, stride=2, padding=1),
        )  # fmt: skip
