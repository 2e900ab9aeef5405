"""Losses on what a network sees in images, and on the images' smoothness.

Gatys et al. 2016, https://doi.org/10.1109/CVPR.2016.265; Johnson et al. 2016, https://arxiv.org/abs/1603.08155.
A loss has a copy of the network, frozen and in evaluation mode. A chain of layers is run as far as the last one
that is wanted; of any other network, forward hooks take what its named layers make, and it is left after the last
of them, so that images of any size can be compared. Several threads may use one loss at once, and torch.compile
takes it, whole if the network is a chain.
"""

import copy
import itertools
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from genimg_fast._images import check_floating, check_layout

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Torchvision's: numbers of channels, "M" for max pooling.
_VGG: dict[str, list[list[int]]] = {
    "vgg16": [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3],
    "vgg19": [[64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4],
}
# Channels in, squeezed, and expanded by each of the two convolutions.
_FIRES = (
    ((64, 16, 64), (128, 16, 64)), ((128, 32, 128), (256, 32, 128)),
    ((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)),
)  # fmt: skip


class _Left(Exception):
    """The last layer that is wanted has been there."""


class _Call(threading.local):
    """What this thread's call of a loss has found, and how many layers it wants; nothing outside of a call."""

    found: dict[str, Tensor] | None = None
    number = 0


_call = _Call()


class _Keep:
    """A forward hook that keeps what a layer makes; the next layer may write over it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if _call.found is not None:
            _call.found[self.name] = output.clone() if isinstance(output, Tensor) else output
            if len(_call.found) == _call.number:
                raise _Left


class PerceptualLoss(nn.Module):
    """Distance of images in a network's features: the sum over layers of their mean squared differences.

    It is the feature reconstruction loss of Johnson et al. 2016, https://arxiv.org/abs/1603.08155. The network is
    copied, with its features alone if it is one of torchvision's; the copy is frozen and in evaluation mode.
    Gradients go to the images.

    Args:
        network: A network with named layers, such as a VGG of torchvision, or its ``features``; see also
            :func:`load_features`.
        layers: Names of the layers, as ``network.named_modules()`` has them, or their numbers in ``features``;
            default: of a network of torchvision, or its ``features``, what comes before the first four max
            poolings (of VGG: relu1_2, relu2_2, and the last of blocks 3 and 4), or before all and the last
            layer of what ends in a convolution or a ReLU, as ``features[:16]`` does.
        weights: Weight of each layer; default: 1.
        value_range: The numbers that are black and white in the images.
        mean: Mean of each channel of the images in [0, 1] that the network was trained with; default: ImageNet's.
        std: Standard deviation of each.

    Raises:
        ValueError: If ``layers`` are missing or unknown, or ``weights``, ``value_range``, ``mean`` or ``std`` make
            no sense.

    Example:
        >>> import torch, torchvision, genimg_fast as gf
        >>> vgg16 = torchvision.models.vgg16()  # weights="DEFAULT" downloads those of ImageNet
        >>> loss = gf.losses.PerceptualLoss(vgg16)
        >>> output = torch.rand(2, 3, 64, 64, requires_grad=True)
        >>> loss(output, torch.rand(2, 3, 64, 64)).backward()
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str | int] | None = None,
        *,
        weights: Sequence[float] | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        mean: Sequence[float] = _IMAGENET_MEAN,
        std: Sequence[float] = _IMAGENET_STD,
    ) -> None:
        super().__init__()
        names = self._find_layers(network, layers)
        if weights is None:
            weights = [1.0] * len(names)
        if len(weights) != len(names) or not all(weight >= 0 for weight in weights):
            raise ValueError(f"weights must be {len(names)} numbers of at least 0, one a layer, got {weights}")
        if len(value_range) != 2 or not value_range[0] < value_range[1]:
            raise ValueError(f"value_range must be two numbers, the lower first, got {value_range}")
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"std must be {len(mean)} numbers above 0, like mean, got {std}")
        features = getattr(network, "features", None)
        known = str(type(network).forward.__module__).startswith("torchvision.")  # which begins with the features
        if known and isinstance(features, nn.Sequential) and all(name.startswith("features.") for name in names):
            network, names = features, [name.removeprefix("features.") for name in names]
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.layers, self.weights, self.value_range = names, list(weights), value_range
        self._is_chain = type(self.network).forward is nn.Sequential.forward and not any("." in n for n in names)
        if not self._is_chain:
            for name in dict.fromkeys(names):
                self.network.get_submodule(name).register_forward_hook(_Keep(name))
        # What a loss is made of is in no checkpoint of a model that has it.
        self.register_buffer("_mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self._mean: Tensor
        self._std: Tensor

    def _find_layers(self, network: nn.Module, layers: Sequence[str | int] | None) -> list[str]:
        if not isinstance(network, nn.Module):
            raise ValueError(
                f"network must be a torch.nn.Module, such as torchvision.models.vgg16(weights='DEFAULT'), got "
                f"{type(network).__name__}"
            )
        names = [name for name, _ in network.named_modules() if name]
        if layers is None:
            last = _last_of_blocks(network)
            if not last:
                raise ValueError(
                    f"layers must be given for {type(network).__name__}: names of network.named_modules(), "
                    f"such as {', '.join(names[:3])}"
                )
            return self._choose(last)
        if isinstance(layers, (str, Mapping)) or len(layers) == 0:
            raise ValueError(f"layers must be a list of names, got {layers!r}")
        wanted = [str(name) for name in layers]
        # Numbers that people know are of a VGG's features.
        wanted = [f"features.{n}" if n not in names and f"features.{n}" in names else n for n in wanted]
        if unknown := [name for name in wanted if name not in names]:
            shown = ", ".join(names[:30]) + (" ..." if len(names) > 30 else "")
            raise ValueError(
                f"layers must be names of the network's modules, got {unknown[0]!r}; they are: {shown}"
            )
        return wanted

    def _choose(self, last: list[str]) -> list[str]:
        """Choose layers among the last ones of blocks, if the user does not."""
        return last

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stay in evaluation mode: the network's statistics are part of the loss."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Compute what each layer makes of images.

        Args:
            images: Images in ``value_range``, of shape (batch, channels, height, width); those of one channel get
                as many as the network takes.

        Returns:
            The features of each layer, in float32 at least.

        Raises:
            ValueError: If these are no images, or too small for the network, or a layer does not run.
        """
        lowest, highest = self.value_range
        check_floating(images, "images", f" from {lowest:g} to {highest:g}")
        check_layout(images)
        if images.shape[1] not in (1, len(self._mean)):
            raise ValueError(f"images must have 1 or {len(self._mean)} channels, got {images.shape[1]}")
        if images.device != self._mean.device:
            raise ValueError(f"images must be where the loss is, on {self._mean.device}, got {images.device}")
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        normalised = ((images - lowest) / (highest - lowest) - self._mean.to(images)) / self._std.to(images)
        weights = (p for p in self.network.parameters() if p.is_floating_point())
        normalised = normalised.to(next(weights, normalised).dtype)
        found = self._through_chain(normalised) if self._is_chain else self._through_hooks(normalised)
        for name in self.layers:
            if not isinstance(found[name], Tensor) or found[name].ndim != 4:
                raise ValueError(
                    f"layers must make tensors of shape (batch, channels, height, width), {name} does not"
                )
        # Sums over many pixels would not fit into 16 bits.
        return [found[name].to(torch.promote_types(found[name].dtype, torch.float32)) for name in self.layers]

    def _through_chain(self, images: Tensor) -> dict[str, Tensor]:
        found, wanted = {}, set(self.layers)
        for name, module in self.network._modules.items():
            images = module(images)  # type: ignore[misc]
            if name in wanted:
                found[name] = images.clone()  # the next layer may write over it
                if len(found) == len(wanted):
                    break
        return found

    @torch.compiler.disable
    def _through_hooks(self, images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        _call.found, _call.number = found, len(set(self.layers))
        try:
            self.network(images)
        except _Left:
            return found
        finally:
            _call.found = None
        missing = ", ".join(name for name in self.layers if name not in found)
        raise ValueError(f"layers must be run by the network, {missing} was not")

    def describe(self, images: Tensor) -> list[Tensor]:
        """Compute what is compared; to give as the target of many comparisons, without gradients.

        Args:
            images: Images, as :meth:`features` takes them.

        Returns:
            A tensor for each layer.
        """
        return self.features(images)

    def forward(self, output: Tensor, target: Tensor | Sequence[Tensor]) -> Tensor:
        """Compute the loss.

        Args:
            output: Images in ``value_range``, of shape (batch, channels, height, width).
            target: Images to compare with, or what :meth:`describe` made of them; one for all, or one for each.

        Returns:
            A scalar, the mean over the batch.

        Raises:
            ValueError: If these are no images, or do not fit.
        """
        wanted = self.describe(target) if isinstance(target, Tensor) else list(target)
        total = output.new_zeros(())
        for weight, ours, theirs in zip(self.weights, self.describe(output), wanted, strict=True):
            if ours.shape[1:] != theirs.shape[1:] or len(theirs) not in (1, len(ours)):
                raise ValueError(
                    "target must have the size of output, and 1 image or as many: their features are "
                    f"{tuple(theirs.shape)} and {tuple(ours.shape)}"
                )
            total = total + weight * self._distance(ours, theirs)
        return total

    def _distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return (ours - theirs).square().mean()


class ContentLoss(PerceptualLoss):
    """Distance of images in one layer's features: what is where, without the texture.

    The content loss of Gatys et al. 2016, https://doi.org/10.1109/CVPR.2016.265, as a mean. Arguments, errors and
    methods are those of :class:`PerceptualLoss`; the layer is by default the one before the third max pooling, of
    VGG the last of block 3, or the last of fewer blocks.

    Example:
        >>> import torch, torchvision, genimg_fast as gf
        >>> loss = gf.losses.ContentLoss(torchvision.models.vgg16())
        >>> wanted = loss.describe(torch.rand(1, 3, 64, 64))  # once, for many steps
        >>> loss(torch.rand(1, 3, 64, 64, requires_grad=True), wanted).backward()
    """

    def _choose(self, last: list[str]) -> list[str]:
        return last[:3][-1:]


class StyleLoss(PerceptualLoss):
    """Distance of images in the Gram matrices of a network's features: which texture, wherever it is.

    The style loss of Gatys et al. 2016, https://doi.org/10.1109/CVPR.2016.265, normalised as in Johnson et al.
    2016, https://arxiv.org/abs/1603.08155: the sum over layers of the squared Frobenius norms of the differences,
    so that images of different sizes compare. Arguments, errors and methods are those of :class:`PerceptualLoss`.

    Example:
        >>> import torch, torchvision, genimg_fast as gf
        >>> loss = gf.losses.StyleLoss(torchvision.models.vgg16())
        >>> loss(torch.rand(2, 3, 64, 64, requires_grad=True), torch.rand(1, 3, 96, 80)).backward()
    """

    def describe(self, images: Tensor) -> list[Tensor]:
        """Compute the Gram matrix of each layer, as :meth:`PerceptualLoss.describe`."""
        return [gram_matrix(features) for features in self.features(images)]

    def _distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return (ours - theirs).square().sum((1, 2)).mean()


def weigh_alike(
    style: StyleLoss, grams: Sequence[Tensor], content: ContentLoss, variances: Sequence[float]
) -> None:
    """Weight the layers of two losses by what they are compared with, so that layers and networks count alike.

    Args:
        style: The one loss.
        grams: What :meth:`StyleLoss.describe` made.
        content: The other.
        variances: Of what :meth:`ContentLoss.describe` made.
    """
    style.weights = [1 / (len(grams) * float(gram.square().sum()) + 1e-12) for gram in grams]
    content.weights = [1 / (variance + 1e-12) for variance in variances]


def gram_matrix(features: Tensor) -> Tensor:
    """Compute the mean products of channels: F F^T / (channels * height * width).

    Args:
        features: Of shape (batch, channels, height, width).

    Returns:
        Symmetric matrices, (batch, channels, channels).

    Raises:
        ValueError: If the features have another shape.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.losses.gram_matrix(torch.ones(1, 2, 4, 4))
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """
    if features.ndim != 4:
        raise ValueError(
            f"features must be of shape (batch, channels, height, width), got {tuple(features.shape)}"
        )
    flat = features.flatten(2)
    with torch.autocast(flat.device.type, enabled=False):
        return flat @ flat.mT / max(1, flat.shape[1] * flat.shape[2])


class TotalVariationLoss(nn.Module):
    """Sum of absolute differences of neighbouring pixels, divided by the number of pixels and channels.

    The anisotropic total variation; Rudin et al. 1992, https://doi.org/10.1016/0167-2789(92)90242-F.

    Example:
        >>> import torch, genimg_fast as gf
        >>> step = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(1, 1, 4, 4)
        >>> gf.losses.TotalVariationLoss()(step)
        tensor(0.2500)
    """

    def forward(self, images: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            images: Of shape (batch, channels, height, width).

        Returns:
            A scalar.

        Raises:
            ValueError: If the images have another shape, or are integers.
        """
        check_floating(images, "images")
        check_layout(images)
        images = images.to(torch.promote_types(images.dtype, torch.float32))  # sums of 16 bits overflow
        return (images.diff(dim=2).abs().sum() + images.diff(dim=3).abs().sum()) / max(1, images.numel())


def load_features(
    name: Literal["vgg16", "vgg19", "squeezenet1_1"], weights: str | os.PathLike[str]
) -> nn.Sequential:
    """Make the convolutional part of a network of torchvision, with weights from a file.

    Nothing is downloaded: the file is one that torchvision downloaded, such as ``vgg19-dcbb9e9d.pth``, or that
    ``torch.save`` wrote of the ``state_dict`` of such a network or of its ``features``.

    Args:
        name: The network.
        weights: The file.

    Returns:
        The network in evaluation mode. Layers of VGG are named as usual: ``conv1_1``, ``relu1_1`` ... ``pool5``;
        those of SqueezeNet ``conv1``, ``relu1``, ``pool1``, ``fire2`` ... ``fire9``.

    Raises:
        ValueError: If the name is unknown, or the file holds something else.
        OSError: If the file cannot be read.

    Example:
        >>> import torch, torchvision, genimg_fast as gf
        >>> torch.save(torchvision.models.squeezenet1_1().state_dict(), "squeezenet.pth")
        >>> network = gf.losses.load_features("squeezenet1_1", "squeezenet.pth")
        >>> loss = gf.losses.StyleLoss(network, ["relu1", "fire3", "fire5"])
        >>> loss(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)).shape
        torch.Size([])
    """
    if name not in (*_VGG, "squeezenet1_1"):
        raise ValueError(f"name must be one of {', '.join((*_VGG, 'squeezenet1_1'))}, got {name!r}")
    network = _squeezenet() if name == "squeezenet1_1" else _vgg(_VGG[name])
    with open(weights, "rb") as file:  # an OSError of its own
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            # Torchvision numbers the layers, of which those with weights are in the same order.
            state = {k.removeprefix("features."): v for k, v in state.items() if not k.startswith("classifier.")}
            numbers = {str(number): key for number, key in enumerate(dict(network.named_children()))}
            for key in list(state):
                number, _, rest = key.partition(".")
                if number not in numbers:
                    raise ValueError(f"it has a layer {key}")
                state[f"{numbers[number]}.{rest}"] = state.pop(key)
            network.load_state_dict(state)
        except Exception as error:  # torch.load documents none; a file of something else raises half a dozen
            raise ValueError(
                f"weights must be a file of {name} of torchvision, {weights} is not: {error}"
            ) from error
    return network.eval()


def find_features(weights: str | os.PathLike[str]) -> nn.Sequential:
    """Do what :func:`load_features` does, for whichever of its networks the file is of."""
    for name in (*_VGG, "squeezenet1_1"):
        try:
            return load_features(name, weights)  # type: ignore[arg-type]
        except OSError as error:
            raise ValueError(f"network must be a file that can be read: {error}") from error
        except ValueError:
            continue
    raise ValueError(f"network must be a file of {', '.join(_VGG)} or squeezenet1_1 of torchvision, got {weights}")


def _vgg(blocks: list[list[int]]) -> nn.Sequential:
    network, before = nn.Sequential(), 3
    for b, widths in enumerate(blocks, 1):
        for n, width in enumerate(widths, 1):
            network.add_module(f"conv{b}_{n}", nn.Conv2d(before, width, 3, padding=1))
            network.add_module(f"relu{b}_{n}", nn.ReLU())
            before = width
        network.add_module(f"pool{b}", nn.MaxPool2d(2))
    return network


def _squeezenet() -> nn.Sequential:
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, 64, 3, stride=2))
    network.add_module("relu1", nn.ReLU())
    number = 2
    for block, fires in enumerate(_FIRES, 1):
        network.add_module(f"pool{block}", nn.MaxPool2d(3, 2, ceil_mode=True))
        for widths in fires:
            network.add_module(f"fire{number}", _Fire(*widths))
            number += 1
    return network


class _Fire(nn.Module):
    """Iandola et al. 2016, https://arxiv.org/abs/1602.07360."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        squeezed = relu(self.squeeze(images))
        return torch.cat([relu(self.expand1x1(squeezed)), relu(self.expand3x3(squeezed))], 1)


def _last_of_blocks(network: nn.Module) -> list[str]:
    """Names of the modules before the first four max poolings; of a chain that is cut, all and the last one."""
    features = getattr(network, "features", network)
    if not isinstance(features, nn.Sequential) or not len(features):
        return []
    prefix = "" if features is network else "features."
    children = list(features.named_children())
    before = [
        prefix + name for (name, _), (_, after) in itertools.pairwise(children) if isinstance(after, nn.MaxPool2d)
    ]
    name, last = children[-1]
    return [*before, prefix + name] if isinstance(last, (nn.Conv2d, nn.ReLU)) else before[:4]
