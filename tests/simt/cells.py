"""The recurrent cells, as the kernels number them, and two of them in plain PyTorch."""

from torch import Tensor

RNN_TANH, RNN_RELU, GRU, LSTM = CELLS = range(4)
NAMES = ("rnn_tanh", "rnn_relu", "gru", "lstm")
GATES, RESERVE = (1, 1, 3, 4), (0, 0, 4, 5)


def lstm_update(gates: Tensor, c: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, dim)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_update(gates_x: Tensor, gates_h: Tensor, h: Tensor, dim: int = -1) -> Tensor:
    (xr, xz, xn), (hr, hz, hn) = gates_x.chunk(3, dim), gates_h.chunk(3, dim)
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return n + (xz + hz).sigmoid() * (h - n)
