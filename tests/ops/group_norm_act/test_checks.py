import pytest
import torch
from ops.group_norm_act.calls import OPERATORS
from torch import Tensor

import genimg_fast as gf
from genimg_fast.ops import group_norm_act, group_norm_act_reference


@pytest.mark.parametrize("shape", [(0, 4, 4, 4), (1, 4, 1, 1), (2, 4, 0, 3)], ids=str)
def test_raw_operators_survive_tiny_input(shape, device):
    x = torch.randn(shape, device=device)
    output, mean, invstd = OPERATORS.group_norm_act(x, None, None, None, None, None, 2, 1e-5, 3, 0.2, False)
    assert output.shape == x.shape
    assert mean.shape == invstd.shape == (shape[0], 2)
    gradients = OPERATORS.group_norm_act_backward(
        x, x, None, None, None, None, None, mean, invstd, 2, 3, 0.2, True, True, True
    )
    assert [g.shape for g in gradients] == [x.shape, x.shape, (4,), (4,), (shape[0], 4), (shape[0], 4)]
    assert all(g.isfinite().all() for g in gradients)


BAD_INPUT = {
    "one value in all": lambda x, c: ((x[:1, :1, :1, :1], 1), {}),
    "groups that do not divide": lambda x, c: ((x, 4), {}),
    "no group": lambda x, c: ((x, 0), {}),
    "negative groups": lambda x, c: ((x, -2), {}),
    "groups not an int": lambda x, c: ((x, 2.0), {}),
    "weight too short": lambda x, c: ((x, 2, c[:2]), {}),
    "weight of two dimensions": lambda x, c: ((x, 2, c[None]), {}),
    "bias of another dtype": lambda x, c: ((x, 2, c.double(), c), {}),
    "weight and bias of two dtypes": lambda x, c: ((x.half(), 2, c.half(), c), {}),
    "16-bit parameters, float32 input": lambda x, c: ((x, 2, c.half(), c.half()), {}),
    "bfloat16 parameters, float16 input": lambda x, c: ((x.half(), 2, c.bfloat16(), c.bfloat16()), {}),
    "1-d input": lambda x, c: ((x[0, 0, 0], 2), {}),
    "integer input": lambda x, c: ((x.long(), 2), {}),
    "residual of another shape": lambda x, c: ((x, 2), {"residual": torch.ones(4, 5, 2, 2)}),
    "residual that expands": lambda x, c: ((x, 2), {"residual": torch.ones(6, 1, 1)}),
    "residual of another dtype": lambda x, c: ((x, 2), {"residual": x.double()}),
    "scale of one dimension": lambda x, c: ((x, 2), {"scale": c}),
    "scale of other channels": lambda x, c: ((x, 2), {"scale": torch.ones(8, 3)}),
    "shift of another batch": lambda x, c: ((x, 2), {"shift": torch.ones(1, 6)}),
    "shift of integers": lambda x, c: ((x, 2), {"shift": torch.ones(8, 6, dtype=torch.long)}),
    "shift a number": lambda x, c: ((x, 2), {"shift": 1.0}),
    "scale of another dtype": lambda x, c: ((x, 2), {"scale": torch.ones(8, 6, dtype=torch.float64)}),
    "eps zero": lambda x, c: ((x, 2), {"eps": 0.0}),
    "eps a tensor": lambda x, c: ((x, 2), {"eps": torch.tensor(1e-5)}),
    "strided parameters": lambda x, c: ((x, 2, torch.rand(12)[::2]), {}),
    "not a tensor": lambda x, c: (([1.0], 2), {}),
}


@pytest.mark.parametrize("size", [5, 40], ids=["small", "large"])
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_torchs_own_error(case, size):
    arguments, options = BAD_INPUT[case](torch.randn(8, 6, size, size), torch.ones(6))
    outcomes: list[Tensor | str] = []
    for function in (group_norm_act, group_norm_act_reference):
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


@pytest.mark.parametrize("name", ["scale", "shift"])
@pytest.mark.parametrize("backend", ["auto", "native"])
def test_modulation_that_does_not_fit_is_named(name, backend):
    x = torch.randn(4, 6, 40, 40)
    with gf.backend(backend):
        with pytest.raises(ValueError, match=rf"^{name} must have shape \(N, C\), \(4, 6\), .* got \(4, 3\)$"):
            group_norm_act(x, 2, **{name: torch.ones(4, 3)})
        with pytest.raises(TypeError, match=f"^{name} must be a Tensor, got list$"):
            group_norm_act(x, 2, **{name: [1.0]})


@pytest.mark.parametrize("function", [group_norm_act, group_norm_act_reference])
def test_unknown_activation_lists_the_known_ones(function):
    with pytest.raises(ValueError, match=r"'gelu'.*identity, relu, leaky_relu, silu"):
        function(torch.randn(4, 6), 2, activation="gelu")


RAW_BAD_INPUT = {
    "input must have at least 2": {"input": torch.ones(6)},
    "input must be float32": {"input": torch.ones(4, 6, dtype=torch.int64)},
    "residual must have the input's shape": {"residual": torch.ones(2, 6)},
    "residual must have the input's dtype": {"residual": torch.ones(4, 6, dtype=torch.float64)},
    "weight must have shape": {"weight": torch.ones(5)},
    "bias must have the input's dtype": {"bias": torch.ones(6, dtype=torch.float64)},
    "weight must have the input's dtype": {"weight": torch.ones(6, dtype=torch.bfloat16)},
    "scale must have shape": {"scale": torch.ones(6)},
    "shift must have shape": {"shift": torch.ones(3, 6)},
    "num_groups must divide": {"num_groups": 4},
    "num_groups must divide the input's 6 channels, got 0": {"num_groups": 0},
    "activation must be 0": {"activation": 4},
    "wide_output is for CUDA": {"wide_output": True},
}


@pytest.mark.parametrize("message", RAW_BAD_INPUT)
def test_raw_operators_refuse_bad_input(message):
    arguments = dict.fromkeys(["residual", "weight", "bias", "scale", "shift"])
    arguments |= {"input": torch.randn(4, 6), "num_groups": 2, "eps": 1e-5}
    arguments |= {"activation": 2, "negative_slope": 0.2, "wide_output": False}
    with pytest.raises(RuntimeError, match=message):
        OPERATORS.group_norm_act(**(arguments | RAW_BAD_INPUT[message]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grad_output", torch.ones(4, 3)),
        ("mean", torch.ones(4)),
        ("invstd", torch.ones(4, 2, dtype=torch.float64)),
        ("mean", torch.ones(4, 4)[:, ::2]),
    ],
)
def test_raw_backward_refuses_bad_input(name, value):
    statistics = torch.ones(4, 2)
    arguments = dict.fromkeys(["residual", "weight", "bias", "scale", "shift"])
    arguments |= {"grad_output": torch.ones(4, 6), "input": torch.randn(4, 6), "num_groups": 2}
    arguments |= {"mean": statistics, "invstd": statistics, "activation": 2, "negative_slope": 0.2}
    arguments |= dict.fromkeys(["need_input", "need_residual", "need_parameters"], True)
    OPERATORS.group_norm_act_backward(**arguments)
    with pytest.raises(RuntimeError, match=f"group_norm_act: {name} must"):
        OPERATORS.group_norm_act_backward(**(arguments | {name: value}))
