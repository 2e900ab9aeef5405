"""Networks that repair images: of noise, blur, compression, holes, or too few pixels.

What gives as many pixels as it takes is a residual network in the style of DnCNN, Zhang et al. 2017,
https://arxiv.org/abs/1608.03981: it predicts what is wrong with an image. It works on the four shifted images of
half the size that make up one, and is told how much is wrong by a map beside them, as in FFDNet, Zhang et al.
2018, https://arxiv.org/abs/1710.04026: that is four times as fast, and one network does for all levels of noise.
Its convolutions are in residual blocks, with batch norm, since noise has to get through: a plain stack of twelve
with batch norm learned next to nothing in its first hundred steps, where blocks take away 6 dB of noise.

What makes more pixels is EDSR, Lim et al. 2017, https://arxiv.org/abs/1707.02921: residual blocks without
normalisation at the size that comes in, and a last convolution whose channels are the new pixels (Shi et al. 2016,
https://arxiv.org/abs/1609.05158). It predicts what bicubic interpolation lacks.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast import nn
from genimg_fast._images import check_layout, check_values
from genimg_fast.models.common import check_choice, check_sizes
from genimg_fast.models.pretrained import BaseModel
from genimg_fast.models.registry import register_model
from genimg_fast.options import PositiveInt

Task = Literal["denoise", "neighbor2neighbor", "deblur", "jpeg", "inpaint", "sr2", "sr3", "sr4"]
# What the level that a network is told is divided by. The others see for themselves.
_LEVELS = {"denoise": 255.0, "deblur": 5.0}


@register_model("restorer")
class Restorer(BaseModel):
    """A network that repairs images, of one kind of damage.

    Args:
        task: What it repairs: ``"denoise"``; ``"neighbor2neighbor"``: noise, learned from noisy images alone;
            ``"deblur"``; ``"jpeg"``; ``"inpaint"``; ``"sr2"``, ``"sr3"``, ``"sr4"``: 2, 3 or 4 times the pixels.
        c_dim: Channels of the images.
        channels: Feature channels.
        depth: Number of convolutions: two, and two in each residual block; an odd one is left out.

    Raises:
        ValueError: If the task is unknown, a size is below 1, or ``depth`` below 4.

    Example:
        >>> import torch, genimg_fast as gf
        >>> denoiser = gf.models.Restorer("denoise", c_dim=3, channels=8, depth=4)
        >>> denoiser(torch.randn(2, 3, 33, 48), levels=torch.tensor([25.0, 50.0])).shape
        torch.Size([2, 3, 33, 48])
        >>> gf.models.Restorer("sr3", c_dim=3, channels=8, depth=4)(torch.randn(2, 3, 16, 20)).shape
        torch.Size([2, 3, 48, 60])
    """

    def __init__(
        self, task: Task = "denoise", *, c_dim: int = 3, channels: PositiveInt = 48, depth: PositiveInt = 12
    ) -> None:
        super().__init__()
        check_choice("task", task, get_args(Task))
        check_sizes(c_dim=c_dim, channels=channels)
        if depth < 4:
            raise ValueError(f"depth must be at least 4, got {depth}")
        self.task, self.c_dim, self.depth = task, c_dim, depth
        self.scale = int(task[2:]) if task.startswith("sr") else 1
        n_blocks = (depth - 2) // 2
        if self.scale > 1:
            self.body = nn.Sequential(
                nn.Conv2d(c_dim, channels, 3, padding=1),
                *[_ResidualBlock(channels, nn.ReLU(inplace=True)) for _ in range(n_blocks)],
                nn.Conv2d(channels, c_dim * self.scale**2, 3, padding=1),
                nn.PixelShuffle(self.scale),
            )
        else:
            maps = 4 if task == "inpaint" else 1 if task in _LEVELS else 0
            self.body = nn.Sequential(
                nn.Conv2d(4 * c_dim + maps, channels, 3, padding=1),
                *[
                    _ResidualBlock(channels, nn.BatchNormAct2d(channels, activation="relu"))
                    for _ in range(n_blocks)
                ],
                nn.Conv2d(channels, 4 * c_dim, 3, padding=1),
                nn.PixelShuffle(2),
            )
        for layer in self.body.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        last = self.body[-2]
        assert isinstance(last, nn.Conv2d)
        with torch.no_grad():  # at first, it leaves images, or bicubic interpolation, nearly as they are
            last.weight.mul_(0.1)

    @property
    def takes_level(self) -> bool:
        """Whether it has to be told how much is wrong, as one number for an image."""
        return self.task in _LEVELS

    @property
    def reach(self) -> int:
        """How many pixels away one may be that has a say in a pixel."""
        return self.depth + 2 if self.scale > 1 else 2 * self.depth + 1

    def forward(self, images: Tensor, levels: Tensor | None = None) -> Tensor:
        """Repair images.

        Args:
            images: In [-1, 1], of shape (batch, c_dim, height, width); noise may make them leave it.
            levels: For ``"denoise"``, the standard deviation of each image's noise, in levels of 255 between black
                and white, and for ``"deblur"`` that of the Gaussian blur, in pixels: of shape (batch,). For
                ``"inpaint"``, 1 where pixels are gone, of shape (batch, 1, height, width).

        Returns:
            The images, ``scale`` times as large; not clipped.

        Raises:
            ValueError: If the images or levels have another shape, or there are levels too many or too few.
        """
        check_layout(images, self.c_dim)
        if self.task not in ("denoise", "neighbor2neighbor"):
            check_values(images)
        expected = (
            tuple(images.shape[:1]) if self.takes_level else (len(images), 1, *images.shape[2:])
            if self.task == "inpaint" else None
        )  # fmt: skip
        if (None if levels is None else tuple(levels.shape)) != expected:
            got = "none" if levels is None else f"shape {tuple(levels.shape)}"
            raise ValueError(f"levels must be of shape {expected} for {self.task}, got {got}")
        if self.scale > 1:
            return self.body(images) + F.interpolate(images, scale_factor=self.scale, mode="bicubic")
        height, width = images.shape[2:]
        odd = [0, width % 2, 0, height % 2]
        inputs = [F.pixel_unshuffle(F.pad(images, odd, mode="replicate"), 2)]
        if self.task == "inpaint":
            assert levels is not None
            inputs.append(F.pixel_unshuffle(F.pad(levels.to(images), odd, mode="replicate"), 2))
        elif levels is not None:
            told = (levels / _LEVELS[self.task]).to(images).view(-1, 1, 1, 1)
            inputs.append(told.expand(-1, 1, *inputs[0].shape[2:]))
        wrong = self.body(torch.cat(inputs, 1))[:, :, :height, :width]
        if self.task == "inpaint":
            assert levels is not None
            wrong = wrong * (levels > 0.5)
        return images - wrong


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, middle: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), middle, nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.body(x)  # EDSR's factor, that many blocks do not blow up
