"""A network that paints pictures in one style, in one pass.

Johnson et al. 2016, https://arxiv.org/abs/1603.08155: two halvings, residual blocks, two doublings. As is usual
since, each convolution is followed by instance norm (Ulyanov et al. 2017, https://arxiv.org/abs/1701.02096), and
doublings interpolate before a convolution, which makes no checkerboards (Odena et al. 2016,
https://doi.org/10.23915/distill.00003). Borders are mirrored.

The statistics of instance norm are those of the whole picture. A copy with statistics of a given picture, such as
a thumbnail of a large one (Chen et al. 2022, https://arxiv.org/abs/2103.11784), is a network without any memory of
what else there is: it does tiles of the large picture as if that went through at once.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast import nn
from genimg_fast._images import check_layout, check_values
from genimg_fast.models.common import check_sizes
from genimg_fast.models.pretrained import BaseModel
from genimg_fast.models.registry import register_model
from genimg_fast.options import PositiveInt


@register_model("style-net")
class StyleNet(BaseModel):
    """A network that paints pictures of any size in the style that it was trained for.

    Args:
        c_dim: Channels of the images.
        channels: Feature channels at full resolution; they double with either halving.
        n_residual: Number of residual blocks.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.StyleNet(channels=8, n_residual=2)
        >>> model(torch.rand(2, 3, 33, 46) * 2 - 1).shape
        torch.Size([2, 3, 33, 46])
    """

    def __init__(self, c_dim: int = 3, channels: PositiveInt = 16, n_residual: PositiveInt = 5) -> None:
        super().__init__()
        check_sizes(c_dim=c_dim, channels=channels, n_residual=n_residual)
        self.c_dim, self.n_residual = c_dim, n_residual
        c = channels
        self.body = nn.Sequential(
            *_normed(c_dim, c, 7),
            *_normed(c, 2 * c, 3, stride=2),
            *_normed(2 * c, 4 * c, 3, stride=2),
            *(_ResidualBlock(4 * c) for _ in range(n_residual)),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            *_normed(4 * c, 2 * c, 3),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            *_normed(2 * c, c, 3),
            nn.Conv2d(c, c_dim, 7, padding=3, padding_mode="reflect"),
            nn.Tanh(),
        )

    @property
    def reach(self) -> int:
        """How many pixels away one may be that has a say in a pixel, statistics aside; a multiple of 4."""
        return 8 * self.n_residual + 20

    def forward(self, images: Tensor) -> Tensor:
        """Paint images.

        Args:
            images: In [-1, 1], of shape (batch, c_dim, height, width), with 5 pixels a side at least.

        Returns:
            Images likewise, of the same size.

        Raises:
            ValueError: If the images have another shape, or are too small.
        """
        check_layout(images, self.c_dim)
        check_values(images)
        height, width = images.shape[2:]
        if min(height, width) < 5:  # of one pixel, there is nothing to mirror
            raise ValueError(f"images must have at least 5 pixels a side, got {width}x{height}")
        padded = F.pad(images, (0, -width % 4, 0, -height % 4), mode="replicate")
        return self.body(padded)[:, :, :height, :width]

    @torch.no_grad()
    def with_statistics_of(self, images: Tensor) -> "StyleNet":
        """Make a copy that normalises by the statistics that one picture has, instead of each image's own.

        Args:
            images: The picture, of shape (1, c_dim, height, width), in [-1, 1].

        Returns:
            A copy in evaluation mode, whose instance norms are batch norms.

        Raises:
            ValueError: If there is more than one picture, or it has another shape.

        Example:
            >>> import torch, genimg_fast as gf
            >>> model = gf.models.StyleNet(channels=4, n_residual=1).eval()
            >>> images = torch.rand(1, 3, 32, 32) * 2 - 1
            >>> torch.allclose(model.with_statistics_of(images)(images), model(images), atol=1e-5)
            True
        """
        if len(images) != 1:
            raise ValueError(f"images must be one picture, got {len(images)}")
        fixed = copy.deepcopy(self).eval()
        norms = [module for module in fixed.modules() if isinstance(module, nn.InstanceNormAct2d)]
        twins: dict[nn.Module, nn.BatchNormAct2d] = {}

        def record(norm: nn.InstanceNormAct2d, inputs: tuple[Tensor, ...]) -> None:
            twin = nn.BatchNormAct2d(norm.num_features, norm.eps, activation=norm.activation).to(inputs[0]).eval()
            variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
            state = {"running_mean": mean, "running_var": variance, "weight": norm.weight, "bias": norm.bias}
            twin.load_state_dict(state, strict=False)
            twins[norm] = twin

        hooks = [norm.register_forward_pre_hook(record) for norm in norms]
        fixed(images)
        for hook in hooks:
            hook.remove()
        for parent in list(fixed.modules()):
            for name, child in list(parent.named_children()):
                if child in twins:
                    setattr(parent, name, twins[child])
        return fixed


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode="reflect", bias=False),
        nn.InstanceNormAct2d(outputs, affine=True),
    ]


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=False)
        self.norm1 = nn.InstanceNormAct2d(width, affine=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=False)
        self.norm2 = nn.InstanceNormAct2d(width, affine=True, activation="identity")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.norm1(self.conv1(x))), residual=x)
