import pytest
import torch
from ops.recurrent.calls import OPERATORS, call, make
from torch._subclasses.fake_tensor import FakeTensorMode

from genimg_fast.ops import gru, lstm, rnn

BAD_INPUT = {
    "input must have shape (T, B, I), got (7, 6)": {"input": torch.ones(7, 6)},
    "input must be float32, float64, bfloat16 or float16, got torch.int64": {"input": torch.ones(7, 5, 6).long()},
    "h0 must have shape (5, 8), got (4, 8)": {"h0": torch.ones(4, 8)},
    "c0 must have shape (5, 8), got (5, 7)": {"c0": torch.ones(5, 7)},
    "weight_ih must have shape (32, 6), got (32, 5)": {"weight_ih": torch.ones(32, 5)},
    "weight_hh must have shape (32, 8), got (24, 8)": {"weight_hh": torch.ones(24, 8)},
    "weight_hh must have shape (4 * H, H), got (8,)": {"weight_hh": torch.ones(8)},
    "bias_ih must have shape (32,), got (31,)": {"bias_ih": torch.ones(31)},
    "bias_hh must have the dtype of input, torch.float32, got torch.float64": {"bias_hh": torch.ones(32).double()},
    "h0 must be on the device of input, cpu, got meta": {"h0": torch.ones(5, 8, device="meta")},
}


@pytest.mark.parametrize("message", BAD_INPUT)
@pytest.mark.parametrize("reference", [False, True], ids=["fused", "reference"])
def test_bad_input(message, reference):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call("lstm", make("lstm") | BAD_INPUT[message], reference=reference)
    assert str(error.value) == message


def test_bad_types_and_options():
    t = make("lstm")
    weights = (t["weight_ih"], t["weight_hh"])
    with pytest.raises(TypeError, match="input must be a Tensor, got list"):
        lstm([1.0], None, *weights)
    with pytest.raises(TypeError, match="bias_ih must be a Tensor, got float"):
        lstm(t["input"], None, *weights, 1.0)
    with pytest.raises(ValueError, match=r"hx must be a pair \(h0, c0\), got 3 tensors"):
        lstm(t["input"], (t["h0"],) * 3, *weights)
    with pytest.raises(ValueError, match=r"'sigmoid'.*tanh, relu"):
        rnn(t["input"], None, *weights, nonlinearity="sigmoid")
    with pytest.raises(ValueError, match=r"unknown nonlinearity \['tanh'\]"):
        rnn(t["input"], None, *weights, nonlinearity=["tanh"])
    for hx, kind in ((1.0, "float"), ("ab", "str"), (t["h0"], "Tensor")):
        with pytest.raises(TypeError, match=rf"hx must be a pair \(h0, c0\), got {kind}"):
            lstm(t["input"], hx, *weights)
    with pytest.raises(TypeError, match="reverse must be a bool, got str"):
        lstm(t["input"], None, *weights, reverse="yes")


@pytest.mark.parametrize("name", ["input", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("layout", ["to_sparse", "to_mkldnn", "nested"])
def test_tensors_that_are_not_dense(name, layout):
    t = make("lstm")
    bad = torch.nested.nested_tensor([t[name]]) if layout == "nested" else getattr(t[name], layout)()
    with pytest.raises(ValueError, match=f"^{name} must be a dense tensor, got"):
        call("lstm", t | {name: bad})
    with pytest.raises(ValueError, match="batch_sizes must be a dense tensor"):
        gru(torch.randn(10, 6), None, t["weight_ih"], t["weight_hh"], batch_sizes=torch.tensor([5, 5]).to_sparse())


BAD_BATCH_SIZES = {
    "must not be empty, negative or increasing": [torch.tensor([5, 2, 3]), torch.tensor([6, 5, -1])],
    "must add up to the rows of input, 10, got 9": [torch.tensor([5, 4])],
    "must be a 1-dimensional int64 tensor on the CPU": [torch.tensor([5.0, 5.0]), torch.tensor([[5, 5]])],
}


@pytest.mark.parametrize("message", BAD_BATCH_SIZES)
def test_bad_batch_sizes(message):
    t = make("gru")
    for sizes in BAD_BATCH_SIZES[message]:
        with pytest.raises(ValueError, match=message):
            gru(torch.randn(10, 6), None, t["weight_ih"], t["weight_hh"], batch_sizes=sizes)


RAW_BAD_INPUT = {
    "cell must be": {"cell": 4},
    "batch_sizes add up to|batch_sizes .*rows": {"batch_sizes": torch.tensor([5, 5])},
    "increase": {"batch_sizes": torch.tensor([5, 1, 29])},
    "c0 belongs to an LSTM": {"c0": None},
    "h0 must have": {"h0": torch.ones(8)},
    r"h0 must have shape \(layers \* 2": {"bidirectional": True},
    "bias_hh must have": {"bias_hh": torch.ones(8)},
    "weight_ih must have": {"weight_ih": torch.ones(32, 6, dtype=torch.float64)},
    "have 2 or 4 weights each, got 3": {"weights": [torch.ones(32, 6), torch.ones(32, 8), torch.ones(32)]},
}


@pytest.mark.parametrize("message", RAW_BAD_INPUT)
@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
def test_raw_operator_refuses_bad_input(message, fake):
    bad = RAW_BAD_INPUT[message]
    if fake and "batch_sizes" in bad:
        pytest.skip("tracing does not read the values")
    t = make("lstm") | bad
    arguments = {
        "input": t["input"].flatten(0, 1) if "batch_sizes" in bad else t["input"],
        "h0": t["h0"] if "h0" in bad else t["h0"][None],
        "c0": None if t["c0"] is None else t["c0"][None],
        "batch_sizes": t.get("batch_sizes"),
        "weights": t.get("weights", [t[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]),
        "cell": t.get("cell", 3),
        "bidirectional": t.get("bidirectional", False),
        "reverse": False,
        "keep": True,
    }
    if not fake:
        with pytest.raises(RuntimeError, match=message) as error:
            OPERATORS.recurrent(**arguments)
        assert str(error.value).startswith("recurrent: ")  # and not with a function, file and line of C++
        return
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match=message):
        OPERATORS.recurrent(**arguments)
