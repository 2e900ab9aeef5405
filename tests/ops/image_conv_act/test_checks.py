import pytest
import torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast.ops import image_conv_act, image_conv_act_reference

TO = {"transposed": True}
BAD_INPUT = {
    "five dimensions": lambda x, w: ((x[None], w), {}),
    "two dimensions": lambda x, w: ((x[0, 0], w), {}),
    "channels that do not fit": lambda x, w: ((x[:, :2], w), {}),
    "weight of three dimensions": lambda x, w: ((x, w[0]), {}),
    "kernel larger than the image": lambda x, w: ((x[:, :, :3], w), {}),
    "bias too short": lambda x, w: ((x, w, torch.ones(2)), {}),
    "bias of two dimensions": lambda x, w: ((x, w, torch.ones(5, 1)), {}),
    "bias of another dtype": lambda x, w: ((x, w, torch.ones(5).double()), {}),
    "weight of another dtype": lambda x, w: ((x, w.bfloat16()), {}),
    "integers": lambda x, w: ((x.long(), w.long()), {}),
    "stride zero": lambda x, w: ((x, w, None, 0), {}),
    "stride negative": lambda x, w: ((x, w, None, (1, -1)), {}),
    "stride of three": lambda x, w: ((x, w, None, (1, 1, 1)), {}),
    "stride a float": lambda x, w: ((x, w, None, 1.5), {}),
    "stride a bool": lambda x, w: ((x, w, None, True), {}),
    "stride of one": lambda x, w: ((x, w, None, [2]), {}),
    "padding negative": lambda x, w: ((x, w, None, 1, -1), {}),
    "padding a word": lambda x, w: ((x, w, None, 1, "same"), {}),
    "weight None": lambda x, w: ((x, None), {}),
    "input a list": lambda x, w: (([1.0], w), {}),
    "features that do not fit": lambda x, w: ((x, w), TO),
    "output padding too large": lambda x, w: ((x[:, :1].expand(-1, 5, -1, -1), w), {**TO, "output_padding": 1}),
    "output padding negative": lambda x, w: (
        (x[:, :1].expand(-1, 5, -1, -1), w), {**TO, "stride": 2, "output_padding": -1},
    ),
    "padding beyond the image": lambda x, w: ((x[:, :1, :2].expand(-1, 5, -1, -1), w), {**TO, "padding": 3}),
}  # fmt: skip


@pytest.mark.parametrize("size", [6, 60], ids=["small", "large"])
@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_torchs_own_error(case, backend, size):
    arguments, options = BAD_INPUT[case](torch.randn(2, 3, size, size), torch.randn(5, 3, 4, 4))
    if backend == "native" and case == "integers":
        pytest.skip("of dtypes it says that there is no kernel")
    outcomes: list[Tensor | str] = []
    for function in (image_conv_act, image_conv_act_reference):
        try:
            with gf.backend(backend):
                outcomes.append(function(*arguments, **options))
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    ours, torchs = outcomes
    if isinstance(torchs, Tensor):
        torch.testing.assert_close(ours, torchs)
    else:
        assert ours == torchs


@pytest.mark.parametrize("function", [image_conv_act, image_conv_act_reference])
def test_unknown_activation_lists_the_known_ones(function):
    with pytest.raises(ValueError, match=r"'gelu'.*identity, relu, leaky_relu, silu, tanh, sigmoid"):
        function(torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3), activation="gelu")


@pytest.mark.parametrize("function", [image_conv_act, image_conv_act_reference])
def test_output_padding_is_for_transposed_convolutions(function):
    with pytest.raises(ValueError, match=r"output_padding is for transposed convolutions, got 1"):
        function(torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3), output_padding=1)
