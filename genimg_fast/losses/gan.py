"""Adversarial losses on logits, by name."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus


class _Formulas(NamedTuple):
    discriminator: Callable[[Tensor, Tensor], Tensor]  # (logits of real, logits of fake) -> loss
    generator: Callable[[Tensor], Tensor]  # logits of fake -> loss


# With s = sigmoid: -log s(x) = softplus(-x) and -log(1 - s(x)) = softplus(x), also where s(x) rounds to 0 or 1.
GAN_LOSSES: dict[str, _Formulas] = {
    # Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661: both losses are given there.
    "non_saturating": _Formulas(
        lambda real, fake: softplus(-real).mean() + softplus(fake).mean(),
        lambda fake: softplus(-fake).mean(),
    ),
    "minimax": _Formulas(
        lambda real, fake: softplus(-real).mean() + softplus(fake).mean(),
        lambda fake: -softplus(fake).mean(),
    ),
    # Mao et al. 2017, https://arxiv.org/abs/1611.04076, with labels 1 for real and 0 for fake.
    "least_squares": _Formulas(
        lambda real, fake: 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean(),
        lambda fake: 0.5 * (fake - 1).square().mean(),
    ),
    # Lim, Ye 2017, https://arxiv.org/abs/1705.02894.
    "hinge": _Formulas(
        lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(),
        lambda fake: -fake.mean(),
    ),
    # Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875; the critic has to be kept Lipschitz by other means.
    "wasserstein": _Formulas(
        lambda real, fake: fake.mean() - real.mean(),
        lambda fake: -fake.mean(),
    ),
}


class GANLoss:
    """The two losses of an adversarial game, on logits: the discriminator must not end in a sigmoid.

    Args:
        name: One of ``GAN_LOSSES``: ``"non_saturating"``, ``"minimax"``, ``"least_squares"``, ``"hinge"`` or
            ``"wasserstein"``.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> loss = gf.losses.GANLoss("non_saturating")
        >>> loss.generator(torch.zeros(8)).item()  # log 2: the discriminator cannot tell
        0.6931471824645996
    """

    def __init__(self, name: str = "non_saturating") -> None:
        if name not in GAN_LOSSES:
            raise ValueError(f"unknown GAN loss {name!r}; known losses: {', '.join(GAN_LOSSES)}")
        self.name = name
        self._formulas = GAN_LOSSES[name]

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Loss that the discriminator minimises.

        Args:
            real_logits: The discriminator's logits for real images: (batch,), or (batch, ...) for patches.
            fake_logits: Its logits for generated images. The batch may differ, the rest of the shape may not.

        Returns:
            A scalar: the mean over the real logits plus the mean over the fake ones.

        Raises:
            ValueError: If the shapes do not fit, or the logits are not floating point.
        """
        _check_logits(real_logits=real_logits, fake_logits=fake_logits)
        if real_logits.shape[1:] != fake_logits.shape[1:]:
            raise ValueError(
                "real_logits and fake_logits must have the same shape but for the batch, "
                f"got {tuple(real_logits.shape)} and {tuple(fake_logits.shape)}"
            )
        return self._formulas.discriminator(real_logits, fake_logits)

    def generator(self, fake_logits: Tensor) -> Tensor:
        """Loss that the generator minimises.

        Args:
            fake_logits: The discriminator's logits for generated images that still carry their gradient:
                (batch,), or (batch, ...) for patches.

        Returns:
            A scalar: the mean over the logits.

        Raises:
            ValueError: If the logits have no batch dimension or are not floating point.
        """
        _check_logits(fake_logits=fake_logits)
        return self._formulas.generator(fake_logits)


def _check_logits(**logits: Tensor) -> None:
    for name, value in logits.items():
        if value.ndim == 0 or not value.is_floating_point():
            raise ValueError(
                f"{name} must be floating point with a batch dimension, "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
