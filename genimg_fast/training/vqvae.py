"""One training step of a VQ-VAE."""

from typing import Any

import torch
from torch import Tensor

from genimg_fast.models.vqvae import Tally
from genimg_fast.options import Decay, NonNegativeFloat, PositiveFloat, Share
from genimg_fast.training.one_loss import OneLossTrainer
from genimg_fast.training.pictures import Picture
from genimg_fast.training.processes import rank, sum_over_processes, world_size
from genimg_fast.training.trainer import Recipe


class VQVAETrainer(OneLossTrainer):
    """Trains a VQ-VAE: Adam goes down the mean squared error and the commitment, and the codebook follows.

    van den Oord et al. 2017, https://arxiv.org/abs/1711.00937; the codes are moving averages, as in its appendix
    A.1, and those that hardly any vector chooses are put where a vector of the batch is, drawn at random, as in
    Dhariwal et al. 2020, https://arxiv.org/abs/2005.00341. The codebook takes one step for a batch, whatever the
    number of parts and of processes, which all have the same codes. Where a sum of the encoder's vectors is NaN or
    infinite, the codebook stays as it is.

    Args:
        model: A :class:`genimg_fast.models.VQVAE`, on the device to train on.
        commitment: Weight of the mean squared difference of the encoder's vectors from their codes.
        restart: A code that is chosen less often than this share of the mean of all is put elsewhere; 0: none is.
        lr: Learning rate of Adam.
        betas: Decay rates of Adam.
        recipe: How to train; ``Recipe()`` by default.
        seed: Seed of the vectors that codes are put at.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.VQVAE(c_dim=1, image_size=16, channels=8, num_codes=16, code_dim=4)
        >>> trainer = gf.training.VQVAETrainer(model)
        >>> sorted(trainer.step(torch.rand(4, 1, 16, 16) * 2 - 1))
        ['codes_used', 'commitment', 'loss', 'perplexity', 'reconstruction']
    """

    curves = (("loss", "reconstruction", "commitment"), ("perplexity", "codes_used"))

    def __init__(
        self,
        model: Any,
        *,
        commitment: NonNegativeFloat = 0.25,
        restart: Share = 0.1,
        lr: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, model.parameters(), lr=lr, betas=betas, recipe=recipe, seed=seed)
        if not commitment >= 0:
            raise ValueError(f"commitment must be at least 0, got {commitment}")
        if not 0 <= restart < 1:
            raise ValueError(f"restart must lie in [0, 1), got {restart}")
        self.commitment, self.restart = commitment, restart

    def step(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Take one step.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Not looked at.

        Returns:
            Scalars without gradient: the loss and its two terms, the mean squared error and the commitment, before
            its weight; and of the codes that the batch chose, in all processes, the perplexity and the number.
        """
        # Of the seed and the step alone: the same in every process, and in a run that is resumed.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.steps_done) % 2**63)
        vectors = len(images) * world_size() * self.model.grid**2
        drawn = torch.randint(max(1, vectors), (self.model.codebook.num_codes,), generator=generator)
        values = self.take_step(self._update, images, drawn.to(images.device, non_blocking=True))
        moved = values.pop("moved")
        if self.averaged is not None:
            # Halfway between two places, an averaged code would stand for nothing.
            both = zip(self.sampler.codebook.buffers(), self.model.codebook.buffers(), strict=True)
            for average, current in both:
                average.copy_(torch.where(moved.view(-1, *(1,) * (current.ndim - 1)), current, average))
        return values

    def _update(self, images: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        codebook = self.model.codebook
        found: list[tuple[Tensor, ...]] = []

        def losses(part: Tensor) -> list[Tensor]:
            with self.autocast():
                output = self._forward(part)
            error = (output.reconstruction.to(part.dtype) - part).square().mean()
            spare = self._of(drawn, output.vectors, first=len(found) * len(part))
            found.append((*codebook.tally(output.vectors, output.indices), spare))
            return [error + self.commitment * output.commitment, error, output.commitment]

        loss, error, commitment = self.descend(losses, images)
        # One message for all three.
        counts, sums, spare = (torch.stack(each).sum(0) for each in zip(*found, strict=True))
        whole = sum_over_processes(torch.cat([counts.unsqueeze(1), sums, spare], 1))
        counts, sums, spare = whole.split([1, *2 * [codebook.code_dim]], 1)
        tally = Tally(counts.squeeze(1), sums)
        moved = codebook.update(tally, spare if self.restart > 0 else None, restart=self.restart)
        return {
            "loss": loss, "reconstruction": error, "commitment": commitment, "perplexity":
            _perplexity(tally.counts), "codes_used": (tally.counts > 0).sum().to(loss), "moved": moved,
        }  # fmt: skip

    def _of(self, drawn: Tensor, vectors: Tensor, *, first: int) -> Tensor:
        """Get those vectors that have been drawn and are of this part of the batch, in this process; else zeros.

        Args:
            drawn: Numbers of vectors in the batch of all processes, (num_codes,), image by image.
            vectors: Of the part, (images, code_dim, grid, grid).
            first: Number of its first image, in this process.
        """
        flat = vectors.movedim(1, -1).flatten(0, 2)
        places = self.model.grid**2
        image, place = drawn // places, drawn % places
        # Images go to the processes in turn.
        number = (image // world_size() - first) * places + place
        ours = (image % world_size() == rank()) & (number >= 0) & (number < len(flat))
        # Not a product with zeros, since a vector may be NaN.
        chosen = flat[number.clamp(0, len(flat) - 1)]
        return torch.where(ours.unsqueeze(1), chosen, 0).to(torch.promote_types(flat.dtype, torch.float32))

    def evaluate(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the loss of held-out images, with averaged weights in evaluation mode.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Not looked at.
            generator: Not used: nothing is drawn.

        Returns:
            Scalars: the loss and its two terms, and the perplexity of the codes in this batch.
        """
        with self.evaluation() as model, self.autocast():
            output = model(images)
        error = (output.reconstruction.to(images.dtype) - images).square().mean()
        return {
            "loss": error + self.commitment * output.commitment, "reconstruction": error,
            "commitment": output.commitment,
            "perplexity": _perplexity(model.codebook.tally(output.vectors, output.indices).counts),
        }  # fmt: skip

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Picture]:
        """Make pictures to look at: ``reconstructions``, each ``input`` beside the model's ``output``."""
        return {"reconstructions": Picture(images={"input": images, "output": self.sampler.reconstruct(images)})}


def _perplexity(counts: Tensor) -> Tensor:
    """Compute the number of codes that, chosen equally often, would tell as much: e to the entropy."""
    return torch.special.entr(counts / counts.sum()).sum().exp()
