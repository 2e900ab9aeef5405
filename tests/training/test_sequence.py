import json
import math
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from trainers import OnStep

import genimg_fast as gf
from genimg_fast.training import (
    FrameFillerTrainer,
    FramePredictorTrainer,
    RowRNNTrainer,
    RunFolder,
    draw_known_frames,
    fit,
    load_run,
    teacher_forcing_probability,
)

FRAMES = {"c_dim": 1, "channels": 4, "n_blocks": 2, "hidden_size": 8, "num_layers": 1}
MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "frame-predictor": (FramePredictorTrainer, FRAMES),
    "frame-filler": (FrameFillerTrainer, FRAMES),
    "row-rnn": (RowRNNTrainer, {"image_size": 16, "hidden_size": 16, "components": 3}),
}
every_model = pytest.mark.parametrize("name", MODELS)


def make_trainer(name: str, device: str = "cpu", model_args: dict[str, Any] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    trainer, args = MODELS[name]
    return trainer(gf.models.create_model(name, **args, **model_args or {}).to(device), **options)


def make_data(name: str) -> Any:
    if name == "row-rnn":
        return gf.data.load_dataset("digits", image_size=16)
    return gf.data.MovingDigits(100, frames=6, image_size=16)


def bce(logits: Tensor, frames: Tensor) -> Tensor:
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    return loss(logits, (frames + 1) / 2, reduction="none").sum((-1, -2, -3))


def test_a_step_of_the_predictor_equals_the_textbook(device: str) -> None:
    trainer = make_trainer("frame-predictor", device, context=2)
    expected = make_trainer("frame-predictor", device).model
    frames = make_data("frame-predictor")[:4][0].to(device)
    values = trainer.step(frames)

    decoded = expected(frames).decoded
    loss = bce(decoded, frames[:, 1:]).mean()
    loss.backward()
    torch.optim.Adam(expected.parameters(), lr=3e-3).step()
    torch.testing.assert_close(values["loss"], loss.detach())
    squared = ((decoded.sigmoid() - (frames[:, 1:] + 1) / 2).square())[:, 1:]
    torch.testing.assert_close(values["mse"], squared.mean().detach())
    torch.testing.assert_close(trainer.model.state_dict(), expected.state_dict())


def test_a_step_of_the_filler_equals_the_textbook(device: str) -> None:
    trainer, expected = make_trainer("frame-filler", device), make_trainer("frame-filler", device).model
    frames = make_data("frame-filler")[:2][0].to(device)
    known = torch.tensor([[True, False, True, False, False, True], [True] * 6], device=device)
    values = trainer.step(frames, known=known)

    decoded = expected(frames, known).decoded
    loss = bce(decoded[0, [1, 3, 4]], frames[0, [1, 3, 4]]).mean()
    loss.backward()
    torch.optim.Adam(expected.parameters(), lr=3e-3).step()
    torch.testing.assert_close(values["loss"], loss.detach())
    squared = (decoded[0].sigmoid() - (frames[0] + 1) / 2).square()[[1, 3, 4]]
    torch.testing.assert_close(values["mse"], squared.mean().detach())
    torch.testing.assert_close(trainer.model.state_dict(), expected.state_dict())
    assert make_trainer("frame-filler").step(frames.cpu(), known=torch.ones(2, 6, dtype=torch.bool))["loss"] == 0


@every_model
@pytest.mark.parametrize("core", ["convlstm", "lstm"])
def test_every_model_learns(name: str, core: str, device: str) -> None:
    model_args = {"cell": "gru"} if name == "row-rnn" else {"core": core}
    trainer = make_trainer(name, device, model_args)
    history = fit(trainer, make_data(name), steps=30, batch_size=16, log_every=10)
    assert [row["step"] for row in history] == [10, 20, 30]
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]


@every_model
def test_same_seed_same_run(name: str) -> None:
    def losses(seed: int) -> list[float]:
        rows = fit(make_trainer(name), make_data(name), steps=3, batch_size=4, seed=seed, log_every=1)
        return [row["loss"] for row in rows]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_teacher_forcing_falls_linearly() -> None:
    assert [teacher_forcing_probability(step, 4, 0.5) for step in (1, 2, 3, 4, 9)] == [
        0.875,
        0.75,
        0.625,
        0.5,
        0.5,
    ]
    assert teacher_forcing_probability(1, 0, 0.3) == 0.3
    assert teacher_forcing_probability(7, 10, 1.0) == 1.0
    trainer = make_trainer("frame-predictor", teacher_forcing=0.0, forcing_steps=4)
    history = fit(trainer, make_data("frame-predictor"), steps=5, batch_size=4, log_every=1)
    assert [row["teacher_forcing"] for row in history] == [0.75, 0.5, 0.25, 0, 0]


def test_known_frames() -> None:
    known = draw_known_frames(400, 13, generator=torch.Generator().manual_seed(0))
    assert known.dtype == torch.bool
    assert known[:, 0].all()
    assert known[:, -1].all()
    assert not known.all(1).all()
    distances = {tuple(row.nonzero()[:, 0].tolist()) for row in known[::2]}
    assert distances == {tuple(range(0, 13, distance)) for distance in (2, 3, 4)}
    assert 0.3 < known[1::2, 1:-1].float().mean() < 0.8
    assert len({tuple(row) for row in known[1::2].tolist()}) > 100


@every_model
def test_learning_rate_falls_to_zero(name: str) -> None:
    trainer = make_trainer(name, lr=1e-2, recipe=gf.training.Recipe(schedule="cosine", decay_steps=4))
    rates: list[float] = []
    fit(
        trainer, make_data(name), steps=5, batch_size=4,
        callbacks=[OnStep(lambda *_: rates.append(trainer.optimizers["all"].param_groups[0]["lr"]))],
    )  # fmt: skip
    factors = [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]
    assert rates == pytest.approx([1e-2 * factor for factor in factors])


@every_model
def test_run_folder_has_everything(name: str, tmp_path: Path, device: str) -> None:
    config = {"model": name, "model_args": MODELS[name][1]}
    run = RunFolder.create(tmp_path, name, config)
    trainer = make_trainer(name, device)
    fit(trainer, make_data(name), steps=4, batch_size=8, run=run, log_every=2, sample_every=3, checkpoint_every=0)
    pictures = {
        "frame-predictor": {"real.gif", "predictions-000003.gif", "predictions-000004.gif"},
        "frame-filler": {"real.gif", "fillings-000003.gif", "fillings-000004.gif"},
        "row-rnn": {"real.png", *(f"{p}-00000{n}.png" for p in ("samples", "completions") for n in (3, 4))},
    }[name]
    assert {f.name for f in run.path.iterdir()} == {
        "config.json", "stats.jsonl", "losses.png", "checkpoint.pt", *pictures
    }  # fmt: skip
    rows = [json.loads(line) for line in (run.path / "stats.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 4]
    if name == "frame-predictor":
        with Image.open(run.path / "predictions-000004.gif") as animation:
            assert animation.width == 8 * (64 + 4) + 4 + 3 * 12  # 16 sequences, four across
            assert 1 < animation.n_frames <= 6  # Pillow merges frames that are equal
    model, loaded = load_run(run.path)
    assert loaded == config
    torch.testing.assert_close(model.state_dict(), trainer.sampler.cpu().state_dict(), rtol=0, atol=0)


def test_frames_are_counted_in_the_images_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    monkeypatch.setattr("genimg_fast.training.loop.time.perf_counter", lambda: next(seconds))
    (row,) = fit(make_trainer("frame-predictor"), make_data("frame-predictor"), steps=2, batch_size=4)
    assert row["images_per_s"] == 2 * 4 * 6


def test_pictures() -> None:
    frames = make_data("frame-predictor")[:3][0]
    predictor = make_trainer("frame-predictor", context=4)
    picture = predictor.pictures(frames, frames)["predictions"]
    truth, continued = picture.images["truth"], picture.images["model"]
    assert torch.equal(truth, frames)
    assert torch.equal(continued[:, :4], frames[:, :4])
    assert torch.equal(continued[:, 4:], predictor.model.rollout(frames[:, :4], 2))
    assert picture.generated.tolist() == [False] * 4 + [True] * 2

    filler = make_trainer("frame-filler")
    picture = filler.pictures(frames, frames)["fillings"]
    missing = (picture.images["given"] == 0).all(-1).all(-1).all(-1)
    assert torch.equal(picture.images["truth"], frames)
    assert missing.any()
    assert torch.equal(picture.generated, missing)
    assert torch.equal(picture.images["model"], filler.model.fill(frames, ~missing))

    rows = make_trainer("row-rnn")
    images = make_data("row-rnn")[:5][0]
    pictures = rows.pictures(images, images)
    truth, given, completed = pictures["completions"].images.values()
    assert torch.equal(pictures["samples"].images, rows.samples(64))
    assert torch.equal(truth, images)
    assert torch.equal(completed[:, :, :8], images[:, :, :8])
    assert torch.equal(given[:, :, :8], images[:, :, :8])
    assert (given[:, :, 8:] == 0).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("frame-predictor", {"context": 0}, "context must be at least 1, got 0"),
        ("frame-predictor", {"teacher_forcing": 1.5}, r"teacher_forcing must lie in 0\.\.1, got 1\.5"),
        ("frame-predictor", {"forcing_steps": -1}, "forcing_steps must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(name, **options)


@pytest.mark.skipif(not gf.info().native, reason=f"no compiled kernels: {gf.info().load_error}")
@pytest.mark.parametrize(
    ("name", "model_args"),
    [
        ("frame-predictor", {"core": "convlstm"}),
        ("frame-predictor", {"core": "lstm"}),
        ("frame-filler", {"core": "convlstm"}),
        ("frame-filler", {"core": "gru"}),
        ("row-rnn", {"cell": "lstm"}),
    ],
)
def test_native_and_reference_give_the_same_loss_curves(
    name: str, model_args: dict[str, str], device: str
) -> None:
    def curve(backend: str, lr: float = 3e-3) -> Tensor:
        losses = []
        with gf.backend(backend), torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
            trainer = make_trainer(name, device, model_args, lr=lr)
            stream = gf.data.batches(make_data(name).to(device), 8)
            for _, (images, labels) in zip(range(10), stream, strict=False):
                losses.append(trainer.step(images, labels)["loss"])
        return torch.stack(losses)

    native, reference = curve("native"), curve("reference")
    torch.testing.assert_close(native, reference, rtol=2e-5, atol=0)
    # The test can fail: a learning rate that is off by 1% shows.
    assert ((curve("reference", lr=3.03e-3) - reference).abs() > 1e-4 * reference.abs()).any()
