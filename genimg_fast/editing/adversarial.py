"""Adversarial samples: images that look the same to people, and are of another class to a classifier.

All search the ball of radius epsilon around an image, within [0, 1], for a large loss of the label, or for a small
one of the class that is wanted. With g the gradient, sign(g) for L-infinity or g / |g| for L2:

* FGSM (Goodfellow et al. 2015): one step of epsilon.
* PGD (Madry et al. 2018): from a random point of the ball, steps, each followed by projection to the ball.
* MI-FGSM (Dong et al. 2018): steps of epsilon / steps along the sum of all gradients, each of mean 1.
* APGD (Croce, Hein 2020): steps with momentum, x + 0.75 (step's point - x) + 0.25 (x - last x). The step size is
  2 epsilon at first. At checkpoints, each sooner after the last, it is halved if less than three quarters of the
  steps have raised the loss, or if since the last checkpoint neither it nor the best loss has changed; then the
  search goes on from the best point, which is also what is returned.

With z the logits, in descending order z(1), z(2) ..., the difference of logits ratio (Croce, Hein 2020, section 4)
of a class y is (the largest other - z_y) / (z(1) - z(3)); of a wanted class, (z_t - the largest other) / (z(1) -
(z(3) + z(4)) / 2). There, the paper has the true class for the largest other one; it is content with any class but
the true one, and rarely reaches the wanted one where a third comes between.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast import nn
from genimg_fast._images import check_floating, check_has_numbers
from genimg_fast.editing.pictures import check_choices, check_left_out
from genimg_fast.options import NonNegativeFloat, PositiveFloat, PositiveInt

_Loss = Callable[[Tensor], Tensor]  # from logits to a number for each image, the larger the better


class Normalised(nn.Module):
    """A classifier of normalised images as one of images in [0, 1].

    Args:
        model: The classifier.
        mean: Mean of each channel, which is subtracted; by default ImageNet's.
        std: Standard deviation of each channel, by which the rest is divided.

    Example:
        >>> import torch, genimg_fast as gf
        >>> net = gf.editing.Normalised(torch.nn.Flatten(), mean=[0.5], std=[0.25])
        >>> net(torch.tensor([[[[0.0, 1.0]]]]))
        tensor([[-2.,  2.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Classify images in [0, 1]."""
        return self.model((images - self.mean) / self.std)


def attack(
    model: torch.nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    method: Literal["fgsm", "pgd", "mi-fgsm", "apgd"] = "pgd",
    norm: Literal["linf", "l2"] = "linf",
    epsilon: NonNegativeFloat | None = None,
    targeted: bool = False,
    loss: Literal["cross-entropy", "dlr"] = "cross-entropy",
    steps: PositiveInt | None = None,
    step_size: PositiveFloat | None = None,
    restarts: PositiveInt | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Make adversarial samples.

    The model is run in evaluation mode; its modes, parameters and gradients are afterwards as they were. It gets
    images in the dtype of its parameters; the search is in float32 at least.

    Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572; Madry et al. 2018, https://arxiv.org/abs/1706.06083;
    Dong et al. 2018, https://arxiv.org/abs/1710.06081; Croce and Hein 2020, https://arxiv.org/abs/2003.01690,
    sections 3 and 4.

    Args:
        model: A classifier that makes logits, of shape (batch, classes), of images in [0, 1]; see
            :class:`Normalised`.
        images: Images in [0, 1], the batch first, on the model's device.
        labels: Classes, of shape (batch,), to lead away from, or with ``targeted`` to. By default they are the
            model's own predictions.
        method: How to search. ``"apgd"`` is the strongest, ``"fgsm"`` a single step, and ``"mi-fgsm"`` is made to
            fool other models, too.
        norm: What the distance from an image is: the largest change of a number, or the root of their
            squares' sum.
        epsilon: The largest distance; by default 8 / 255 of a number, or 0.5 with ``norm="l2"``.
        targeted: Whether the labels are the classes to reach. Images that are of theirs already get more so.
        loss: What to raise, or with ``targeted`` to reduce. ``"dlr"``, the difference of logits ratio, has a
            gradient also where the model is so sure that the cross-entropy has none.
        steps: Gradients to take; by default 20. FGSM takes one.
        step_size: For PGD: length of a step; by default 2.5 epsilon / steps.
        restarts: For PGD and APGD: how often to search, each time from another point, by default once; the best
            counts.
        generator: Random numbers, of the CPU; by default torch's global ones.

    Returns:
        Images that are within the distance and in [0, 1]; with ``epsilon=0``, the same images.

    Raises:
        ValueError: If images are outside [0, 1], no distance within [0, 1] is as large as epsilon, the labels are
            none of the model's classes, the loss needs more classes, or the method has no use for an argument.

    Warns:
        UserWarning: If the gradient is zero, or batch norm was in training mode.

    Example:
        >>> import torch, genimg_fast as gf
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False)).requires_grad_(False)
        >>> _ = net[1].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]]))
        >>> image = torch.full((1, 1, 2, 2), 0.5)
        >>> gf.editing.attack(net, image, torch.tensor([0]), method="fgsm", epsilon=0.25).flatten()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    if epsilon is None:
        epsilon = 0.5 if norm == "l2" else 8 / 255
    _check(images, epsilon, norm, method, loss)
    if method == "fgsm":
        check_left_out("fgsm takes one step, from the image", steps=steps, step_size=step_size, restarts=restarts)
    elif method == "mi-fgsm":
        check_left_out(
            "mi-fgsm takes steps of epsilon / steps, from the image", step_size=step_size, restarts=restarts
        )
    elif method == "apgd":
        check_left_out("apgd finds it out", step_size=step_size)
    steps, restarts = 20 if steps is None else steps, 1 if restarts is None else restarts
    for name, number in (("steps", steps), ("restarts", restarts)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be above 0, got {step_size:g}")
    if targeted and labels is None:
        raise ValueError("labels must be the classes to reach if targeted")
    weights = next((p for p in model.parameters() if p.is_floating_point()), images)

    def classify(points: Tensor) -> Tensor:
        logits = model(points.to(weights.dtype))
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(points):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model must return logits of shape (batch, classes), got {got}")
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    with _evaluating(model), torch.inference_mode(False), torch.enable_grad():
        given = images.detach().clone()  # outside of inference mode it can be learned from
        with torch.no_grad():
            logits = classify(given)
        labels = logits.argmax(1) if labels is None else labels.to(logits.device).clone()
        _check_labels(labels, logits, loss, targeted)
        if epsilon == 0 or not given.numel():
            return given
        ball = _Ball(given.to(torch.promote_types(given.dtype, torch.float32)), epsilon, norm)
        gain = _gain(labels, loss, targeted)
        best, best_gain = ball.images, torch.full_like(logits[:, 0], -math.inf)
        fooled = torch.zeros_like(labels, dtype=torch.bool)
        for restart in range(restarts):
            found = _search(classify, ball, gain, method, steps, step_size, generator, warn=restart == 0)
            with torch.no_grad():
                logits = classify(found)
            reached = logits.argmax(1) == labels
            fools = reached if targeted else ~reached
            value = gain(logits).nan_to_num(-math.inf)
            better = (fools & ~fooled) | ((fools == fooled) & (value > best_gain))
            best = torch.where(_like(better, best), found, best)
            best_gain, fooled = torch.where(better, value, best_gain), fooled | fools
    rounded = best.to(given.dtype)
    outward = (rounded.to(best) - given).abs() > (best - given).abs()  # to 16 bits: it must not leave the ball
    return torch.where(outward, torch.nextafter(rounded, given), rounded)


def _check(images: Tensor, epsilon: float, norm: str, method: str, loss: str) -> None:
    check_choices(
        norm=(norm, ("linf", "l2")),
        method=(method, ("fgsm", "pgd", "mi-fgsm", "apgd")),
        loss=(loss, ("cross-entropy", "dlr")),
    )
    check_floating(images, "images", " in [0, 1]")
    check_has_numbers(images, "images")
    if images.dim() < 2:
        raise ValueError(f"images must be a batch, got {images.dim()}-d")
    if images.numel():
        lowest, highest = (float(limit) for limit in images.detach().aminmax())
        if not (lowest >= 0 and highest <= 1):
            raise ValueError(
                f"images must be in [0, 1], got {lowest:g} to {highest:g}; Normalised has the model normalise them"
            )
    largest = 1.0 if norm == "linf" else math.sqrt(math.prod(images.shape[1:]))
    if not 0 <= epsilon <= largest:
        raise ValueError(f"epsilon must be from 0 to {largest:g}, got {epsilon:g}")


def _check_labels(labels: Tensor, logits: Tensor, loss: str, targeted: bool) -> None:
    classes = logits.shape[1]
    if labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 of shape ({len(logits)},), got {labels.dtype} of {tuple(labels.shape)}"
        )
    if labels.numel():
        lowest, highest = (int(limit) for limit in labels.aminmax())
        if not 0 <= lowest <= highest < classes:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"labels must be from 0 to {classes - 1}, the model's classes, got {wrong}")
    needed = 4 if targeted else 3
    if loss == "dlr" and classes < needed:
        raise ValueError(f"loss must be cross-entropy: dlr needs {needed} classes, and the model has {classes}")


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    # Not model.eval(), which exported programs refuse.
    training = [module for module in model.modules() if module.training]
    if any(isinstance(module, torch.nn.modules.batchnorm._NormBase) for module in training):
        warnings.warn(
            "batch norm was in training mode; the attack is on the model in evaluation mode",
            UserWarning,
            stacklevel=4,
        )
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Ball:
    """The points within epsilon of the images, and within [0, 1]."""

    def __init__(self, images: Tensor, epsilon: float, norm: str) -> None:
        self.images, self.epsilon, self.norm = images, epsilon, norm

    def direction(self, gradient: Tensor) -> Tensor:
        if self.norm == "linf":
            return gradient.sign()
        largest = gradient.abs().flatten(1).amax(1)
        gradient = gradient / _like(torch.where(largest > 0, largest, 1), gradient)  # squares would underflow
        length = gradient.flatten(1).norm(dim=1)
        return gradient / _like(torch.where(length > 0, length, 1), gradient)

    def project(self, points: Tensor) -> Tensor:
        change = points - self.images
        if self.norm == "linf":
            change = change.clamp(-self.epsilon, self.epsilon)
        else:
            length = change.flatten(1).norm(dim=1)
            change = change * _like((self.epsilon / length.clamp_min(1e-30)).clamp_max(1), change)
        return (self.images + change).clamp(0, 1)

    def random(self, generator: torch.Generator | None) -> Tensor:
        shape = self.images.shape
        if self.norm == "linf":
            change = 2 * torch.rand(shape, generator=generator) - 1
        else:  # of any distance; what is uniform in a ball of many dimensions is nearly all on its surface
            change = torch.randn(shape, generator=generator)
            radius = torch.rand(shape[:1], generator=generator)
            change = change * _like(radius / change.flatten(1).norm(dim=1), change)
        return self.project(self.images + self.epsilon * change.to(self.images))


def _like(values: Tensor, images: Tensor) -> Tensor:
    return values.view(-1, *[1] * (images.dim() - 1))


def _gain(labels: Tensor, loss: str, targeted: bool) -> _Loss:
    def cross_entropy(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    def dlr(logits: Tensor) -> Tensor:
        ordered, order = logits.sort(1, descending=True)
        own = logits.gather(1, labels[:, None])[:, 0]
        other = torch.where(order[:, 0] == labels, ordered[:, 1], ordered[:, 0])
        lower = (ordered[:, 2] + ordered[:, 3]) / 2 if targeted else ordered[:, 2]
        return (other - own) / (ordered[:, 0] - lower + 1e-12)

    raised = cross_entropy if loss == "cross-entropy" else dlr
    return (lambda logits: -raised(logits)) if targeted else raised


def _search(
    classify: Callable[[Tensor], Tensor],
    ball: _Ball,
    gain: _Loss,
    method: str,
    steps: int,
    step_size: float | None,
    generator: torch.Generator | None,
    *,
    warn: bool,
) -> Tensor:
    def ascend(points: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal warn
        points = points.detach().requires_grad_()
        value = gain(classify(points))
        (gradient,) = torch.autograd.grad(value.sum(), points)
        zero = int((gradient.flatten(1) == 0).all(1).sum())
        if warn and zero:
            warnings.warn(
                f"the gradient is zero for {zero} of {len(points)} images: there the attack is blind, which does "
                "not make the model safe (gradient masking); loss='dlr' may see more",
                UserWarning,
                stacklevel=5 if method == "apgd" else 4,
            )
        warn = False
        return gradient, value.detach()

    epsilon, points = ball.epsilon, ball.images
    if method == "apgd":
        return _apgd(ball, ascend, ball.random(generator), steps)
    if method == "fgsm":
        return ball.project(points + epsilon * ball.direction(ascend(points)[0]))
    if method == "pgd":
        points, size = ball.random(generator), step_size or 2.5 * epsilon / steps
    else:
        size, summed = epsilon / steps, torch.zeros_like(points)
    for _ in range(steps):
        gradient, _ = ascend(points)
        if method == "mi-fgsm":
            mean = gradient.abs().flatten(1).mean(1)
            gradient = summed = summed + gradient / _like(torch.where(mean > 0, mean, 1), gradient)
        points = ball.project(points + size * ball.direction(gradient))
    return points


def _apgd(ball: _Ball, ascend: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, steps: int) -> Tensor:
    checkpoints = _checkpoints(steps)
    size = torch.full((len(start),), 2 * ball.epsilon, dtype=start.dtype, device=start.device)
    before = points = best = start
    gradient, value = ascend(points)
    best_gradient, best_value = gradient, value
    rises = torch.zeros_like(size)
    last_checkpoint, halved, value_then = 0, torch.zeros_like(size, dtype=torch.bool), value
    for step in range(1, steps):
        towards = ball.project(points + _like(size, points) * ball.direction(gradient))
        if step > 1:
            towards = ball.project(points + 0.75 * (towards - points) + 0.25 * (points - before))
        before, points = points, towards
        last_value = value
        gradient, value = ascend(points)
        rises += value > last_value
        better = value > best_value
        best = torch.where(_like(better, best), points, best)
        best_gradient = torch.where(_like(better, best), gradient, best_gradient)
        best_value = torch.where(better, value, best_value)
        if step in checkpoints:
            few = rises < 0.75 * (step - last_checkpoint)
            stuck = ~halved & (best_value <= value_then)
            halved = few | stuck
            value_then, last_checkpoint = best_value, step
            size = torch.where(halved, size / 2, size)
            points = torch.where(_like(halved, best), best, points)
            gradient = torch.where(_like(halved, best), best_gradient, gradient)
            rises = torch.zeros_like(rises)
    return best


def _checkpoints(steps: int) -> set[int]:
    """Find after which steps to look at the step size; shares of all steps, as in the paper's section 3.3."""
    last, share, found = 0.0, 0.22, set()
    while share <= 1:
        found.add(math.ceil(share * steps))
        last, share = share, share + max(share - last - 0.03, 0.06)
    return found
