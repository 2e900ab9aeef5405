"""What all trainers share: recipes, averaged weights, exact resumption, several processes."""

import copy
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trainers import ALL_OPTIONS, SIZES, TRAINERS, data_for, make

import genimg_fast as gf
from genimg_fast.training import (
    AutoencoderTrainer,
    BaseTrainer,
    GANTrainer,
    GLOTrainer,
    Pix2PixTrainer,
    Recipe,
    RunFolder,
    fit,
    load_checkpoint,
)


@pytest.fixture(scope="module")
def digits() -> gf.data.ImageDataset:
    return gf.data.load_dataset("digits", image_size=16)


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 16, 16, generator=generator) * 2 - 1, torch.arange(n) % 10


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


def test_held_out_images_leave_no_trace_in_the_discriminator(digits: gf.data.ImageDataset) -> None:
    """Running statistics, and the vectors of spectral norm."""
    for name in ("dcgan", "cdcgan"):
        trainer = make(name)
        before = copy.deepcopy(trainer.model.state_dict())
        images, labels = digits[:8]
        found = trainer.evaluate(images, labels, generator=torch.Generator())["real_logit"]
        torch.testing.assert_close(trainer.model.state_dict(), before, rtol=0, atol=0)
        # The discriminator has judged the real images of a step just so.
        torch.testing.assert_close(trainer.step(images, labels)["real_logit"], found)


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


def test_latest_run(tmp_path: Path) -> None:
    assert RunFolder.latest(tmp_path / "none", "a") is None
    folders = [RunFolder.create(tmp_path, name, {}).path for name in ("a", "b", "a", "a", "b-a")]
    for folder in folders[:3]:
        (folder / "checkpoint.pt").touch()
    assert RunFolder.latest(tmp_path, "a") == folders[2]
    for number in (99999, 100000):
        (tmp_path / f"{number}-a").mkdir()
        (tmp_path / f"{number}-a" / "checkpoint.pt").touch()
    assert RunFolder.latest(tmp_path, "a") == tmp_path / "100000-a"


def test_one_process_at_a_time_trains_in_a_folder(digits: gf.data.ImageDataset, tmp_path: Path) -> None:
    """A process that is killed leaves no lock: see the next test."""
    run = RunFolder.create(tmp_path, "dcgan", {})
    with run.locked():
        with pytest.raises(BlockingIOError, match=rf"another process \(PID {os.getpid()} on .*\) is training in"):
            fit(make("dcgan"), digits, steps=1, batch_size=8, run=run)
        assert {f.name for f in run.path.iterdir()} == {"config.json", ".lock"}
    fit(make("dcgan"), digits, steps=1, batch_size=8, run=run)


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.warns(UserWarning, match="cannot keep other processes from training in .*: .*No locks available"),
        RunFolder.create(tmp_path, "dcgan", {}).locked(),
    ):
        pass


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


def test_damaged_statistics_are_left_out(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "dcgan", {})
    rows = b'{"step": 1}\n[1]\n\xff\0\n{"loss": 1}\n{"step": "2"}\n{"step": 2}\n{"step": 4}\n{"step'
    (run.path / "stats.jsonl").write_bytes(rows)
    with pytest.warns(UserWarning, match=r"stats\.jsonl: 4 damaged lines left out"):
        assert run.rows_until(3) == [{"step": 1}, {"step": 2}]
    assert (run.path / "stats.jsonl").read_bytes() == b'{"step": 1}\n{"step": 2}\n'


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


def test_accumulation_equals_the_whole_batch() -> None:
    """For a network whose samples do not meet."""
    images, _ = batch()
    states = []
    for parts in (1, 4):
        trainer = make("wgan", recipe=Recipe(accumulate=parts))
        trainer.gp = 0.0  # it draws random numbers
        trainer._fake = lambda n, labels: images[:1].neg().expand(n, -1, -1, -1)
        trainer.step(images)
        states.append(trainer.model.discriminator.state_dict())
    torch.testing.assert_close(*states)


def test_accumulation_equals_the_whole_batch_of_unequal_parts() -> None:
    """The parts of a filler's batch miss different numbers of frames."""
    frames = torch.rand(4, 5, 1, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    known = torch.arange(5) < torch.tensor([[4], [4], [1], [1]])
    results = []
    for parts in (1, 2):
        trainer = make("frame-filler", recipe=Recipe(accumulate=parts))
        trainer.model.eval()  # batch norm in training sees the parts
        values = trainer.step(frames, known=known)
        results.append((values, [p.grad for p in trainer.model.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_average_of_weights_and_buffers() -> None:
    trainer = make("dcgan", recipe=Recipe(ema=0.5))
    images, labels = batch()
    expected = None
    for step in range(4):
        trainer.step(images, labels)
        now = copy.deepcopy(trainer.model.state_dict())
        share = 1 - min(0.5, (1 + step) / (10 + step))
        expected = now if expected is None else {
            key: torch.lerp(expected[key], value, share) if value.is_floating_point() else value
            for key, value in now.items()
        }  # fmt: skip
    torch.testing.assert_close(trainer.sampler.state_dict(), expected)
    assert make("dcgan", recipe=Recipe(ema=0)).averaged is None


def test_averaged_weights_keep_their_spectral_norm() -> None:
    torch.manual_seed(0)
    trainer = GANTrainer(gf.models.WGAN(**SIZES, norm="spectral"), lr=1e-3)
    for _ in range(60):
        trainer.step(*batch())
    layers = [layer for layer in trainer.sampler.eval().discriminator.main if isinstance(layer, torch.nn.Conv2d)]
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in layers]
    assert norms == pytest.approx([1] * len(norms), abs=0.05)


def test_gradients_are_clipped() -> None:
    trainer = make("wgan", recipe=Recipe(grad_clip=1e-3))
    trainer.step(*batch())
    norms = [p.grad.norm() for p in trainer.model.discriminator.parameters()]
    assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_schedules() -> None:
    assert [Recipe().lr_factor(s) for s in (0, 9)] == [1, 1]
    assert [Recipe(schedule="linear", decay_steps=4).lr_factor(s) for s in (0, 1, 4, 9)] == [1, 0.75, 0, 0]
    cosine = Recipe(schedule="cosine", decay_steps=4)
    assert [cosine.lr_factor(s) for s in (0, 2, 4)] == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_reaches_the_networks(precision: str) -> None:
    trainer = make("dcgan", recipe=Recipe(precision=precision))
    seen = []
    trainer.model.discriminator.main[0].register_forward_hook(lambda *a: seen.append(a[2].dtype))
    trainer.step(*batch())
    assert set(seen) == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert trainer.scaler.is_enabled() == (precision == "fp16")
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_channels_last_reaches_the_networks() -> None:
    trainer = make("dcgan", recipe=Recipe(channels_last=True))
    seen = []
    trainer.model.discriminator.main[2].register_forward_hook(lambda *a: seen.append(a[1][0]))
    trainer.step(*batch())
    assert seen
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_compiled_networks_train_alike() -> None:
    images, labels = batch()
    plain, compiled = (make("vae", recipe=Recipe(compile=c)) for c in (False, True))
    torch.manual_seed(5)
    expected = plain.step(images, labels)
    torch.manual_seed(5)
    torch.testing.assert_close(compiled.step(images, labels), expected, rtol=1e-4, atol=1e-5)


def test_spectral_norm_is_not_compiled() -> None:
    torch.manual_seed(0)
    model = gf.models.ResidualGAN(**SIZES, norm="spectral")
    with pytest.warns(UserWarning, match="Discriminator is not compiled: it has spectral norm"):
        trainer = GANTrainer(model, loss="hinge", recipe=Recipe(compile=True))
    assert trainer._discriminator is model.discriminator
    assert trainer._generator is not model.generator


def test_clipped_weights() -> None:
    torch.manual_seed(0)
    trainer = GANTrainer(gf.models.WGAN(**SIZES), loss="wasserstein", clip_weights=0.01)
    trainer.step(*batch())
    assert max(p.abs().max() for p in trainer.model.discriminator.parameters()) <= 0.01


def test_the_generator_waits_for_the_critic() -> None:
    trainer = make("wgan")
    before = copy.deepcopy(trainer.model.generator.main[0].weight)
    values = trainer.step(*batch())
    assert values["loss_g"] == -values["fake_logit"]
    assert torch.equal(trainer.model.generator.main[0].weight, before)
    trainer.step(*batch())
    assert not torch.equal(trainer.model.generator.main[0].weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, got 'fp8'"),
        ({"schedule": "step"}, "schedule must be one of constant, linear, cosine, got 'step'"),
        ({"schedule": "linear"}, "a linear schedule needs decay_steps of at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\), got 1\.0"),
        ({"grad_clip": -1}, "grad_clip must be at least 0, got -1"),
    ],
)
def test_bad_recipes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_bad_trainers(digits: gf.data.ImageDataset) -> None:
    with pytest.raises(ValueError, match="n_critic must be at least 1, got 0"):
        GANTrainer(gf.models.DCGAN(**SIZES), n_critic=0)
    with pytest.raises(ValueError, match="gp must be at least 0, got -1"):
        GANTrainer(gf.models.DCGAN(**SIZES), gp=-1)
    with pytest.raises(ValueError, match="batch norm in the discriminator mixes them"):
        GANTrainer(gf.models.DCGAN(**SIZES), gp=10)
    with pytest.raises(ValueError, match="accumulate must divide the batch, 8, got 3"):
        make("dcgan", recipe=Recipe(accumulate=3)).step(*batch())
    with pytest.raises(ValueError, match="resume needs a run folder"):
        fit(make("dcgan"), digits, steps=1, batch_size=8, resume=True)


IN_PROCESSES = """
    import copy, sys, torch, genimg_fast as gf
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from genimg_fast.training import GANTrainer, Recipe, fit
    from genimg_fast.training.processes import process_group, rank, world_size

    def count_and_reduce(messages, bucket):
        messages.append(bucket.index())
        return allreduce_hook(None, bucket)

    with process_group(torch.device("cpu")):
        torch.manual_seed(0)
        model = gf.models.create_model(sys.argv[2], z_dim=8, c_dim=1, channels=4, n_blocks=2)
        model = gf.nn.SyncBatchNormAct.convert_sync_batchnorm(model).double()
        recipe = Recipe(accumulate=int(sys.argv[3]))
        trainer = GANTrainer(model, loss="hinge", r1=0.1 if sys.argv[2] == "wgan" else 0, recipe=recipe)
        noise = iter(torch.randn(12, 8, 8, generator=torch.Generator().manual_seed(2)).double())
        count = world_size()
        trainer._fake = lambda n, labels: trainer._generator(next(noise)[: n * count][rank() :: count])
        messages = []
        for network in trainer._parallel:
            network.register_comm_hook(messages, count_and_reduce)
        step = trainer.step
        trainer.step = lambda images, labels: step(images.double(), labels)
        fit(trainer, gf.data.load_dataset("digits", image_size=16), steps=3, batch_size=8 // world_size())
        state = copy.deepcopy(model.state_dict())
        network = trainer.prepared(model.discriminator)
        model.zero_grad()
        images = torch.randn(2, 8, 1, 16, 16, generator=torch.Generator().manual_seed(3)).double()
        sum(network(part[rank() :: count], None).mean() for part in images).backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        if rank() == 0:
            torch.save((state, gradients, messages), sys.argv[1])
"""


@pytest.mark.parametrize(("name", "parts"), [("wgan", 1), ("dcgan", 1), ("wgan", 2)])
def test_two_processes_equal_one_with_the_whole_batch(name: str, parts: int, tmp_path: Path) -> None:
    """Weights and running statistics of a training; then the gradients of two forward passes in one backward."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(IN_PROCESSES))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command, file in ((launch, "two.pt"), ([sys.executable], "one.pt")):
        done = subprocess.run(
            [*command, script, tmp_path / file, name, str(parts)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    (*two, messages), (*one, _) = (torch.load(tmp_path / file) for file in ("two.pt", "one.pt"))
    torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-9)
    assert len(messages) == 3 * 2  # once for each network and step, however many parts


TERMINATED = """
    import os, signal, sys, torch, genimg_fast as gf
    from genimg_fast.training import GANTrainer, RunFolder, fit
    from genimg_fast.training.processes import process_group, rank

    class EndTheSecond(GANTrainer):
        def step(self, images, labels):
            if self.steps_done == 1 and rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step(images, labels)

    with process_group(torch.device("cpu")):
        trainer = EndTheSecond(gf.models.DCGAN(z_dim=8, c_dim=1, channels=4, n_blocks=2))
        run = RunFolder(gf.training.run.Path(sys.argv[1]), {})
        data = gf.data.load_dataset("digits", image_size=16)
        try:
            fit(trainer, data, steps=9, batch_size=8, run=run)
        except SystemExit as stopped:
            (run.path / f"{rank()}.txt").write_text(str(stopped.code))

        def fail(state):
            raise OSError("cannot write checkpoint.pt")

        run.save_checkpoint = fail  # the first process alone calls it
        try:
            fit(trainer, data, steps=3, batch_size=8, run=run)
        except OSError as error:
            (run.path / f"{rank()}.txt").open("a").write(f" {error}")
"""


def test_a_signal_or_an_error_of_one_process_stops_all(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "terminated", {})
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TERMINATED))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, script, run.path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [(run.path / f"{number}.txt").read_text() for number in range(2)] == [
        "143 cannot write checkpoint.pt"
    ] * 2
    assert load_checkpoint(run.path)["step"] == 2


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


def pairs(n: int = 8) -> Tensor:
    images, _ = batch(n)
    return torch.cat([images, images.neg()], dim=3)


@pytest.mark.parametrize("direction", ["a2b", "b2a"])
def test_pix2pix_step_equals_the_textbook(direction: str) -> None:
    def make_model() -> gf.models.Pix2Pix:
        torch.manual_seed(0)
        return gf.models.Pix2Pix(1, 1, channels=4, image_size=16, dropout=0.0)

    trainer, expected = Pix2PixTrainer(make_model(), direction=direction), make_model()
    values = trainer.step(pairs())

    a, b = pairs().chunk(2, dim=3)
    source, target = (a, b) if direction == "a2b" else (b, a)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    g, d = expected.generator, expected.discriminator
    fake = g(source)
    real_logits, fake_logits = d(source, target), d(source, fake.detach())
    loss_d = (bce(real_logits, torch.ones_like(real_logits)) + bce(fake_logits, torch.zeros_like(fake_logits))) / 2
    loss_d.backward()
    torch.optim.Adam(d.parameters(), lr=2e-4, betas=(0.5, 0.999)).step()
    logits = d(source, fake)
    loss_g, error = bce(logits, torch.ones_like(logits)), (fake - target).abs().mean()
    (loss_g + 100 * error).backward()
    torch.optim.Adam(g.parameters(), lr=2e-4, betas=(0.5, 0.999)).step()

    for name, value in (("loss_d", loss_d), ("loss_g", loss_g), ("l1", error)):
        torch.testing.assert_close(values[name], value.detach())
    torch.testing.assert_close(trainer.model.state_dict(), expected.state_dict())
    panels = trainer.pictures(pairs(3), torch.zeros(3))["translations"].images
    assert list(panels) == ["input", "output", "target"]
    assert torch.equal(panels["input"], source[:3])
    assert torch.equal(panels["output"], trainer.sampler.translate(source[:3]))
    assert torch.equal(panels["target"], target[:3])


def test_pix2pix_in_parts() -> None:
    torch.manual_seed(0)
    trainer = Pix2PixTrainer(gf.models.Pix2Pix(1, 1, channels=4, image_size=16), recipe=Recipe(accumulate=2))
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.step(pairs())
    changed = [key for key, value in trainer.model.named_parameters() if not torch.equal(value, before[key])]
    assert len(changed) == len(list(trainer.model.parameters()))
    for bad in (batch()[0], pairs().expand(-1, 3, -1, -1), torch.zeros(8, 1, 32, 64)):
        with pytest.raises(ValueError, match=r"expected pairs .*, \(batch, 1, 16, 32\), got \(8, "):
            trainer.step(bad)
    with pytest.raises(ValueError, match="direction must be one of a2b, b2a, got 'ab'"):
        Pix2PixTrainer(trainer.model, direction="ab")


@pytest.mark.parametrize("name", ["autoencoder", "glo"])
def test_reconstruction_trainers_learn_each_image(name: str, digits: gf.data.ImageDataset) -> None:
    """Which a network from noise to images, trained by the same error, cannot: it learns their mean."""
    torch.manual_seed(0)
    data = gf.data.ImageDataset(digits.images[:16], torch.arange(16))
    if name == "glo":
        model: Any = gf.models.GLO(16, 16, 1, 8, 2)
        trainer: BaseTrainer = GLOTrainer(model, lr=3e-3)
    else:
        model = gf.models.Autoencoder(16, 1, 8, 2)
        trainer = AutoencoderTrainer(model, lr=3e-3)
    history = fit(trainer, data, steps=80, batch_size=16, log_every=10)
    images, _ = data[:]
    error_of_the_mean = (images - images.mean(0)).square().mean()
    assert history[-1]["loss"] < 0.3 * error_of_the_mean
    pictures = trainer.pictures(images[:5], torch.arange(5))
    assert torch.equal(pictures["reconstructions"].images["input"], images[:5])
    assert pictures["reconstructions"].images["output"].shape == (5, 1, 16, 16)
    if name == "glo":
        assert model.codes.weight.norm(dim=1).max() <= 1 + 1e-6
