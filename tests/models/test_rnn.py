import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import genimg_fast as gf
from genimg_fast.models import OUTPUT_ACTIVATIONS, RNN

LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
every_cell = pytest.mark.parametrize("cell", LAYERS)


@every_cell
@pytest.mark.parametrize("directions", [1, 2])
def test_equals_torchs_layer_and_a_readout(cell: str, directions: int, device: str) -> None:
    model = RNN(3, 5, 2, directions, output_size=4, cell=cell, output_activation="tanh").to(device)
    expected = LAYERS[cell](3, 5, 2, bidirectional=directions == 2).to(device)
    expected.load_state_dict(model.recurrent.state_dict())
    x = torch.randn(6, 2, 3, device=device)
    states, state = expected(x)
    result = model(x)
    torch.testing.assert_close(
        result.output, torch.tanh(states @ model.readout.weight.T + model.readout.bias), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(result.state, state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x, state).output, model(x, state)[0])


def test_one_step_by_hand() -> None:
    model = RNN(2, 3, 1, 1, output_size=2, nonlinearity="relu", output_activation="sigmoid")
    layer, readout = model.recurrent, model.readout
    x, h = torch.randn(1, 4, 2), torch.randn(1, 4, 3)
    new = torch.relu(x @ layer.weight_ih_l0.T + layer.bias_ih_l0 + h @ layer.weight_hh_l0.T + layer.bias_hh_l0)
    torch.testing.assert_close(model(x, h).output, torch.sigmoid(new @ readout.weight.T + readout.bias))


def test_defaults() -> None:
    model = RNN()
    assert (model.recurrent.input_size, model.recurrent.hidden_size, model.recurrent.num_layers) == (3, 64, 3)
    assert model.recurrent.bidirectional
    assert isinstance(model.recurrent, gf.nn.RNN)
    assert model(torch.randn(16, 2, 3)).output.shape == (16, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "directions"),
    [
        ({}, 2),
        ({"num_directions": 1}, 1),
        ({"bidirectional": False}, 1),
        ({"bidirectional": True}, 2),
        ({"num_directions": 2, "bidirectional": True}, 2),
        ({"num_directions": 1, "bidirectional": False}, 1),
    ],
)
def test_two_ways_to_say_the_directions(arguments: dict[str, int], directions: int) -> None:
    model = RNN(3, 4, 1, **arguments)
    assert model.num_directions == directions
    assert model(torch.randn(5, 2, 3)).state.shape == (directions, 2, 4)


@pytest.mark.parametrize(("directions", "bidirectional"), [(1, True), (2, False)])
def test_contradicting_directions(directions: int, bidirectional: bool) -> None:
    with pytest.raises(ValueError, match=f"bidirectional={bidirectional} contradicts num_directions={directions}"):
        RNN(num_directions=directions, bidirectional=bidirectional)


def test_batch_first_and_unbatched() -> None:
    model = RNN(3, 4, 1, cell="gru")
    other = RNN(3, 4, 1, cell="gru", batch_first=True)
    other.load_state_dict(model.state_dict())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(other(x.transpose(0, 1)).output, model(x).output.transpose(0, 1))
    torch.testing.assert_close(model(x[:, 0]).output, model(x).output[:, 0])


@every_cell
def test_packed_sequences_pass_through(cell: str) -> None:
    model = RNN(3, 4, 2, cell=cell, output_size=2, output_activation="softmax")
    sequences = [torch.randn(length, 3) for length in (2, 5, 3)]
    packed = model(pack_sequence(sequences, enforce_sorted=False)).output
    padded, lengths = pad_packed_sequence(packed)
    assert lengths.tolist() == [2, 5, 3]
    for index, sequence in enumerate(sequences):
        torch.testing.assert_close(padded[: len(sequence), index], model(sequence).output)


@pytest.mark.parametrize("activation", OUTPUT_ACTIVATIONS)
def test_output_activations(activation: str) -> None:
    model = RNN(3, 4, 1, output_size=5, output_activation=activation)
    states, _ = model.recurrent(x := torch.randn(6, 2, 3))
    logits = model.readout(states)
    expected = {
        "identity": lambda v: v,
        "softmax": lambda v: v.softmax(-1),
        "log_softmax": lambda v: v.log_softmax(-1),
    }
    torch.testing.assert_close(model(x).output, expected.get(activation, getattr(torch, activation, None))(logits))


@pytest.mark.skipif(not gf.info().native, reason=f"no compiled kernels: {gf.info().load_error}")
@every_cell
def test_native_and_reference_agree(cell: str, device: str) -> None:
    model = RNN(3, 8, 3, cell=cell).to(device)
    x = torch.randn(10, 4, 3, device=device)

    def gradients(backend: str) -> list[torch.Tensor]:
        with gf.backend(backend):
            return list(torch.autograd.grad(model(x).output.square().sum(), list(model.parameters())))

    torch.testing.assert_close(gradients("native"), gradients("reference"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"output_size": 0}, "output_size must be at least 1, got 0"),
        ({"num_directions": 3}, "num_directions must be 1 or 2, got 3"),
        ({"cell": "qrnn"}, "cell must be one of rnn, gru, lstm, got 'qrnn'"),
        ({"nonlinearity": "gelu"}, "nonlinearity must be one of tanh, relu, got 'gelu'"),
        (
            {"cell": "gru", "nonlinearity": "relu"},
            "nonlinearity 'relu' is for the cell 'rnn', and this one is 'gru'",
        ),
        ({"output_activation": "relu6"}, "output_activation must be one of identity, .*, got 'relu6'"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RNN(**arguments)


def test_bad_input_gets_torchs_error() -> None:
    with pytest.raises(RuntimeError, match=r"input\.size"):
        RNN(3, 4, 1)(torch.randn(5, 2, 7))
