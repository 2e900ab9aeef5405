import pytest
import torch
from ops.batch_norm_act.calls import OPERATORS
from torch import Tensor

import genimg_fast as gf
from genimg_fast.ops import batch_norm_act, batch_norm_act_reference


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 3, 1, 1)], ids=str)
def test_raw_operators_survive_tiny_input(shape, device):
    x, c = torch.randn(shape, device=device), torch.ones(3, device=device)
    output = OPERATORS.batch_norm_act_train(x, None, None, None, c.clone(), c.clone(), 0.1, 1e-5, 2, 0.2)[0]
    assert output.shape == x.shape
    gradients = OPERATORS.batch_norm_act_backward(x, x, None, None, None, c, c, True, 2, 0.2, True, True)
    assert [g.shape for g in gradients] == [x.shape, x.shape, (3,), (3,)]


BAD_INPUT = {
    "one value per channel": lambda x, c: ((x[:1, :, :1, :1], c, c), {"training": True}),
    "running_mean too long": lambda x, c: ((x, torch.ones(7), c), {}),
    "weight too short": lambda x, c: ((x, c, c, torch.ones(2)), {"training": True}),
    "bias of another dtype": lambda x, c: ((x, c, c, c.double(), c), {}),
    "no statistics in evaluation": lambda x, c: ((x,), {"training": False}),
    "1-d input": lambda x, c: ((x[0, 0, 0], c, c), {}),
    "integer input": lambda x, c: ((x.long(), c, c), {}),
    "float64 input, float32 statistics": lambda x, c: ((x.double(), c, c), {}),
    "residual of another shape": lambda x, c: ((x, c, c), {"residual": torch.ones(4, 5, 2, 2)}),
    "eps zero": lambda x, c: ((x, c, c), {"eps": 0.0, "training": True}),
    "eps zero in evaluation": lambda x, c: ((x, c, c), {"eps": 0.0}),
    "negative eps": lambda x, c: ((x, c, c), {"eps": -1.0, "training": True}),
    "negative eps in evaluation": lambda x, c: ((x, c, c), {"eps": -1.0}),
    "eps not a number": lambda x, c: ((x, c, c), {"eps": float("nan")}),
    "16-bit parameters, float32 statistics": lambda x, c: (
        (x.bfloat16(), c, c, c.bfloat16(), c.bfloat16()),
        {"training": True},
    ),
    "16-bit statistics, float32 parameters": lambda x, c: ((x.half(), c.half(), c.half(), c, c), {}),
    "weight and bias of two dtypes": lambda x, c: ((x.half(), None, None, c.half(), c), {"training": True}),
    "16-bit parameters, float32 input": lambda x, c: ((x, None, None, c.half(), c.half()), {"training": True}),
    "bfloat16 parameters, float16 input": lambda x, c: ((x.half(), c.bfloat16(), c.bfloat16()), {}),
    "strided parameters": lambda x, c: ((x, c, c, torch.rand(12)[::2]), {}),
    "not a tensor": lambda x, c: (([1.0], c, c), {}),
}


@pytest.mark.parametrize("size", [5, 40], ids=["small", "large"])
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_torchs_own_error(case, size):
    arguments, options = BAD_INPUT[case](torch.randn(8, 6, size, size), torch.ones(6))
    outcomes: list[Tensor | str] = []
    for function in (batch_norm_act, batch_norm_act_reference):
        try:
            with gf.backend("auto"):
                outcomes.append(function(*arguments, **options))
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    # What one version of torch refuses another may take: either way we do the same.
    ours, torchs = outcomes
    if isinstance(torchs, Tensor):
        torch.testing.assert_close(ours, torchs, equal_nan=True)
    else:
        assert ours == torchs


def test_unknown_activation_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'gelu'.*identity, relu, leaky_relu, silu"):
        batch_norm_act(torch.randn(4, 6), training=True, activation="gelu")


RAW_BAD_INPUT = {
    "residual must have the input's shape": {"residual": torch.ones(2, 6)},
    "residual must have the input's dtype": {"residual": torch.ones(4, 6, dtype=torch.float64)},
    "weight must have shape": {"weight": torch.ones(5)},
    "bias must have the input's dtype": {"bias": torch.ones(6, dtype=torch.float64)},
    "weight must have the input's dtype": {"weight": torch.ones(6, dtype=torch.bfloat16)},
    "running_mean must be contiguous": {"running_mean": torch.ones(12)[::2]},
    "activation must be 0": {"activation": 4},
    "input must": {"input": torch.ones(6)},
    "input must be float32": {"input": torch.ones(4, 6, dtype=torch.int64)},
}


@pytest.mark.parametrize("message", RAW_BAD_INPUT)
def test_raw_operators_refuse_bad_input(message):
    arguments = dict.fromkeys(["residual", "weight", "bias", "running_mean", "running_var"])
    arguments |= {"input": torch.randn(4, 6), "momentum": 0.1, "eps": 1e-5}
    arguments |= {"activation": 2, "negative_slope": 0.2}
    with pytest.raises(RuntimeError, match=message):
        OPERATORS.batch_norm_act_train(**(arguments | RAW_BAD_INPUT[message]))
