"""Adversarial losses on logits, by name, and penalties on the discriminator's gradient."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus


class _Formulas(NamedTuple):
    real: Callable[
        [Tensor, float], Tensor
    ]  # (logits of real, label smoothing) -> part of the discriminator's loss
    fake: Callable[[Tensor], Tensor]  # logits of fake -> the other part
    generator: Callable[[Tensor], Tensor]  # logits of fake -> loss
    has_labels: bool  # to smooth


class _PairFormula(NamedTuple):
    wins: Callable[[Tensor], Tensor]  # logits of those who should be above, less those of the others -> loss
    has_labels: bool = False


# With s = sigmoid: -log s(x) = softplus(-x) and -log(1 - s(x)) = softplus(x), also where s(x) rounds to 0 or 1.
# The cross entropy with label 1 - a is then (1 - a) softplus(-x) + a softplus(x) = softplus(-x) + a x.
GANLossName = Literal["non_saturating", "minimax", "least_squares", "hinge", "wasserstein", "relativistic"]
GAN_LOSSES: dict[GANLossName, _Formulas | _PairFormula] = {
    # Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661: both losses are given there.
    "non_saturating": _Formulas(
        lambda real, a: (softplus(-real) + a * real).mean(),
        lambda fake: softplus(fake).mean(),
        lambda fake: softplus(-fake).mean(),
        True,
    ),
    "minimax": _Formulas(
        lambda real, a: (softplus(-real) + a * real).mean(),
        lambda fake: softplus(fake).mean(),
        lambda fake: -softplus(fake).mean(),
        True,
    ),
    # Mao et al. 2017, https://arxiv.org/abs/1611.04076, with labels 1 for real and 0 for fake.
    "least_squares": _Formulas(
        lambda real, a: 0.5 * (real - (1 - a)).square().mean(),
        lambda fake: 0.5 * fake.square().mean(),
        lambda fake: 0.5 * (fake - 1).square().mean(),
        True,
    ),
    # Lim, Ye 2017, https://arxiv.org/abs/1705.02894.
    "hinge": _Formulas(
        lambda real, a: relu(1 - real).mean(),
        lambda fake: relu(1 + fake).mean(),
        lambda fake: -fake.mean(),
        False,
    ),
    # Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875; the critic has to be kept Lipschitz by other means.
    "wasserstein": _Formulas(
        lambda real, a: -real.mean(),
        lambda fake: fake.mean(),
        lambda fake: -fake.mean(),
        False,
    ),
    # Jolicoeur-Martineau 2018, https://arxiv.org/abs/1807.00734; with R1 and R2 it is that of R3GAN, Huang et al.
    # 2024, https://arxiv.org/abs/2501.05441.
    "relativistic": _PairFormula(lambda margin: softplus(-margin).mean()),
}


class GANLoss:
    """The two losses of an adversarial game, on logits: the discriminator must not end in a sigmoid.

    The relativistic loss compares each generated image with a real one: it has no separate parts for them.

    Args:
        name: One of ``GAN_LOSSES``: ``"non_saturating"``, ``"minimax"``, ``"least_squares"``, ``"hinge"``,
            ``"wasserstein"`` or ``"relativistic"``.
        label_smoothing: How far the label of real images lies below 1, in [0, 0.5): one-sided smoothing, Salimans
            et al. 2016, https://arxiv.org/abs/1606.03498. Hinge, Wasserstein and relativistic losses have no
            labels.

    Attributes:
        paired: Whether the loss compares images in pairs.

    Raises:
        ValueError: If the name is unknown, or the smoothing is out of range or not the loss's.

    Example:
        >>> import torch, genimg_fast as gf
        >>> loss = gf.losses.GANLoss("non_saturating")
        >>> loss.generator(torch.zeros(8)).item()  # log 2: the discriminator cannot tell
        0.6931471824645996
    """

    def __init__(self, name: GANLossName = "non_saturating", *, label_smoothing: float = 0.0) -> None:
        if name not in GAN_LOSSES:
            raise ValueError(f"unknown GAN loss {name!r}; known losses: {', '.join(GAN_LOSSES)}")
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing}")
        if label_smoothing > 0 and not GAN_LOSSES[name].has_labels:
            raise ValueError(f"label_smoothing must be 0: the {name} loss has no labels, got {label_smoothing}")
        self.name = name
        self.label_smoothing = label_smoothing
        self.paired = isinstance(self._formulas, _PairFormula)

    @property
    def _formulas(self) -> _Formulas | _PairFormula:  # no attribute: functions without a name cannot be pickled
        return GAN_LOSSES[self.name]

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Loss that the discriminator minimises.

        Args:
            real_logits: The discriminator's logits for real images: (batch,), or (batch, ...) for patches.
            fake_logits: Its logits for generated images. The batch may differ, unless the loss is a paired one;
                the rest of the shape may not.

        Returns:
            A scalar: the mean over the real logits plus the mean over the fake ones, or the mean over pairs.

        Raises:
            ValueError: If the shapes do not fit, or the logits are not floating point.
        """
        _check_logits(real_logits=real_logits, fake_logits=fake_logits)
        if real_logits.shape[1:] != fake_logits.shape[1:]:
            raise ValueError(
                "real_logits and fake_logits must have the same shape but for the batch, "
                f"got {tuple(real_logits.shape)} and {tuple(fake_logits.shape)}"
            )
        if isinstance(self._formulas, _PairFormula):
            return self._wins(real_logits, fake_logits)
        return self.real(real_logits) + self.fake(fake_logits)

    def real(self, logits: Tensor) -> Tensor:
        """The part of :meth:`discriminator` for real images, whose graph can be gone when the other part begins.

        Args:
            logits: The discriminator's logits: (batch,), or (batch, ...) for patches.

        Returns:
            A scalar: the mean over the logits.

        Raises:
            ValueError: If the logits have no batch dimension or are not floating point, or the loss is a paired
                one.
        """
        _check_logits(logits=logits)
        return self._parts().real(logits, self.label_smoothing)

    def fake(self, logits: Tensor) -> Tensor:
        """The part of :meth:`discriminator` for generated images; see :meth:`real`.

        Args:
            logits: The discriminator's logits: (batch,), or (batch, ...) for patches.

        Returns:
            A scalar: the mean over the logits.

        Raises:
            ValueError: If the logits have no batch dimension or are not floating point, or the loss is a paired
                one.
        """
        _check_logits(logits=logits)
        return self._parts().fake(logits)

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        """Loss that the generator minimises.

        Args:
            fake_logits: The discriminator's logits for generated images that still carry their gradient:
                (batch,), or (batch, ...) for patches.
            real_logits: Those for real images, of the same shape; only a paired loss looks at them.

        Returns:
            A scalar: the mean over the logits, or over pairs.

        Raises:
            ValueError: If the logits have no batch dimension or are not floating point, or a paired loss lacks the
                real ones.
        """
        _check_logits(fake_logits=fake_logits)
        if isinstance(self._formulas, _PairFormula):
            if real_logits is None:
                raise ValueError(f"the {self.name} loss of a generator needs real_logits, too")
            _check_logits(real_logits=real_logits)
            return self._wins(fake_logits, real_logits)
        return self._formulas.generator(fake_logits)

    def _wins(self, winners: Tensor, losers: Tensor) -> Tensor:
        assert isinstance(self._formulas, _PairFormula)
        if winners.shape != losers.shape:
            raise ValueError(
                f"the {self.name} loss compares real and generated images in pairs: their logits must have the "
                f"same shape, got {tuple(winners.shape)} and {tuple(losers.shape)}"
            )
        return self._formulas.wins(winners - losers)

    def _parts(self) -> _Formulas:
        if isinstance(self._formulas, _PairFormula):
            raise ValueError(f"the {self.name} loss has no parts: give discriminator() both kinds of logits")
        return self._formulas


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Penalise a critic whose gradient is not of length 1 on the way from generated to real images.

    The mean over samples of ``(|d critic / d x| - 1)**2`` at a random point x between the images of each pair:
    Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028, section 4, without its factor lambda (10 there). The
    length is of each sample's own gradient, so the critic must not mix samples: no batch norm in training mode.

    Args:
        critic: Maps images to logits, (batch, ...). A conditional one has its condition bound to it.
        real: Real images, (batch, ...).
        fake: Generated images of the same shape; no gradient passes to them.
        generator: Source of the random numbers, on the images' device; PyTorch's global one by default.

    Returns:
        A scalar, differentiable with respect to the critic's parameters.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch, genimg_fast as gf
        >>> unit = torch.nn.functional.normalize(torch.randn(12), dim=0)
        >>> real, fake = torch.randn(8, 12), torch.randn(8, 12)
        >>> penalty = gf.losses.gradient_penalty(lambda x: x @ unit, real, fake)
        >>> round(penalty.item(), 6)  # a linear critic with a gradient of length 1
        0.0
    """
    if real.shape != fake.shape or real.dim() < 2:
        raise ValueError(
            f"real and fake must have the same shape (batch, ...), got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    share = torch.rand(len(real), generator=generator, device=real.device, dtype=real.dtype)
    share = share.view(-1, *[1] * (real.dim() - 1))
    between = torch.lerp(fake.detach(), real.detach(), share).requires_grad_()
    return (_gradient(critic, between).norm(dim=1) - 1).square().mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Penalise a discriminator's gradient at real images.

    Half the mean over samples of the gradient's squared length: Mescheder et al. 2018,
    https://arxiv.org/abs/1801.04406, equation 9, without its factor gamma. At generated images it is their R2.

    Args:
        discriminator: Maps images to logits, (batch, ...). A conditional one has its condition bound to it.
        real: Real images, (batch, ...), or generated ones for R2; no gradient passes to them.

    Returns:
        A scalar, differentiable with respect to the discriminator's parameters.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.losses.r1_penalty(lambda x: x.sum(1), torch.randn(8, 12)).item()  # 12 derivatives of 1
        6.0
    """
    return 0.5 * _gradient(discriminator, real.detach().requires_grad_()).square().sum(1).mean()


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of each sample's sum of outputs, (batch, elements), in float32 or wider."""
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    # Squares of float16 gradients would overflow, or vanish.
    return gradient.flatten(1).to(torch.promote_types(gradient.dtype, torch.float32))


def _check_logits(**logits: Tensor) -> None:
    for name, value in logits.items():
        if value.ndim == 0 or not value.is_floating_point():
            raise ValueError(
                f"{name} must be floating point with a batch dimension, "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
