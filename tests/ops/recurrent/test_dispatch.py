import pytest
import torch
from ops.recurrent.calls import call, make
from torch import Tensor

import genimg_fast as gf


def test_transforms_of_torch_func(device):
    tensors = make("lstm", (3, 2, 3, 4), torch.float64, device=device)
    leaf = tensors["input"].clone().requires_grad_()
    expected = torch.autograd.grad(call("lstm", tensors | {"input": leaf})[0].square().sum(), leaf)[0]
    ours = torch.func.grad(lambda x: call("lstm", tensors | {"input": x})[0].square().sum())(tensors["input"])
    torch.testing.assert_close(ours, expected)
    stack = torch.stack((tensors["input"], -tensors["input"]))
    mapped = torch.func.vmap(lambda x: call("lstm", tensors | {"input": x})[0])(stack)
    torch.testing.assert_close(mapped[1], call("lstm", tensors | {"input": stack[1]})[0])


def test_native_backend_says_what_it_cannot_do():
    tensors = {name: t.to("meta") for name, t in make("gru").items()}
    with pytest.raises(RuntimeError, match=r"gru: backend 'native'.*'meta'"):
        call("gru", tensors)
    with gf.backend("auto"):
        assert call("gru", tensors)[0].shape == (7, 5, 8)


def test_auto_runs_the_kernels_and_reference_does_not(device):
    tensors = {name: t.requires_grad_() for name, t in make("gru", device=device).items()}
    with gf.backend("auto"):
        assert type(call("gru", tensors)[0].grad_fn).__name__ == "_LayersBackward"
    with gf.backend("reference"):
        output = call("gru", tensors)[0]
    assert isinstance(output, Tensor)
    assert type(output.grad_fn).__name__ == "StackBackward0"
