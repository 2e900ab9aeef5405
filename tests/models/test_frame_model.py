import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast.models import CORES, FrameFiller, FramePredictor

SIZES = {"channels": 4, "n_blocks": 2, "hidden_size": 8, "num_layers": 1}  # frames of 16x16
every_core = pytest.mark.parametrize("core", CORES)


def clip(c_dim: int = 1, steps: int = 6, device: str = "cpu") -> Tensor:
    return torch.rand(3, steps, c_dim, 16, 16, device=device) * 2 - 1


def bias_towards(model: FramePredictor, dy: int, dx: int) -> None:
    """Make a predictor move everything by (dy, dx)."""
    width = 2 * model.reach + 1
    with torch.no_grad():
        model.decoder[-1].weight.zero_()
        model.decoder[-1].bias.zero_()
        model.decoder[-1].bias[(model.reach - dy) * width + model.reach - dx] = 40


@every_core
@pytest.mark.parametrize("reach", [0, 2])
@pytest.mark.parametrize("c_dim", [1, 3])
def test_predictor_shapes(core: str, reach: int, c_dim: int, device: str) -> None:
    model = FramePredictor(c_dim, core=core, reach=reach, **SIZES).to(device)
    frames = clip(c_dim, device=device)
    assert model.image_size == 16
    assert model(frames).decoded.shape == (3, 5, c_dim, 16, 16)
    assert model.predict(frames).shape == frames.shape
    rollout = model.rollout(frames, 4)
    assert rollout.shape == (3, 4, c_dim, 16, 16)
    assert rollout.abs().max() <= 1
    assert not rollout.requires_grad


@every_core
def test_predictions_do_not_look_ahead(core: str) -> None:
    model = FramePredictor(core=core, **SIZES).eval()
    frames = clip()
    changed = frames.clone()
    changed[:, 4:] = 0
    before, after = model.predict(frames), model.predict(changed)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.equal(after[:, 4:], before[:, 4:])


@every_core
def test_rollout_feeds_its_own_predictions(core: str) -> None:
    model = FramePredictor(core=core, **SIZES)
    frames = clip()
    rollout = model.rollout(frames, 3)
    for step in range(3):
        seen = torch.cat([frames, rollout[:, :step]], 1)
        torch.testing.assert_close(rollout[:, step], model.predict(seen)[:, -1], rtol=1e-4, atol=1e-5)


def test_teacher_forcing_chooses_what_goes_in() -> None:
    model = FramePredictor(**SIZES).eval()
    frames = clip(steps=7)
    true = model.to_images(model(frames, context=3).decoded)
    torch.testing.assert_close(true, model.predict(frames[:, :-1]))
    own = model.to_images(model(frames, context=3, teacher_forcing=0.0).decoded)
    torch.testing.assert_close(own[:, :3], true[:, :3])
    torch.testing.assert_close(own[:, 2:], model.rollout(frames[:, :3], 4), rtol=1e-4, atol=1e-5)

    def draw(probability: float, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model(frames, context=3, teacher_forcing=probability, generator=generator).decoded

    assert torch.equal(draw(0.5, 1), draw(0.5, 1))
    assert not torch.equal(draw(0.5, 1), draw(0.5, 2))


def test_teacher_forcing_is_as_frequent_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FramePredictor(**SIZES)
    frames = torch.zeros(200, 11, 1, 16, 16)
    fed: list[Tensor] = []

    def spy(frames: Tensor, state: None = None) -> tuple[Tensor, None]:
        fed.append(frames[:, -1])
        return torch.full_like(frames, 3.0), None

    monkeypatch.setattr(model, "_next", spy)
    model(frames, context=1, teacher_forcing=0.3)
    share = torch.stack([(frame == 0).all(-1).all(-1).float().mean() for frame in fed[1:]]).mean()
    assert len(fed) == 10
    assert share.item() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 1800))


def test_gradient_flows_through_own_predictions() -> None:
    model = FramePredictor(**SIZES)
    frames = clip().requires_grad_()
    last = model(frames, context=2, teacher_forcing=0.0).decoded[:, -1]
    (gradient,) = torch.autograd.grad(last.sum(), frames)
    assert gradient[:, :2].abs().sum() > 0
    assert gradient[:, 2:].abs().sum() == 0


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (1, -2), (-2, 1)])
def test_advection_moves_pixels(dy: int, dx: int) -> None:
    model = FramePredictor(**SIZES)
    bias_towards(model, dy, dx)
    frames = clip()
    predicted = model.predict(frames)
    moved = torch.roll(frames, (dy, dx), (3, 4))
    torch.testing.assert_close(predicted[..., 2:-2, 2:-2], 0.999 * moved[..., 2:-2, 2:-2])


def test_a_predictor_learns_motion() -> None:
    # A square that moves right by a pixel a frame.
    frames = torch.full((4, 6, 1, 16, 16), -1.0)
    for row in range(4):
        for step in range(6):
            frames[row, step, 0, 2 * row + 2 : 2 * row + 6, step + row : step + row + 4] = 1
    model = FramePredictor(**SIZES)
    trainer = gf.training.FramePredictorTrainer(model, lr=1e-2, context=2)
    losses = [trainer.step(frames)["mse"].item() for _ in range(40)]
    still = (frames[:, 2:] - frames[:, 1:-1]).square().mean().item() / 4
    assert losses[-1] < still / 2 < losses[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FramePredictor(core="transformer"), "core must be one of convlstm, gru, lstm, got 'transformer'"),
        (lambda: FramePredictor(hidden_size=0), "hidden_size must be at least 1, got 0"),
        (lambda: FramePredictor(reach=-1), "reach must be at least 0, got -1"),
        (
            lambda: FramePredictor(**SIZES)(clip(3)),
            r"expected frames of shape \(batch, steps, 1, 16, 16\) with at",
        ),
        (lambda: FramePredictor(**SIZES)(clip()[:, :1]), "with at least 2 steps"),
        (lambda: FramePredictor(**SIZES)(clip(), context=6), r"context must lie in 1\.\.5, got 6"),
        (lambda: FramePredictor(**SIZES)(clip(), teacher_forcing=1.1), r"teacher_forcing must lie in 0\.\.1, got"),
        (lambda: FramePredictor(**SIZES).rollout(clip(), 0), "steps must be at least 1, got 0"),
        (lambda: FrameFiller(**SIZES).fill(clip(), torch.ones(6)), "known must be bool of shape"),
        (lambda: FrameFiller(**SIZES).fill(clip(), torch.ones(5) > 0), "known must be bool of shape"),
        (lambda: FrameFiller(**SIZES).fill(clip(), torch.zeros(6) > 0), "a frame that is known in every sequence"),
        (lambda: FrameFiller(**SIZES).retime(clip(), 0.1), "speed must be at least 1/8, got 0.1"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@every_core
@pytest.mark.parametrize("reach", [0, 2])
@pytest.mark.parametrize("c_dim", [1, 3])
def test_filler_keeps_what_is_known_and_sees_nothing_else(core: str, reach: int, c_dim: int, device: str) -> None:
    model = FrameFiller(c_dim, core=core, reach=reach, **SIZES).to(device)
    frames = clip(c_dim, device=device)
    known = torch.tensor([True, False, True, True, False, True], device=device)
    filled = model.fill(frames, known)
    assert torch.equal(filled[:, known], frames[:, known])
    assert not torch.equal(filled[:, ~known], frames[:, ~known])
    hidden = frames.masked_fill(~known.view(1, 6, 1, 1, 1), math.nan)
    assert torch.equal(model.fill(hidden, known), filled)
    assert torch.equal(model.fill(frames, known.expand(3, 6)), filled)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_filler_takes_pixels_from_both_sides(share: float) -> None:
    model = FrameFiller(**SIZES)
    frames, known = clip(), torch.tensor([True, True, False, False, False, True])
    with torch.no_grad():
        model.decoder[-1].weight.zero_()
        model.decoder[-1].bias.zero_()
        model.decoder[-1].bias[[11, 26 + 11]] = 40.0  # a pixel to the right, both ways
        model.decoder[-1].bias[52] = 80 * share - 40
    filled = model.fill(frames, known)[..., 5:-5]
    for step in (2, 3, 4):
        source, distance = (1, step - 1) if share == 1 else (5, 5 - step)
        expected = torch.roll(frames[:, source], distance, -1)[..., 5:-5]
        torch.testing.assert_close(filled[:, step], 0.999 * expected, rtol=1e-5, atol=1e-4)


@every_core
def test_filler_looks_in_both_directions(core: str) -> None:
    model = FrameFiller(core=core, **SIZES)
    frames = clip()
    known = torch.tensor([True, True, False, False, True, True])
    filled = model.fill(frames, known)
    for step in (0, 5):
        changed = frames.clone()
        changed[:, step] = 0.5
        assert not torch.equal(model.fill(changed, known)[:, 2:4], filled[:, 2:4])


@pytest.mark.parametrize(
    ("speed", "steps"), [(1, 6), (2, 3), (3, 2), (0.5, 11), (0.25, 21), (1.5, 4), (0.75, 7), (Fraction(2, 3), 8)]
)
def test_retime(speed: float, steps: int) -> None:
    model = FrameFiller(**SIZES)
    frames = clip()
    retimed = model.retime(frames, speed)
    assert retimed.shape[1] == steps == (5 / Fraction(speed)) // 1 + 1
    assert torch.equal(retimed[:, 0], frames[:, 0])
    step = Fraction(speed)  # the frames that fall on given ones are those
    for index in range(steps):
        if (index * step).denominator == 1:
            assert torch.equal(retimed[:, index], frames[:, int(index * step)])


@pytest.mark.parametrize("name", ["frame-predictor", "frame-filler"])
def test_using_a_model_leaves_it_as_it_was(name: str) -> None:
    model = gf.models.create_model(name, **SIZES)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    if name == "frame-filler":
        model.retime(clip(), 0.5)
    else:
        model.rollout(clip(), 2)
        model.predict(clip())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
