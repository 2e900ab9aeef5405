import math

import pytest
import torch
from torch import Tensor

from genimg_fast.models import RowRNN


def rows(c_dim: int = 1, **sizes: int) -> RowRNN:
    return RowRNN(c_dim, 8, **{"hidden_size": 12, "components": 3, **sizes})


@pytest.mark.parametrize("c_dim", [1, 3])
def test_shapes(c_dim: int, device: str) -> None:
    model = rows(c_dim).to(device)
    images = torch.rand(4, c_dim, 8, 8, device=device) * 2 - 1
    output = model(images)
    assert output.mean.shape == output.log_scale.shape == (4, 8, 3, 8 * c_dim)
    assert model.log_likelihood(images, output).shape == (4,)
    samples = model.sample(5)
    assert samples.shape == (5, c_dim, 8, 8)
    assert samples.abs().max() <= 1
    completed = model.complete(images[:, :, :3])
    assert torch.equal(completed[:, :, :3], images[:, :, :3])
    assert completed.shape == images.shape
    assert torch.equal(model.complete(images), images)
    assert model.sample(0).shape == (0, c_dim, 8, 8)


def test_likelihood_is_that_of_a_mixture() -> None:
    model = rows().double()
    images = torch.randint(0, 256, (4, 1, 8, 8)).double() / 127.5 - 1
    images[:, :, 3] = torch.tensor([-1.0, 1.0] * 4)
    output = model(images)
    targets, half = images[:, 0].unsqueeze(2), 1 / 255

    def below(level: Tensor) -> Tensor:
        return torch.sigmoid((level - output.mean) / output.log_scale.exp())

    upper = torch.where(targets == 1, 1.0, below(targets + half))
    lower = torch.where(targets == -1, 0.0, below(targets - half))
    by_component = (upper - lower).prod(-1)
    expected = (by_component * output.mixture.softmax(-1)).sum(-1).log().sum(-1)
    torch.testing.assert_close(model.log_likelihood(images, output), expected)


def test_looks_upwards_only() -> None:
    model = rows()
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    changed = images.clone()
    changed[:, :, 5:] = 0
    before, after = model(images).mean, model(changed).mean
    torch.testing.assert_close(after[:, :6], before[:, :6])
    assert not torch.equal(after[:, 6:], before[:, 6:])


def test_samples_are_what_it_predicts() -> None:
    # One component and next to no scale: nothing is random, every row is the mean that the rows above it give.
    model = rows(components=1)
    with torch.no_grad():
        model.readout.weight[8:16] = 0
        model.readout.bias[8:16] = -20
    images = model.sample(2)
    torch.testing.assert_close(images[:, 0], model(images).mean[:, :, 0], rtol=0, atol=1.01 / 255)


def test_draws_from_its_mixture() -> None:
    model = rows()
    with torch.no_grad():
        model.readout.weight.zero_()
        model.readout.bias[:24] = torch.tensor([-0.5, 0.0, 0.5]).repeat_interleave(8)
        model.readout.bias[24:48] = -4.0
        model.readout.bias[48:] = torch.tensor([0.5, 0.2, 0.3]).log()
    samples = model.sample(2000, generator=torch.Generator().manual_seed(0))[:, 0]
    levels = (samples * 255 + 255) / 2
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    component = (samples.mean(-1) * 2).round()  # all pixels of a row belong to one
    shares = [(component == level).float().mean().item() for level in (-1, 0, 1)]
    assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.02)
    scale = (samples - component.unsqueeze(-1) / 2).std() * math.sqrt(3) / math.pi
    assert scale.item() == pytest.approx(math.exp(-4), rel=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RowRNN(components=0), "components must be at least 1, got 0"),
        (lambda: RowRNN(cell="qrnn"), "cell must be one of gru, lstm, rnn, got 'qrnn'"),
        (lambda: RowRNN(image_size=8)(torch.zeros(2, 1, 6, 8)), r"shape \(batch, 1, 8, 8\), got \(2, 1, 6, 8\)"),
        (lambda: RowRNN(image_size=8).complete(torch.zeros(2, 1, 9, 8)), r"shape \(batch, 1, any, 8\), got"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_sampling_leaves_the_model_as_it_was() -> None:
    model = rows()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    draw = [model.sample(3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
