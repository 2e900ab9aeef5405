import math
from fractions import Fraction

import pytest
import torch
from ops.reparameterize_kl.calls import (
    OFF,
    OPERATORS,
    native_only,
)

from genimg_fast.ops import reparameterize_kl

MU = torch.zeros(4, 6)
BAD_INPUT = {
    r"noise, seed and generator exclude each other": {"noise": MU, "seed": 1},
    r"noise, seed and generator exclude each other:": {"seed": 1, "generator": torch.Generator()},
    r"logvar must have mu's shape, \(4, 6\), got \(4, 5\)": {"logvar": torch.zeros(4, 5)},
    r"logvar must have mu's dtype, torch.float32, got torch.float64": {"logvar": MU.double()},
    r"logvar must be on mu's device, cpu, got meta": {"logvar": MU.to("meta")},
    r"logvar must be a Tensor, got float": {"logvar": 0.0},
    r"prior_logvar must be a Tensor, got float": {"prior_mu": MU, "prior_logvar": 0.0},
    r"noise must have mu's shape": {"noise": torch.zeros(6)},
    r"noise must have mu's dtype": {"noise": MU.half()},
    r"mu must be float32, float64, bfloat16 or float16, got torch.int64": {"mu": MU.long(), "logvar": MU.long()},
    r"mu must be .*, got torch.complex64": {"mu": MU.cfloat(), "logvar": MU.cfloat()},
    r"mu must be a Tensor, got list": {"mu": [0.0]},
    r"mu must have at least 1 dimension": {"mu": torch.tensor(0.0), "logvar": torch.tensor(0.0)},
    r"seed must be an int or a 0-dim int64 tensor, got torch.float32": {"seed": torch.tensor(1.0)},
    r"seed must be an int or a 0-dim int64 tensor, got torch.int64 of shape \(1,\)": {"seed": torch.tensor([1])},
    r"seed must be on mu's device, cpu, got meta": {"seed": torch.tensor(1, device="meta")},
    r"seed must fit into an int64, got 18446744073709551616": {"seed": 2**64},
    r"seed must be an int or a 0-dim int64 tensor, got float": {"seed": 1.5},
    r"prior_mu and prior_logvar go together, but prior_logvar is None": {"prior_mu": MU},
    r"prior_mu and prior_logvar go together, but prior_mu is None": {"prior_logvar": MU},
    r"prior_mu must expand to mu's shape, \(4, 6\), got \(5,\)": {"prior_mu": torch.zeros(5), "prior_logvar": MU},
    r"prior_logvar must expand to mu's shape": {"prior_mu": MU, "prior_logvar": torch.zeros(1, 4, 6)},
    r"prior_logvar must have mu's dtype": {"prior_mu": MU, "prior_logvar": MU.double()},
    r"logvar_clamp must be \(min, max\)": {"logvar_clamp": (1.0, -1.0)},
    r"logvar_clamp must be \(min, max\) with": {"logvar_clamp": (math.nan, 1.0)},
    r"the min of logvar_clamp must be a number, got str": {"logvar_clamp": ("a", "b")},
    r"the max of logvar_clamp must be a number, got NoneType": {"logvar_clamp": (0.0, None)},
    r"logvar_clamp must be \(min, max\), got 3 values": {"logvar_clamp": (0.0, 1.0, 2.0)},
    r"logvar_clamp must be \(min, max\) or None, got float": {"logvar_clamp": 1.0},
    r"free_bits must be a number, got str": {"free_bits": "a"},
    r"generator must be a torch.Generator, got int": {"generator": 7},
    r"unknown reduction \['none'\]": {"reduction": ["none"]},
    r"mu must be a dense tensor, got torch.sparse_coo": {"mu": MU.to_sparse()},
    r"noise must be a dense tensor, got torch.sparse_csr": {"noise": MU.to_sparse_csr()},
    r"seed must be a dense tensor": {"seed": torch.tensor([1]).to_sparse()},
    r"free_bits must be finite and not negative, got -0.1": {"free_bits": -0.1},
    r"free_bits must be finite": {"free_bits": math.inf},
    r"unknown reduction 'mean'; choose one of sample, none": {"reduction": "mean"},
}


@pytest.mark.parametrize("message", BAD_INPUT)
def test_bad_input(message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        reparameterize_kl(**({"mu": MU, "logvar": MU} | BAD_INPUT[message]))


def test_limits_may_be_any_real_numbers():
    expected = reparameterize_kl(MU, MU + 2, seed=0, logvar_clamp=(-1.0, 1.0), free_bits=0.5)
    numbers = {"logvar_clamp": (Fraction(-1), 1), "free_bits": Fraction(1, 2)}
    torch.testing.assert_close(reparameterize_kl(MU, MU + 2, seed=0, **numbers), expected)


def test_generator_of_another_device():
    if not torch.cuda.is_available():
        pytest.skip("needs a second kind of device")
    with pytest.raises(RuntimeError, match="generator"):
        reparameterize_kl(MU, MU, generator=torch.Generator("cuda"))


RAW_BAD_INPUT = {
    "exactly one of noise and seed": {"seed": None},
    "exactly one of noise and seed must": {"noise": MU},
    "logvar must have mu's shape": {"logvar": torch.zeros(4, 5)},
    "noise must have mu's dtype": {"noise": MU.double(), "seed": None},
    "prior_mu must have mu's shape": {"prior_mu": torch.zeros(6), "prior_logvar": MU},
    "prior_mu and prior_logvar must be given together": {"prior_mu": MU},
    "seed must be .*int64": {"seed": torch.tensor(1.0)},
    "seed must be .*int64 tensor": {"seed": torch.tensor([1])},
    "mu must be float32, float64, bfloat16 or float16": {"mu": MU.long(), "logvar": MU.long()},
    "mu must have at least 1 dimension": {"mu": torch.tensor(0.0), "logvar": torch.tensor(0.0)},
}


@native_only
@pytest.mark.parametrize("message", RAW_BAD_INPUT)
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_raw_operators_refuse_bad_input(message, where):
    arguments = {"mu": MU, "logvar": MU, "noise": None, "seed": torch.tensor(1)}
    arguments |= {"prior_mu": None, "prior_logvar": None} | RAW_BAD_INPUT[message]
    arguments = {name: t if t is None else t.to(where) for name, t in arguments.items()}
    options = {"logvar_min": -math.inf, "logvar_max": math.inf, "free_bits": 0.0, "per_element": False}
    with pytest.raises((ValueError, RuntimeError), match=message):
        OPERATORS.reparameterize_kl(**arguments, **options)
    gradients = {"grad_z": arguments["mu"], "grad_kl": None, "need_noise": False, "need_prior": False}
    with pytest.raises((ValueError, RuntimeError), match=message):
        OPERATORS.reparameterize_kl_backward(**gradients, **arguments, **options)


@native_only
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_raw_backward_refuses_bad_gradients(where):
    mu, seed = MU.to(where), torch.tensor(1).to(where)
    for grads in [(mu[:2], None), (mu.double(), None), (None, mu[0]), (None, mu), (None, mu[:, 0].double())]:
        with pytest.raises((ValueError, RuntimeError), match=r"grad_(z|kl) must"):
            OPERATORS.reparameterize_kl_backward(*grads, mu, mu, None, seed, None, None, *OFF, False, False, False)
