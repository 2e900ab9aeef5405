"""One training step of a CycleGAN."""

from typing import Any

import torch
from torch import Tensor

from genimg_fast.losses import GANLoss
from genimg_fast.losses.gan import GANLossName
from genimg_fast.options import Decay, NonNegativeFloat, NonNegativeInt, PositiveFloat
from genimg_fast.training.gan import frozen
from genimg_fast.training.pictures import Picture
from genimg_fast.training.processes import gather_rows, rank, world_size
from genimg_fast.training.trainer import BaseTrainer, Recipe


class CycleGANTrainer(BaseTrainer):
    """Trains a CycleGAN: adversarial losses, and the mean absolute error of images that went there and back.

    Zhu et al. 2017, https://arxiv.org/abs/1703.10593. Two images come as one, A | B side by side, and do not
    belong together (:class:`genimg_fast.data.UnpairedImages`). The discriminators see, half of the time, a
    translation of earlier steps (Shrivastava et al. 2017, https://arxiv.org/abs/1612.07828).

    Args:
        model: A :class:`genimg_fast.models.CycleGAN`, on the device to train on.
        cycle: Weight of the mean absolute error of images that are translated, and back.
        identity: Weight of the mean absolute error of translating what is of the target's kind already, which
            keeps colours.
        buffer_size: Number of earlier translations of either kind that are kept; 0: none.
        loss: Adversarial loss. One of ``genimg_fast.losses.GAN_LOSSES``.
        lr: Learning rate of Adam.
        betas: Decay rates of Adam.
        recipe: How to train; ``Recipe()`` by default.
        seed: Decides which earlier translations come back.

    Raises:
        ValueError: If a value is out of range or unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> trainer = gf.training.CycleGANTrainer(gf.models.CycleGAN(1, channels=4, image_size=16))
        >>> values = trainer.step(torch.rand(2, 1, 16, 32) * 2 - 1)
        >>> sorted(values)
        ['cycle', 'identity', 'loss_d', 'loss_g']
    """

    curves = (("loss_d", "loss_g"), ("cycle", "identity"))

    def __init__(
        self,
        model: Any,
        *,
        cycle: NonNegativeFloat = 10.0,
        identity: NonNegativeFloat = 5.0,
        buffer_size: NonNegativeInt = 50,
        loss: GANLossName = "least_squares",
        lr: PositiveFloat = 2e-4,
        betas: tuple[Decay, Decay] = (0.5, 0.999),
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, recipe=recipe, seed=seed)
        for name, value in (("cycle", cycle), ("identity", identity), ("buffer_size", buffer_size)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.cycle, self.identity, self.loss = cycle, identity, GANLoss(loss)
        self._a2b, self._b2a = self.prepared(model.a2b), self.prepared(model.b2a)
        self._judge_a, self._judge_b = self.prepared(model.judge_a), self.prepared(model.judge_b)
        generators, judges = (model.a2b, model.b2a), (model.judge_a, model.judge_b)
        self.add_optimizer("g", [p for m in generators for p in m.parameters()], lr=lr, betas=betas)
        self.add_optimizer("d", [p for m in judges for p in m.parameters()], lr=lr, betas=betas)
        shape = (buffer_size, model.c_dim, model.image_size, model.image_size)
        self._kept = {kind: torch.zeros(shape, device=self.device) for kind in "ab"}

    def halves(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Cut images, (batch, channels, n, 2 n), into those of kind A and those of kind B.

        Raises:
            ValueError: If the images have another shape.
        """
        channels, n = self.model.c_dim, self.model.image_size
        if images.shape[1:] != (channels, n, 2 * n):
            raise ValueError(
                f"expected images of two kinds side by side, (batch, {channels}, {n}, {2 * n}), "
                f"got {tuple(images.shape)}"
            )
        a, b = images.chunk(2, dim=3)
        return a.contiguous(), b.contiguous()

    def step(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Take one step of both generators and one of both discriminators.

        Args:
            images: Images in [-1, 1] of both kinds, of shape (batch, channels, height, 2 * width), on the model's
                device.
            labels: Not looked at.

        Returns:
            Scalars without gradient, each the sum of both directions: adversarial losses, and mean absolute errors
            behind a cycle and, unless its weight is 0, of what is of the target's kind.
        """
        a, b = self.halves(images)
        return self.take_step(self._update, a, b, *self._draw(len(images) * world_size()))

    def _draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw what the buffers do with the first of a step's n images: slots, whether to keep, whether to swap.

        It follows from the seed and the number of the step: nothing of it has to be saved.
        """
        size = len(self._kept["a"])
        n = min(n, size)
        filled = min(size, self.steps_done * n)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.steps_done) % 2**63)
        swaps = torch.rand(n, generator=generator) < 0.5
        slots = torch.randperm(size, generator=generator)[:n]
        keeps = swaps
        if filled < size:
            slots = (filled + torch.arange(n)) % size
            keeps = filled + torch.arange(n) < size
            swaps = torch.zeros_like(keeps)
        return slots.to(self.device), keeps.to(self.device), swaps.to(self.device)

    def _update(self, a: Tensor, b: Tensor, slots: Tensor, keeps: Tensor, swaps: Tensor) -> dict[str, Tensor]:
        logged: list[list[Tensor]] = []
        fakes: list[tuple[Tensor, Tensor]] = []
        with frozen(self.model.judge_a), frozen(self.model.judge_b), self.descending("g"):
            for real_a, real_b in self.parts(a, b):
                with self.autocast():
                    fake_a, fake_b = self._b2a(real_b), self._a2b(real_a)
                    loss_g = self._fooled(self._judge_a, real_a, fake_a)
                    loss_g = loss_g + self._fooled(self._judge_b, real_b, fake_b)
                    behind = self._b2a(fake_b), self._a2b(fake_a)
                    same = (self._b2a(real_a), self._a2b(real_b)) if self.identity > 0 else (real_a, real_b)
                cycle, identity = (_error(got[0], real_a) + _error(got[1], real_b) for got in (behind, same))
                self.backward(loss_g + self.cycle * cycle + self.identity * identity)
                fakes.append((fake_a.detach().float(), fake_b.detach().float()))
                logged.append([loss_g.detach(), cycle.detach(), identity.detach()])
        shown = [
            self._through_buffer(kind, torch.cat(parts), slots, keeps, swaps)
            for kind, parts in zip("ab", zip(*fakes, strict=True), strict=True)
        ]
        losses = []
        with self.descending("d"):
            for real_a, real_b, fake_a, fake_b in self.parts(a, b, *shown):
                with self.autocast():
                    loss_d = self._told_apart(self._judge_a, real_a, fake_a)
                    loss_d = loss_d + self._told_apart(self._judge_b, real_b, fake_b)
                self.backward(loss_d)
                losses.append(loss_d.detach())
        means = torch.stack([torch.stack(values) for values in logged]).mean(0).unbind()
        values = {
            "loss_d": torch.stack(losses).mean(),
            **dict(zip(("loss_g", "cycle", "identity"), means, strict=True)),
        }
        if self.identity == 0:
            del values["identity"]
        return values

    def _fooled(self, judge: Any, real: Tensor, fake: Tensor) -> Tensor:
        with torch.no_grad():
            beside = judge(real) if self.loss.paired else None
        return self.loss.generator(judge(fake), beside)

    def _told_apart(self, judge: Any, real: Tensor, fake: Tensor) -> Tensor:
        if self.loss.paired:
            return 0.5 * self.loss.discriminator(judge(real), judge(fake))
        return 0.5 * (self.loss.real(judge(real)) + self.loss.fake(judge(fake)))

    def _through_buffer(self, kind: str, fake: Tensor, slots: Tensor, keeps: Tensor, swaps: Tensor) -> Tensor:
        """Swap some of a step's translations for earlier ones; the buffer is the same in every process."""
        kept, n = self._kept[kind], len(slots)
        together = gather_rows(fake)
        new, old = together[:n], kept[slots]
        kept[slots] = torch.where(keeps.view(-1, 1, 1, 1), new, old)
        together = torch.cat([torch.where(swaps.view(-1, 1, 1, 1), old, new), together[n:]])
        return together[rank() :: world_size()]

    def evaluate(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the errors on held-out images, with averaged weights in evaluation mode.

        Args:
            images: Images in [-1, 1] of both kinds, of shape (batch, channels, height, 2 * width), on the model's
                device.
            labels: Not looked at.
            generator: Not used: nothing is drawn.

        Returns:
            The mean absolute errors that a step returns. They say whether the way back is found, not whether
            translations look like the other kind.
        """
        a, b = self.halves(images)
        with self.evaluation() as model, self.autocast():
            behind = model.b2a(model.a2b(a)), model.a2b(model.b2a(b))
            same = model.b2a(a), model.a2b(b)
        cycle, identity = (_error(got[0], a) + _error(got[1], b) for got in (behind, same))
        return {"cycle": cycle, "identity": identity}

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Picture]:
        """Make pictures to look at: ``translations``, of both kinds, there (``a2b``) and back (``a2b2a``).

        Args:
            images: Images in [-1, 1] of both kinds, of shape (n, channels, height, 2 * width).
            labels: Not looked at.
        """
        panels: dict[str, Tensor] = {}
        for kind, images_of_kind, there, back in zip(
            "ab", self.halves(images), ("a2b", "b2a"), ("b2a", "a2b"), strict=True
        ):
            translated = self.sampler.translate(images_of_kind, direction=there)
            panels |= {
                kind: images_of_kind,
                there: translated,
                there + back[1:]: self.sampler.translate(translated, direction=back),
            }
        return {"translations": Picture(images=panels)}

    def state_dict(self) -> dict[str, Any]:
        """Get all that the training has changed, the earlier translations included."""
        return {**super().state_dict(), "buffer": {kind: kept.clone() for kind, kept in self._kept.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned.

        Args:
            state: The state, of a trainer with the same settings.

        Raises:
            ValueError: If the buffers are damaged, and as :meth:`BaseTrainer.load_state_dict` says.
        """
        for kind, kept in self._kept.items():
            if state["buffer"][kind].shape != kept.shape:
                raise ValueError(f"the buffer of earlier translations has {len(state['buffer'][kind])} images")
        super().load_state_dict(state)
        for kind, kept in self._kept.items():
            kept.copy_(state["buffer"][kind])


def _error(output: Tensor, target: Tensor) -> Tensor:
    return (output.float() - target).abs().mean()
