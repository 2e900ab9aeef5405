"""An autoencoder whose codes are words of a learned vocabulary: van den Oord et al. 2017.

https://arxiv.org/abs/1711.00937. The encoder makes a vector for each place of a grid, and each vector is replaced
by the nearest one of a codebook: an image becomes a grid of whole numbers. Choosing the nearest has no derivative,
so the decoder's gradient goes to the encoder as if nothing had been chosen (straight through), and a second term
of the loss, the commitment, keeps the encoder's vectors near the codes that they get. The codes themselves are no
parameters: each follows the mean of the vectors that chose it, as a moving average (appendix A.1).

Codes that hardly any vector chooses would stay where they are for good. They are put where a vector of the batch
is, as in Dhariwal et al. 2020, https://arxiv.org/abs/2005.00341, section 3.1. All are at the very start, so that
the codebook begins with vectors that the encoder makes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, mse_loss

from genimg_fast import nn
from genimg_fast._evaluating import evaluating
from genimg_fast.models.common import check_images, check_sizes, group_norm_act
from genimg_fast.models.pretrained import BaseModel
from genimg_fast.models.registry import register_model
from genimg_fast.options import Decay, PositiveInt

# Distances, or marks of who chose what, that are in memory at once: 32 MiB of float32.
_MOST_PAIRS = 2**23


class Tally(NamedTuple):
    """What a codebook learns of vectors from. Tallies of the parts of a batch add up to the whole batch's.

    Attributes:
        counts: How many vectors chose each code, (num_codes,).
        sums: Their sums, (num_codes, code_dim).

    Example:
        >>> import torch, genimg_fast as gf
        >>> codebook = gf.models.Codebook(num_codes=8, code_dim=2)
        >>> vectors = torch.randn(4, 2, 5, 5)
        >>> codebook.tally(vectors, codebook(vectors)).counts.sum()
        tensor(100.)
    """

    counts: Tensor
    sums: Tensor


class Codebook(nn.Module):
    """Vectors to choose from, each of which follows the mean of those that choose it.

    ``forward`` finds the nearest codes, and changes nothing; :meth:`update` does, once for each step of a
    training.

    Args:
        num_codes: Number of codes.
        code_dim: Length of each.
        decay: Of the moving averages: the share that stays with a step.

    Attributes:
        codes: The codes, (num_codes, code_dim), a buffer; N(0, 1) before the first update.
        counts: Moving average of how many vectors of a batch choose each code, (num_codes,), a buffer.
        sums: Moving average of their sums, (num_codes, code_dim), a buffer.

    Raises:
        ValueError: If a size is below 1, or the decay not in [0, 1).

    Example:
        >>> import torch, genimg_fast as gf
        >>> codebook = gf.models.Codebook(num_codes=8, code_dim=2)
        >>> vectors = torch.randn(4, 2, 5, 5)
        >>> indices = codebook(vectors)
        >>> indices.shape, codebook.look_up(indices).shape
        (torch.Size([4, 5, 5]), torch.Size([4, 2, 5, 5]))
        >>> moved = codebook.update(codebook.tally(vectors, indices))
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, num_codes: int, code_dim: int, decay: float = 0.99) -> None:
        super().__init__()
        check_sizes(num_codes=num_codes, code_dim=code_dim)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.num_codes, self.code_dim, self.decay = num_codes, code_dim, decay
        self.register_buffer("codes", torch.randn(num_codes, code_dim))
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, code_dim))

    def extra_repr(self) -> str:
        """Describe the codebook."""
        return f"{self.num_codes}, {self.code_dim}, decay={self.decay}"

    @torch.no_grad()
    def forward(self, vectors: Tensor) -> Tensor:
        """Find the nearest code of each vector, the first one of several; in float32 or wider, autocast or not.

        Args:
            vectors: (batch, code_dim, height, width).

        Returns:
            Numbers of codes, int64 of shape (batch, height, width).
        """
        flat, codes = self._flat(vectors), self.codes.to(self._wide)
        with torch.autocast(vectors.device.type, enabled=False):
            # |v - c|² without |v|², which all codes share. From their mean, so that an offset of all costs no
            # digits.
            origin = codes.mean(0)
            codes = codes - origin
            half_norms = codes.square().sum(1) / 2
            # An exported program, for any number of images, has no number of pieces.
            pieces = [flat] if torch.compiler.is_exporting() else flat.split(max(1, _MOST_PAIRS // self.num_codes))
            nearest = [torch.addmm(half_norms, piece - origin, codes.t(), alpha=-1).argmin(1) for piece in pieces]
        return torch.cat(nearest).view(vectors.shape[0], *vectors.shape[2:])

    def look_up(self, indices: Tensor) -> Tensor:
        """Get the codes of numbers, (batch, height, width), as (batch, code_dim, height, width)."""
        return embedding(indices, self.codes).movedim(-1, 1)

    @torch.no_grad()
    def tally(self, vectors: Tensor, indices: Tensor) -> Tally:
        """Count the vectors that chose each code, and add them up, in an order that is always the same.

        Args:
            vectors: (batch, code_dim, height, width).
            indices: What ``forward`` found for them.

        Returns:
            Counts and sums, in float32 or wider.
        """
        flat, chosen = self._flat(vectors), indices.flatten()
        numbers = torch.arange(self.num_codes, device=chosen.device)
        counts, sums = flat.new_zeros(self.num_codes), flat.new_zeros(self.num_codes, self.code_dim)
        rows = max(1, _MOST_PAIRS // self.num_codes)
        with torch.autocast(vectors.device.type, enabled=False):
            # As a product with zeros and ones: on a GPU index_add_ adds up in the order in which threads arrive.
            for piece, of_piece in zip(flat.split(rows), chosen.split(rows), strict=True):
                marks = (of_piece.unsqueeze(1) == numbers).to(flat.dtype)
                counts += marks.sum(0)
                sums += marks.t() @ piece
        return Tally(counts, sums)

    @torch.no_grad()
    def update(self, tally: Tally, spare: Tensor | None = None, *, restart: float = 0.1) -> Tensor:
        """Take a step of the moving averages. Does nothing if a sum is NaN or infinite.

        Args:
            tally: Of the whole batch.
            spare: A vector for each code, (num_codes, code_dim), to put it at if it is dead; none is by default.
            restart: A code is dead if its average count is below this share of the mean of all. From there on, it
                counts as one of average use, and has the time to be chosen that the decay gives it.

        Returns:
            Which codes were put elsewhere, bool of shape (num_codes,).
        """
        counts = torch.lerp(tally.counts, self.counts.to(tally.counts.dtype), self.decay)
        sums = torch.lerp(tally.sums, self.sums.to(tally.sums.dtype), self.decay)
        # Without new vectors the mean stays: that of a count that has vanished is 0 / 0.
        means = sums / counts.clamp(min=torch.finfo(counts.dtype).tiny).unsqueeze(1)
        codes = torch.where(tally.counts.unsqueeze(1) > 0, means, self.codes.to(means.dtype))
        # Decided on the device, which nobody waits for.
        sound = tally.sums.isfinite().all() & tally.counts.isfinite().all()
        if spare is None:
            dead = torch.zeros_like(counts, dtype=torch.bool)
        else:
            average = counts.mean()
            dead = (counts < restart * average) & sound
            counts = torch.where(dead, average, counts)
            codes = torch.where(dead.unsqueeze(1), spare.to(codes.dtype), codes)
            sums = torch.where(dead.unsqueeze(1), codes * average, sums)
        for buffer, new in ((self.counts, counts), (self.sums, sums), (self.codes, codes)):
            buffer.copy_(torch.where(sound, new.to(buffer.dtype), buffer))
        return dead

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.codes.dtype, torch.float32)

    def _flat(self, vectors: Tensor) -> Tensor:
        if vectors.ndim != 4 or vectors.shape[1] != self.code_dim:
            expected = f"(batch, {self.code_dim}, height, width)"
            raise ValueError(f"vectors must be of shape {expected}, got {tuple(vectors.shape)}")
        return vectors.movedim(1, -1).reshape(-1, self.code_dim).to(self._wide)


class VQVAEOutput(NamedTuple):
    """What a VQ-VAE's ``forward`` returns.

    Attributes:
        reconstruction: Images in [-1, 1], (batch, c_dim, image_size, image_size).
        indices: Numbers of the codes, int64 of shape (batch, grid, grid).
        vectors: What the encoder made, without gradient, (batch, code_dim, grid, grid).
        commitment: Mean squared difference of the vectors from their codes, a scalar whose gradient is theirs.

    Example:
        >>> import torch, genimg_fast as gf
        >>> output = gf.models.VQVAE(c_dim=1, channels=8)(torch.zeros(2, 1, 32, 32))
        >>> output.reconstruction.shape, output.indices.shape
        (torch.Size([2, 1, 32, 32]), torch.Size([2, 8, 8]))
    """

    reconstruction: Tensor
    indices: Tensor
    vectors: Tensor
    commitment: Tensor


class _ResidualBlock(nn.Module):
    """Convolution, norm, SiLU, convolution, norm; the addition of the input and SiLU are part of the last norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = group_norm_act(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = group_norm_act(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.norm1(self.conv1(x))), residual=x)


@register_model("vqvae")
class VQVAE(BaseModel):
    """A convolutional autoencoder whose codes are numbers of vectors in a codebook.

    van den Oord et al. 2017, https://arxiv.org/abs/1711.00937: strided convolutions and two residual blocks, and
    the mirror image of that; here with group norm and SiLU. A step of training ends with an update of the
    codebook, which the optimiser does not know; :class:`genimg_fast.training.VQVAETrainer` takes care of it. There
    is no prior over the codes, so the model draws no images of its own.

    Args:
        c_dim: Colour channels of the images.
        image_size: Height and width of the images, a multiple of ``2**n_halvings``.
        channels: Feature channels of both networks.
        n_halvings: Times that the encoder halves the resolution.
        num_codes: Number of codes in the codebook.
        code_dim: Length of a code.
        decay: Of the codes' moving averages: the share that stays with a step.

    Attributes:
        grid: Codes on each side of an image's grid: ``image_size / 2**n_halvings``.
        codebook: The :class:`Codebook`.

    Raises:
        ValueError: If a size is below 1 or does not fit, or the decay is not in [0, 1).

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.VQVAE(c_dim=1, channels=16, num_codes=64, code_dim=16)
        >>> images = torch.rand(8, 1, 32, 32) * 2 - 1
        >>> model.encode(images).shape, model.decode(model.encode(images)).shape
        (torch.Size([8, 8, 8]), torch.Size([8, 1, 32, 32]))
        >>> output = model(images)
        >>> loss = (output.reconstruction - images).square().mean() + 0.25 * output.commitment
        >>> loss.backward()  # then a step of an optimiser, and one of the codebook:
        >>> moved = model.codebook.update(model.codebook.tally(output.vectors, output.indices))
    """

    def __init__(
        self,
        c_dim: int = 3,
        image_size: PositiveInt = 32,
        channels: PositiveInt = 128,
        n_halvings: PositiveInt = 2,
        *,
        num_codes: PositiveInt = 512,
        code_dim: PositiveInt = 64,
        decay: Decay = 0.99,
    ) -> None:
        super().__init__()
        check_sizes(c_dim=c_dim, image_size=image_size, channels=channels, n_halvings=n_halvings)
        if image_size % 2**n_halvings != 0:
            raise ValueError(
                f"image_size must be a multiple of {2**n_halvings}, for {n_halvings} halvings, got {image_size}"
            )
        self.c_dim, self.image_size, self.grid = c_dim, image_size, image_size // 2**n_halvings
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for level in range(n_halvings):
            inputs = channels if level else c_dim
            down += [nn.Conv2d(inputs, channels, 4, stride=2, padding=1, bias=False), group_norm_act(channels)]
            if level:
                up += [
                    nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False),
                    group_norm_act(channels),
                ]
        self.encoder = nn.Sequential(
            *down, _ResidualBlock(channels), _ResidualBlock(channels), nn.Conv2d(channels, code_dim, 1)
        )
        self.codebook = Codebook(num_codes, code_dim, decay)
        self.decoder = nn.Sequential(
            nn.Conv2d(code_dim, channels, 3, padding=1), _ResidualBlock(channels), _ResidualBlock(channels),
            *up, nn.ConvTranspose2d(channels, c_dim, 4, stride=2, padding=1),
        )  # fmt: skip

    def encode(self, images: Tensor) -> Tensor:
        """Turn images into numbers of codes.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).

        Returns:
            Numbers, int64 of shape (batch, grid, grid), from 0 to ``num_codes - 1``.

        Raises:
            ValueError: If ``images`` has another shape.
        """
        return self.codebook(self._vectors(images))

    def decode(self, indices: Tensor) -> Tensor:
        """Turn numbers of codes into images.

        Args:
            indices: Numbers, int64 of shape (batch, grid, grid), from 0 to ``num_codes - 1``.

        Returns:
            Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).

        Raises:
            ValueError: If ``indices`` has another shape or type, or a number is out of range.
        """
        if indices.shape[1:] != (self.grid, self.grid) or indices.dtype != torch.int64:
            expected = f"int64 of shape (batch, {self.grid}, {self.grid})"
            raise ValueError(f"indices must be {expected}, got {indices.dtype} of shape {tuple(indices.shape)}")
        # A GPU would have to be waited for.
        if indices.is_cpu and not torch.compiler.is_compiling() and indices.numel() > 0:
            lowest, highest = int(indices.min()), int(indices.max())
            if lowest < 0 or highest >= self.codebook.num_codes:
                raise ValueError(f"indices must lie in 0..{self.codebook.num_codes - 1}, got {lowest}..{highest}")
        return self._decoded(self.codebook.look_up(indices))

    def forward(self, images: Tensor) -> VQVAEOutput:
        """Encode images, replace each vector by the nearest code, decode these.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).

        Returns:
            The reconstruction, whose gradient goes to the encoder straight through the choice; and the rest.

        Raises:
            ValueError: If ``images`` has another shape.
        """
        vectors = self._vectors(images)
        indices = self.codebook(vectors)
        codes = self.codebook.look_up(indices)
        # The codes, to the last bit, with the vectors' gradient.
        reconstruction = self._decoded(codes + (vectors - vectors.detach()))
        return VQVAEOutput(reconstruction, indices, vectors.detach(), mse_loss(vectors, codes))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Decode the codes of images, in evaluation mode, without recording gradients.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).

        Returns:
            Images in [-1, 1], of the same shape.
        """
        with evaluating(self):
            return self.decode(self.encode(images))

    def _vectors(self, images: Tensor) -> Tensor:
        check_images(images, self.c_dim, self.image_size)
        return self.encoder(images).to(self.codebook.codes.dtype)

    def _decoded(self, codes: Tensor) -> Tensor:
        return self.decoder(codes).tanh()
