"""A recurrent network with an output at every step: Elman 1990, https://doi.org/10.1207/s15516709cog1402_1."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from genimg_fast import nn
from genimg_fast.models.common import check_choice, check_sizes
from genimg_fast.models.pretrained import BaseModel
from genimg_fast.models.registry import register_model

OUTPUT_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "log_softmax": nn.LogSoftmax,
    "sigmoid": nn.Sigmoid,
    "softmax": nn.Softmax,
    "tanh": nn.Tanh,
}
_LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RNNOutput(NamedTuple):
    """What :class:`RNN` returns.

    Attributes:
        output: y, of the input's shape but for the last dimension, output_size; packed if the input is.
        state: h_n, or (h_n, c_n) of an LSTM, of shape (num_layers * num_directions, batch, hidden_size).

    Example:
        >>> import torch, genimg_fast as gf
        >>> output, state = gf.models.RNN(3, 8, num_layers=1, num_directions=1)(torch.randn(16, 4, 3))
        >>> state.shape
        torch.Size([1, 4, 8])
    """

    output: Tensor | PackedSequence
    state: Tensor | tuple[Tensor, Tensor]


@register_model("rnn")
class RNN(BaseModel):
    """A recurrent network: h_t = f(W x_t + U h_(t-1) + b), y_t = g(V h_t + c).

    Several layers run one over the states of the other; with two directions, h_t is made of the states of both.

    Args:
        input_size: Length of an input vector x_t.
        hidden_size: Length of the state, of each layer and direction.
        num_layers: Number of layers.
        num_directions: 1, or 2 for a network that also runs from the last step to the first. 2 by default, unless
            ``bidirectional`` says otherwise.
        output_size: Length of an output vector y_t; by default that of the input.
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``, which put gates around f.
        nonlinearity: f of the cell ``"rnn"``: ``"tanh"`` or ``"relu"``.
        output_activation: g: ``"identity"``, ``"log_softmax"``, ``"sigmoid"``, ``"softmax"`` or ``"tanh"``.
        bidirectional: Another way to say ``num_directions``, as torch's layers have it.
        bias: Whether b and c are there.
        batch_first: Input and output are (batch, steps, ...) instead of (steps, batch, ...).
        dropout: Share of the states set to 0 on the way to the next layer, in training.

    Raises:
        ValueError: If a size is below 1, a name is unknown, ``bidirectional`` contradicts ``num_directions``, or
            ``nonlinearity`` is given for gates, which have theirs.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.RNN(input_size=3, hidden_size=64, num_layers=3, num_directions=2)
        >>> output, state = model(torch.randn(16, 8, 3))
        >>> output.shape, state.shape
        (torch.Size([16, 8, 3]), torch.Size([6, 8, 64]))
    """

    def __init__(
        self,
        input_size: int = 3,
        hidden_size: int = 64,
        num_layers: int = 3,
        num_directions: int | None = None,
        *,
        output_size: int | None = None,
        cell: str = "rnn",
        nonlinearity: str = "tanh",
        output_activation: str = "identity",
        bidirectional: bool | None = None,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        output_size = input_size if output_size is None else output_size
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers, output_size=output_size)
        check_choice("cell", cell, _LAYERS)
        check_choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        check_choice("output_activation", output_activation, OUTPUT_ACTIVATIONS)
        if cell != "rnn" and nonlinearity != "tanh":
            raise ValueError(f"nonlinearity {nonlinearity!r} is for the cell 'rnn', and this one is {cell!r}")
        if num_directions not in (None, 1, 2):
            raise ValueError(f"num_directions must be 1 or 2, got {num_directions}")
        if None not in (num_directions, bidirectional) and bidirectional != (num_directions == 2):
            raise ValueError(f"bidirectional={bidirectional} contradicts num_directions={num_directions}")
        if bidirectional is None:
            bidirectional = num_directions != 1
        self.num_directions = 2 if bidirectional else 1
        options = {"nonlinearity": nonlinearity} if cell == "rnn" else {}
        self.recurrent = _LAYERS[cell](
            input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, **options,
        )  # fmt: skip
        self.readout = nn.Linear(self.num_directions * hidden_size, output_size, bias=bias)
        vector = OUTPUT_ACTIVATIONS[output_activation]
        self.activation = vector(dim=-1) if output_activation.endswith("softmax") else vector()

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> RNNOutput:
        """Run over sequences.

        Args:
            input: (steps, batch, input_size), or (batch, steps, input_size) with ``batch_first``, or (steps,
                input_size) for a single sequence, or a packed one.
            hx: The state to begin with, as it is returned; zeros by default.

        Returns:
            The outputs of all steps, packed if the input was, and the state after the last step.

        Raises:
            RuntimeError, ValueError: Those of torch's layers, for other shapes.
        """
        states, state = self.recurrent(input, hx)
        if isinstance(states, PackedSequence):
            return RNNOutput(states._replace(data=self._read(states.data)), state)
        return RNNOutput(self._read(states), state)

    def _read(self, states: Tensor) -> Tensor:
        return self.activation(self.readout(states))
