"""A model of images as sequences of rows."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from genimg_fast import nn
from genimg_fast._evaluating import evaluating
from genimg_fast._images import check_values
from genimg_fast.losses.elbo import logistic_log_likelihood
from genimg_fast.models.common import check_choice, check_sizes
from genimg_fast.models.pretrained import BaseModel
from genimg_fast.models.registry import register_model
from genimg_fast.options import NumLayers, PositiveInt


class RowPrediction(NamedTuple):
    """What a :class:`RowRNN` returns: a mixture for each row, given those above it.

    Attributes:
        mean: Of the components' pixels, (batch, image_size, components, c_dim * image_size).
        log_scale: Logarithm of their scale, of the same shape.
        mixture: Logits of the components, (batch, image_size, components).

    Example:
        >>> import torch, genimg_fast as gf
        >>> prediction = gf.models.RowRNN(image_size=16, components=5)(torch.zeros(2, 1, 16, 16))
        >>> prediction.mean.shape, prediction.mixture.shape
        (torch.Size([2, 16, 5, 16]), torch.Size([2, 16, 5]))
    """

    mean: Tensor
    log_scale: Tensor
    mixture: Tensor


@register_model("row-rnn")
class RowRNN(BaseModel):
    """Generates an image row by row, from the top: a recurrent network whose steps are the rows.

    A row, given those above it, has the density of a mixture whose components are whole rows of independent pixels
    (Graves 2013, https://arxiv.org/abs/1308.0850), rounded logistic ones (Salimans et al. 2017,
    https://arxiv.org/abs/1701.05517). Pixels alone would mix what the row might be; those of a component belong
    together.

    Args:
        c_dim: Colour channels of the images.
        image_size: Their height and width.
        hidden_size: Length of the state.
        num_layers: Layers of the recurrent network.
        cell: ``"gru"``, ``"lstm"`` or ``"rnn"``.
        components: Number of components of the mixture.

    Raises:
        ValueError: If a size is below 1 or the cell is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.RowRNN(c_dim=1, image_size=16, hidden_size=32)
        >>> images, _ = gf.data.load_dataset("digits", image_size=16)[:4]
        >>> (-model.log_likelihood(images, model(images)).mean()).backward()
        >>> model.sample(9).shape, model.complete(images[:, :, :8]).shape
        (torch.Size([9, 1, 16, 16]), torch.Size([4, 1, 16, 16]))
    """

    def __init__(
        self,
        c_dim: int = 1,
        image_size: PositiveInt = 32,
        *,
        hidden_size: PositiveInt = 256,
        num_layers: NumLayers = 2,
        cell: Literal["gru", "lstm", "rnn"] = "lstm",
        components: PositiveInt = 30,
    ) -> None:
        super().__init__()
        check_sizes(
            c_dim=c_dim, image_size=image_size, hidden_size=hidden_size, num_layers=num_layers,
            components=components,
        )  # fmt: skip
        layers = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
        check_choice("cell", cell, layers)
        self.c_dim = c_dim
        self.image_size = image_size
        self.components = components
        row = c_dim * image_size
        self.recurrent = layers[cell](row, hidden_size, num_layers, batch_first=True)
        self.readout = nn.Linear(hidden_size, components * (2 * row + 1))

    def forward(self, images: Tensor) -> RowPrediction:
        """Predict each row of images from those above it.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).

        Returns:
            The mixture of each row.

        Raises:
            ValueError: If the shape is another.
        """
        rows = self._rows(images, self.image_size)
        above = torch.cat([torch.zeros_like(rows[:, :1]), rows[:, :-1]], 1)
        return self._run(above)[0]

    def log_likelihood(self, images: Tensor, output: RowPrediction) -> Tensor:
        """Compute log p(x), summed over rows.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).
            output: What ``forward`` returned for them.

        Returns:
            Nats, of shape (batch,), float32 or wider.

        Raises:
            ValueError: If the shape is another.
        """
        rows = self._rows(images, self.image_size).unsqueeze(2).expand_as(output.mean)
        each = logistic_log_likelihood(*(part.flatten(0, 2) for part in (rows, output.mean, output.log_scale)))
        weights = output.mixture.to(each.dtype).log_softmax(-1)
        return (weights + each.view(weights.shape)).logsumexp(-1).sum(-1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Generate images, in evaluation mode, without recording gradients.

        Args:
            n: Number of images.
            generator: Source of the random numbers, on any device; PyTorch's global one by default.

        Returns:
            Images in [-1, 1], of shape (n, c_dim, image_size, image_size).

        Example:
            >>> import torch, genimg_fast as gf
            >>> gf.models.RowRNN(image_size=16).sample(4, generator=torch.Generator().manual_seed(0)).shape
            torch.Size([4, 1, 16, 16])
        """
        return self.complete(self.readout.weight.new_zeros(n, self.c_dim, 0, self.image_size), generator=generator)

    @torch.no_grad()
    def complete(self, partial: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Generate the rest of images whose upper rows are given, in evaluation mode, without gradients.

        Args:
            partial: Upper rows in [-1, 1], of shape (batch, c_dim, any, image_size).
            generator: Source of the random numbers, on any device; PyTorch's global one by default.

        Returns:
            Images in [-1, 1], of shape (batch, c_dim, image_size, image_size), the given rows as they were.

        Raises:
            ValueError: If the shape is another.

        Example:
            >>> import torch, genimg_fast as gf
            >>> gf.models.RowRNN(image_size=16).complete(torch.zeros(4, 1, 10, 16)).shape
            torch.Size([4, 1, 16, 16])
        """
        rows = self._rows(partial)
        device = rows.device if generator is None else generator.device
        new = [rows]
        with evaluating(self):
            fed, state = torch.cat([rows.new_zeros(len(rows), 1, rows.shape[2]), rows], 1), None
            for _ in range(self.image_size - rows.shape[1]):
                (mean, log_scale, mixture), state = self._run(fed, state)
                # The smallest of exponential numbers, each over its rate, is drawn with the rates as weights.
                race = torch.empty(mixture[:, -1].shape, device=device).exponential_(generator=generator)
                winner = (mixture[:, -1].float() - race.to(rows.device).log()).argmax(-1)
                at = torch.arange(len(rows), device=rows.device), -1, winner
                uniform = torch.rand(mean[at].shape, generator=generator, device=device).to(mean)
                drawn = mean[at] + log_scale[at].exp() * torch.logit(uniform, eps=1e-5)
                levels = drawn.clamp(-1, 1).add(1).mul(127.5).round()
                fed = levels.div(127.5).sub(1).unsqueeze(1)
                new.append(fed)
        return torch.cat(new, 1).unflatten(2, (self.c_dim, self.image_size)).transpose(1, 2)

    def _run(self, above: Tensor, state: Any = None) -> tuple[RowPrediction, Any]:
        """Predict the row below each given one; return the state after the last one, too."""
        states, state = self.recurrent(above, state)
        numbers = self.components * above.shape[2]
        mean, log_scale, mixture = self.readout(states).split([numbers, numbers, self.components], -1)
        shape = (self.components, above.shape[2])
        return RowPrediction(mean.unflatten(-1, shape), log_scale.unflatten(-1, shape), mixture), state

    def _rows(self, images: Tensor, height: int | None = None) -> Tensor:
        """Turn images into rows, (batch, rows, c_dim * image_size)."""
        rows = images.shape[2] if images.ndim == 4 else -1
        fits = images.ndim == 4 and images.shape[1] == self.c_dim and images.shape[3] == self.image_size
        if not fits or rows > self.image_size or rows != (rows if height is None else height):
            expected = "any" if height is None else height
            raise ValueError(
                f"expected images of shape (batch, {self.c_dim}, {expected}, {self.image_size}), "
                f"got {tuple(images.shape)}"
            )
        check_values(images)
        return images.transpose(1, 2).flatten(2)
