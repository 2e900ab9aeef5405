"""What `fit` does for all trainers: exact resumption, validation, what stops it, what may fail."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trainers import ALL_OPTIONS, DCGAN_CONFIG, RUN_FILES, SIZES, TRAINERS, OnStep, data_for, make

import genimg_fast as gf
from genimg_fast.training import (
    GANTrainer,
    NonFiniteLossError,
    Picture,
    Recipe,
    RunFolder,
    Terminated,
    fit,
    load_checkpoint,
)


@pytest.mark.parametrize("recipe", [Recipe(), ALL_OPTIONS], ids=["plain", "all-options"])
@pytest.mark.parametrize("name", TRAINERS)
def test_resumed_run_equals_an_uninterrupted_one(
    name: str, recipe: Recipe, digits: gf.data.ImageDataset, tmp_path: Path
) -> None:
    config = {"model": name, "steps": 6}
    options = {"batch_size": 8, "log_every": 1}
    data = data_for(name, digits)
    whole = make(name, recipe=recipe)
    expected = fit(whole, data, steps=6, **options)

    run = RunFolder.create(tmp_path, name, config)
    fit(make(name, recipe=recipe), data, steps=3, run=run, **options)
    torch.manual_seed(99)  # whatever state the new process is in
    resumed = TRAINERS[name](recipe=recipe)
    history = fit(resumed, data, steps=6, run=RunFolder.reopen(run.path, config), resume=True, **options)

    for key, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=0, atol=0)
    for ours, theirs in zip(history, expected, strict=True):
        measured = {"images_per_s": 0, "data_wait": 0, "memory_mb": 0}
        assert ours | measured == theirs | measured
    rows = [json.loads(line) for line in (run.path / "stats.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


VALIDATED = [name for name in TRAINERS if name != "glo"]


@pytest.mark.parametrize("name", VALIDATED)
def test_validation_changes_nothing_and_resumes(name: str, digits: gf.data.ImageDataset, tmp_path: Path) -> None:
    recipe = ALL_OPTIONS
    data = data_for(name, digits)
    _, held_out = data.split(0.01 if len(data) > 1000 else 0.1)
    options: dict[str, Any] = {"batch_size": 8, "log_every": 1}
    plain = make(name, recipe=recipe)
    before = fit(plain, data, steps=4, **options)
    options |= {"validation": held_out, "val_every": 2}
    validated = make(name, recipe=recipe)
    expected = fit(validated, data, steps=4, **options)
    state = torch.get_rng_state()
    torch.testing.assert_close(validated.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert all(module.training for module in validated.model.modules())
    validated.evaluate(*held_out[:4], generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)

    added = [{key for key in row if key.startswith("val_")} for row in expected]
    assert added[0] == added[2] == set()
    assert added[1] == added[3] != set()
    assert {key.removeprefix("val_") for key in added[1]} <= before[0].keys()
    run = RunFolder.create(tmp_path, name, {})
    fit(make(name, recipe=recipe), data, steps=2, run=run, **options)
    torch.manual_seed(99)
    history = fit(TRAINERS[name](recipe=recipe), data, steps=4, run=run, resume=True, **options)
    measured = {"images_per_s": 0, "data_wait": 0, "memory_mb": 0}
    assert [row | measured for row in history] == [row | measured for row in expected]
    assert (run.path / "losses.png").is_file()


def test_validation_is_the_mean_over_all_held_out_images_with_averaged_weights(
    digits: gf.data.ImageDataset,
) -> None:
    training, held_out = digits.split(0.01)
    trainer = make("autoencoder", recipe=Recipe(ema=0.9))
    (row,) = fit(trainer, training, steps=3, batch_size=8, validation=held_out)
    assert len(held_out) == 18  # in batches of 8
    images, _ = held_out[:]
    error = (trainer.sampler.reconstruct(images) - images).square().mean().item()
    assert row["val_loss"] == pytest.approx(error, rel=1e-5)
    trainer = make("vae")
    (row,) = fit(trainer, training, steps=3, batch_size=8, validation=held_out)
    assert row["val_loss"] == pytest.approx(row["val_reconstruction"] + row["val_kl"])


def test_what_shows_whether_images_are_held_out(
    digits: gf.data.ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions: dict[str, str] = {}
    save = RunFolder.save_images
    monkeypatch.setattr(
        RunFolder,
        "save_images",
        lambda run, name, images: (captions.update({name: images.caption}), save(run, name, images)),
    )
    training, held_out = digits.split(0.01)
    for validation, caption in ((None, "training images"), (held_out, "held-out images")):
        run = RunFolder.create(tmp_path, "vae", {})
        fit(make("vae"), training, steps=1, batch_size=8, validation=validation, run=run)
        assert captions == {"real": caption, "samples-000001": "", "reconstructions-000001": caption}


def test_validation_that_fails_does_not_end_the_training(digits: gf.data.ImageDataset) -> None:
    trainer = make("autoencoder")
    values = iter([torch.tensor(0.5), torch.tensor(torch.inf)])
    trainer.evaluate = lambda *batch, generator: {"loss": next(values)}
    options: dict[str, Any] = {
        "batch_size": 8,
        "val_every": 1,
        "validation": gf.data.ImageDataset(digits.images[:8]),
    }
    with pytest.warns(UserWarning, match=r"(not finite after step 2: val_loss|no validation after step 3)"):
        history = fit(trainer, digits, steps=3, **options)
    assert [row.get("val_loss") for row in history] == [0.5, None, None]
    with pytest.raises(ValueError, match="needs a method evaluate, and GLOTrainer has none"):
        fit(make("glo"), digits, steps=1, **options)


def test_another_config_is_refused_with_the_difference(digits: gf.data.ImageDataset, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "dcgan", {"lr": 1e-3, "steps": 1, "device": "cpu"})
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        RunFolder.reopen(run.path, run.config)
    fit(make("dcgan"), digits, steps=1, batch_size=8, run=run)
    assert RunFolder.reopen(run.path, {"lr": 1e-3, "steps": 9, "device": "cuda"}).config["steps"] == 9
    with pytest.raises(ValueError, match=r"settings differ .*: lr was 0\.001 and is 0\.002; n was None and is 3"):
        RunFolder.reopen(run.path, {"lr": 2e-3, "steps": 1, "device": "cpu", "n": 3})
    other = RunFolder.create(tmp_path, "vae", {"lr": 5})
    shutil.copy(run.checkpoint, other.checkpoint)
    with pytest.raises(ValueError, match=r"lr was 0\.001 and is 5"):
        RunFolder.reopen(other.path, other.config)


def test_pictures_that_a_killed_run_did_not_come_to_are_made_when_it_is_resumed(
    digits: gf.data.ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def be_killed(*_: Any) -> None:
        raise Killed

    run = RunFolder.create(tmp_path, "killed", {})
    options = {"batch_size": 8, "log_every": 1, "sample_every": 2, "checkpoint_every": 2}
    trainer = make("dcgan")
    monkeypatch.setattr(trainer, "pictures", be_killed)
    with pytest.raises(Killed):
        fit(trainer, digits, steps=3, run=run, **options)
    assert load_checkpoint(run.path)["step"] == 2
    fit(make("dcgan"), digits, steps=3, run=run, resume=True, **options)
    whole = RunFolder.create(tmp_path, "whole", {})
    fit(make("dcgan"), digits, steps=3, run=whole, **options)
    files = {f.name for f in whole.path.iterdir()}
    assert {"samples-000002.png", "samples-000003.png"} < files == {f.name for f in run.path.iterdir()}
    for name in ("samples-000002.png", "samples-000003.png"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()


KILLED = """
    import sys, genimg_fast as gf, torch
    from genimg_fast.training import GANTrainer, RunFolder, fit
    torch.manual_seed(0)
    trainer = GANTrainer(gf.models.DCGAN(z_dim=8, c_dim=1, channels=4, n_blocks=2))
    data = gf.data.load_dataset("digits", image_size=16)
    run = RunFolder(gf.training.run.Path(sys.argv[1]), {"model": "dcgan"})
    fit(trainer, data, steps=10**6, batch_size=8, run=run, log_every=1, sample_every=0, checkpoint_every=1)
"""


def test_killed_run_resumes_from_the_last_good_checkpoint(digits: gf.data.ImageDataset, tmp_path: Path) -> None:
    """It writes a checkpoint after every step, so the kill mostly comes while it is writing one."""
    run = RunFolder.create(tmp_path, "killed", {"model": "dcgan"})
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), run.path])
    deadline = time.monotonic() + 60
    while not (run.path / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run.path / ".tmp-0.pt").write_bytes(b"half a checkpoint")
    assert (run.path / ".lock").exists()
    with open(run.path / "stats.jsonl", "a") as stats:
        stats.write('{"step": 10')  # half a line

    done = load_checkpoint(run.path)["step"]
    assert done >= 1
    whole = make("dcgan")
    fit(whole, digits, steps=done + 2, batch_size=8)
    resumed = make("dcgan")
    fit(resumed, digits, steps=done + 2, batch_size=8, run=run, resume=True)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert not [f for f in run.path.iterdir() if f.name.startswith(".")]


def test_rows_are_means_since_the_row_before(digits: gf.data.ImageDataset) -> None:
    each = fit(make("dcgan"), digits, steps=5, batch_size=8, log_every=1)
    rows = fit(make("dcgan"), digits, steps=5, batch_size=8, log_every=2)
    assert [row["step"] for row in rows] == [2, 4, 5]
    for name in ("loss_d", "loss_g", "real_logit", "fake_logit"):
        values = [row[name] for row in each]
        means = [(values[0] + values[1]) / 2, (values[2] + values[3]) / 2, values[4]]
        assert [row[name] for row in rows] == pytest.approx(means)


def test_progress_in_a_file_is_a_line_for_each_row(
    digits: gf.data.ImageDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = fit(make("dcgan"), digits, steps=5, batch_size=8, log_every=2, progress=True)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    lines = [line for line in shown.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in lines] == [f"step {row['step']}/5" for row in rows]
    assert f"loss_d={rows[0]['loss_d']:#.4g}, loss_g=" in lines[0]


@pytest.mark.parametrize("columns", [0, 120])
def test_progress_on_a_terminal(
    columns: int, digits: gf.data.ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(ours, "rb", buffering=0) as screen:
        with open(theirs, "w") as stderr, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            slow = OnStep(lambda step, _: time.sleep(0.3))
            fit(make("dcgan"), digits, steps=3, batch_size=8, log_every=3, progress=True, callbacks=[slow])
        shown = ""
        with suppress(OSError):  # the end
            while part := screen.read(4096):
                shown += part.decode(errors="replace")
    if columns == 0:  # a bar would have no place
        assert re.fullmatch(r"step 3/3: loss_d=[^\r\n]*\r\n", shown)
    else:
        assert "2/3" in shown  # before there is a row
        assert "loss_d=" in shown


@pytest.mark.parametrize(("images", "shown"), [(5, 5), (64, 64), (200, 64)])
def test_no_real_image_is_shown_twice(
    images: int, shown: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = gf.data.load_dataset("digits", image_size=16)
    few = gf.data.ImageDataset(few.images[:images], few.labels[:images])
    saved: dict[str, Picture] = {}
    monkeypatch.setattr(RunFolder, "save_images", lambda self, name, picture: saved.setdefault(name, picture))
    run = RunFolder.create(tmp_path, "dcgan-few", DCGAN_CONFIG)
    fit(make("dcgan"), few, steps=1, batch_size=4, run=run)
    assert len(saved["real"].images) == len(saved["real"].images.unique(dim=0)) == shown


def test_watching_does_not_change_the_training(
    digits: gf.data.ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = make("dcgan")
    monkeypatch.setattr(watched, "pictures", lambda *real: {"noise": torch.rand(4, 1, 16, 16)})
    run = RunFolder.create(tmp_path, "watched", DCGAN_CONFIG)
    fit(watched, digits, steps=3, batch_size=8, run=run, sample_every=1, checkpoint_every=1, log_every=1)
    alone = make("dcgan")
    fit(alone, digits, steps=3, batch_size=8)
    torch.testing.assert_close(watched.model.state_dict(), alone.model.state_dict(), rtol=0, atol=0)


def interrupt_at(step: int, signum: int = signal.SIGINT, times: int = 1) -> OnStep:
    """Press Ctrl-C, or send another signal, during a step."""

    def on_step(done: int, _: dict[str, Tensor]) -> None:
        if done == step:
            for _ in range(times):
                os.kill(os.getpid(), signum)

    return OnStep(on_step)


def test_ctrl_c_saves_and_stops(digits: gf.data.ImageDataset, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "stopped", DCGAN_CONFIG)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 2; checkpoint saved to .*checkpoint\.pt"):
        fit(make("dcgan"), digits, steps=100, batch_size=8, run=run, callbacks=[interrupt_at(2)])
    assert load_checkpoint(run.path)["step"] == 2
    assert {f.name for f in run.path.iterdir()} == RUN_FILES | {"samples-000002.png"}
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_save_and_stop(
    signum: signal.Signals, digits: gf.data.ImageDataset, tmp_path: Path
) -> None:
    run = RunFolder.create(tmp_path, "stopped", DCGAN_CONFIG)
    before = signal.getsignal(signum)
    with pytest.raises(Terminated, match=r"stopped after step 2; checkpoint saved to .*checkpoint\.pt") as stopped:
        # Schedulers repeat themselves.
        fit(make("dcgan"), digits, steps=100, batch_size=8, run=run, callbacks=[interrupt_at(2, signum, times=2)])
    assert stopped.value.code == 128 + signum
    assert load_checkpoint(run.path)["step"] == 2
    assert signal.getsignal(signum) is before


def test_signals_that_the_program_handles_or_ignores_stay_its_own(digits: gf.data.ImageDataset) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        for signum in (signal.SIGTERM, signal.SIGHUP):
            assert len(fit(make("dcgan"), digits, steps=2, batch_size=8, callbacks=[interrupt_at(1, signum)])) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, ignored)
    assert seen == [signal.SIGTERM]


def test_a_second_ctrl_c_stops_at_once(digits: gf.data.ImageDataset, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "stopped", DCGAN_CONFIG)
    options = {"batch_size": 8, "run": run, "checkpoint_every": 2}
    with pytest.raises(
        KeyboardInterrupt, match=r"at once, after step 3; the last checkpoint, of step 2, is .*\.pt"
    ):
        fit(make("dcgan"), digits, steps=100, callbacks=[interrupt_at(3, times=2)], **options)
    assert load_checkpoint(run.path)["step"] == 2
    assert not [f for f in run.path.iterdir() if f.name.startswith(".")]


def test_ctrl_c_without_a_run_folder(digits: gf.data.ImageDataset) -> None:
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1; nothing was saved"):
        fit(make("dcgan"), digits, steps=100, batch_size=8, callbacks=[interrupt_at(1)])


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(
    digits: gf.data.ImageDataset, tmp_path: Path
) -> None:
    trainer = make("dcgan")
    run = RunFolder.create(tmp_path, "nan", DCGAN_CONFIG)

    def spoil(step: int, _: dict[str, Tensor]) -> None:
        if step == 5:
            with torch.no_grad():
                trainer.model.generator.main[0].weight[0, 0, 0, 0] = float("nan")

    with pytest.raises(NonFiniteLossError, match=r"loss_\w is nan at step 6; the last good checkpoint is .*\.pt"):
        fit(trainer, digits, steps=20, batch_size=8, run=run, checkpoint_every=4, callbacks=[OnStep(spoil)])
    state = load_checkpoint(run.path)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["model"].values())


def test_nan_weights_never_replace_a_good_checkpoint(digits: gf.data.ImageDataset, tmp_path: Path) -> None:
    trainer = make("dcgan")
    run = RunFolder.create(tmp_path, "nan", DCGAN_CONFIG)

    def spoil(step: int, _: dict[str, Tensor]) -> None:
        if step == 4:  # after the losses of this step, which are fine
            with torch.no_grad():
                trainer.model.generator.main[0].weight[0, 0, 0, 0] = float("nan")

    with pytest.raises(
        NonFiniteLossError, match="a weight is not finite after step 4; the last good checkpoint is"
    ):
        fit(trainer, digits, steps=20, batch_size=8, run=run, checkpoint_every=2, callbacks=[OnStep(spoil)])
    assert load_checkpoint(run.path)["step"] == 2


def test_nan_without_checkpoint(digits: gf.data.ImageDataset) -> None:
    trainer = make("dcgan")
    with torch.no_grad():
        trainer.model.discriminator.main[0].weight[0] = float("inf")
    with pytest.raises(NonFiniteLossError, match="at step 1; no checkpoint was written before"):
        fit(trainer, digits, steps=3, batch_size=8)


class Broken(GANTrainer):
    """Its pictures fail, and a step now and then has more to say."""

    curves = (("loss_d", "loss_g"), ("extra",))

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        raise ValueError("no idea")

    def step(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        more = {"extra": torch.tensor(float(self.steps_done))} if self.steps_done % 2 else {}
        return super().step(images, labels) | more


def test_what_is_no_checkpoint_may_fail(
    digits: gf.data.ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(tmp_path, "broken", DCGAN_CONFIG)
    (run.path / "stats.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(run, "plot", lambda *_: 1 / 0)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="^no ") as warned:
        history = fit(Broken(gf.models.DCGAN(**SIZES)), digits, steps=1, batch_size=8, run=run)
    messages = [str(w.message) for w in warned]
    assert len(messages) == 3
    assert re.search(r"no statistics of step 1: .*No space left on device: '.*stats\.jsonl'", messages[0])
    assert messages[1:] == [
        "no pictures of step 1: ValueError: no idea",
        "no plot: ZeroDivisionError: division by zero",
    ]
    assert load_checkpoint(run.path)["step"] == len(history) == 1

    (run.path / "stats.jsonl").unlink()
    run.log({"step": 2})  # there is room again
    rows = [json.loads(line) for line in (run.path / "stats.jsonl").read_text().splitlines()]
    assert rows == [*history, {"step": 2}]


def test_steps_may_return_different_scalars(digits: gf.data.ImageDataset, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "different", DCGAN_CONFIG)
    torch.manual_seed(0)
    trainer = Broken(gf.models.DCGAN(**SIZES))
    with pytest.warns(UserWarning, match="no pictures"):
        history = fit(trainer, digits, steps=5, batch_size=8, run=run, log_every=4)
    assert [row.get("extra") for row in history] == [2, None]  # the mean of 1 and 3
    assert (run.path / "losses.png").is_file()


@pytest.mark.parametrize("argument", [{"log_every": 0}, {"sample_every": -1}, {"checkpoint_every": -1}])
def test_bad_intervals(argument: dict[str, int], digits: gf.data.ImageDataset) -> None:
    with pytest.raises(ValueError, match="log_every must be at least 1"):
        fit(make("dcgan"), digits, steps=1, **argument)


def test_images_from_zero_to_one_get_a_warning(digits: gf.data.ImageDataset) -> None:
    bright = gf.data.ImageDataset(digits.images[:64] // 4 + 190)
    with pytest.warns(UserWarning, match=r"no pixel lies below 0, .* is the data in \[0, 1\]\?"):
        fit(make("dcgan"), bright, steps=1, batch_size=8)


def test_images_beyond_the_models_range_are_refused(digits: gf.data.ImageDataset) -> None:
    class Bytes(gf.data.ImageDataset):
        def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
            return self.images[index].float(), self.labels[index]

        def to(self, device: Any) -> "Bytes":
            return self

    with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\], .* reach from 0 to 255"):
        fit(make("dcgan"), Bytes(digits.images, digits.labels), steps=1, batch_size=8)
