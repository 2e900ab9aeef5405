"""The training loop."""

import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from genimg_fast.data import BatchedDataset, batches
from genimg_fast.data.optional import optional_import
from genimg_fast.training.processes import (
    any_process,
    gather_objects,
    mean_over_processes,
    rank,
    world_size,
)
from genimg_fast.training.run import RunFolder, load_checkpoint


class Trainer(Protocol):
    """What :func:`fit` needs to train something: a model, its optimisers and one step of training.

    Attributes:
        model: What is trained.
        device: Where it is, and where batches go.
        steps_done: Number of steps taken.
        curves: Names of the scalars that the progress bar shows and ``losses.png`` draws, those of one panel
            together.

    Example:
        >>> import genimg_fast as gf
        >>> trainer: gf.training.Trainer = gf.training.GANTrainer(gf.models.MLPGAN())
        >>> trainer.curves
        (('loss_d', 'loss_g'),)
    """

    model: Any
    device: torch.device
    steps_done: int
    curves: Sequence[Sequence[str]]

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Train on one batch, of images or of sequences; return scalars to log."""

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Make images or sequences to look at, by name, from the same random numbers and real ones each time."""

    def state_dict(self) -> dict[str, Any]:
        """Get all that training changes."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back."""


class NonFiniteLossError(RuntimeError):
    """A loss, or a weight, became NaN or infinite.

    Example:
        >>> import genimg_fast as gf
        >>> model = gf.models.Autoencoder(z_dim=4, c_dim=1, channels=4, n_blocks=1)
        >>> trainer = gf.training.AutoencoderTrainer(model, lr=1e30)
        >>> try:
        ...     gf.training.fit(trainer, gf.data.load_dataset("digits", image_size=8), steps=10)
        ... except gf.training.NonFiniteLossError:
        ...     print("a lower learning rate may help")
        a lower learning rate may help
    """


def fit(
    trainer: Trainer,
    dataset: BatchedDataset,
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    run: RunFolder | None = None,
    log_every: int = 20,
    sample_every: int = 500,
    checkpoint_every: int = 500,
    progress: bool = False,
    on_step: Callable[[int, dict[str, Tensor]], None] | None = None,
    resume: bool = False,
) -> list[dict[str, float]]:
    """Train until ``steps`` steps are done, counting those that the trainer has behind it already.

    With a run folder, it writes statistics, pictures, a plot of the losses and checkpoints there. Ctrl-C stops
    after the current step and saves a checkpoint; a second Ctrl-C stops at once.

    Resumed from the run folder's checkpoint, training goes on as if it had never stopped: on the CPU, bit for bit.
    In several processes (``torchrun``), every one has its share of each batch, and the first one writes.

    Args:
        trainer: What to train.
        dataset: Real images, or sequences of them, of the size and channels that the model takes.
        steps: Number of the last step.
        batch_size: Images, or sequences, in a batch, of every process.
        seed: Decides the order of the images.
        run: Where to write; by default nothing is written.
        log_every: Steps between two rows of statistics. The losses are looked at no more often, because that makes
            the processor wait for the accelerator.
        sample_every: Steps between two sets of pictures; 0 for the last step only.
        checkpoint_every: Steps between two checkpoints; 0 for the last step only.
        progress: Whether to show a progress bar.
        on_step: Called after every step with its number, from 1, and what it returned.
        resume: Whether to go on from the run folder's checkpoint.

    Returns:
        The rows of statistics: number of a step, means since the row before, images, or frames, per second, and
        the most memory until then, in megabytes: of this process, or of its tensors on a GPU.

    Raises:
        ValueError: If a number is out of range, or the checkpoint does not fit.
        FileNotFoundError: If there is no checkpoint to resume from.
        NonFiniteLossError: If a loss or, at a checkpoint, a weight is NaN or infinite. The message names the step
            and the last good checkpoint, which stays.
        KeyboardInterrupt: After Ctrl-C, when everything is saved; the message says where.

    Example:
        >>> import genimg_fast as gf
        >>> data = gf.data.load_dataset("digits", image_size=16)
        >>> trainer = gf.training.GANTrainer(gf.models.DCGAN(c_dim=1, channels=16, n_blocks=2))
        >>> history = gf.training.fit(trainer, data, steps=4, batch_size=32, log_every=2)
        >>> [row["step"] for row in history]
        [2, 4]
    """
    if log_every < 1 or sample_every < 0 or checkpoint_every < 0:
        raise ValueError(
            "log_every must be at least 1, sample_every and checkpoint_every at least 0, "
            f"got {log_every}, {sample_every} and {checkpoint_every}"
        )
    if resume and run is None:
        raise ValueError("resume needs a run folder")
    dataset = dataset.to(trainer.device)
    processes, writing = world_size(), rank() == 0
    real_images, real_labels = dataset[torch.linspace(0, len(dataset) - 1, 64).long()]
    if real_images.ndim >= 4:
        _check_range(real_images)
    # Behind the look at the data, which may draw random numbers.
    history = _resume(trainer, run) if resume and run is not None else []
    stream = batches(dataset, batch_size * processes, seed=seed, start=trainer.steps_done)
    if real_images.ndim == 5:  # sequences are long to look at
        real_images, real_labels = real_images[::4], real_labels[::4]
    if run is not None and writing and not resume:
        run.save_images("real", real_images)

    pending: list[dict[str, Tensor]] = []  # what the steps since the last row returned
    batch_images = processes * batch_size * (real_images.shape[1] if real_images.ndim == 5 else 1)
    trainer.model.train()
    done = trainer.steps_done >= steps
    bar_shown = progress and writing
    with _deferred_interrupt() as interrupted, _progress_bar(bar_shown, trainer.steps_done, steps) as bar:
        clock = time.perf_counter()
        while not done:
            images, labels = next(stream)
            pending.append(trainer.step(images[rank() :: processes], labels[rank() :: processes]))
            step = trainer.steps_done
            if on_step is not None:
                on_step(step, pending[-1])

            done = step >= steps or any_process(interrupted.is_set(), trainer.device)
            sample_due = done or _due(step, sample_every)
            checkpoint_due = done or _due(step, checkpoint_every)
            if not (sample_due or checkpoint_due or _due(step, log_every)):
                continue

            row = _summarise(pending, step, run)
            row["images_per_s"] = len(pending) * batch_images / (time.perf_counter() - clock)
            row["memory_mb"] = _peak_memory(trainer.device) / 1e6
            history.append(row)
            if bar is not None:
                bar.set_postfix_str(_describe(row, trainer.curves), refresh=False)
                bar.update(len(pending))
            pending.clear()
            # The losses are those before the last update: it may have spoilt the weights all the same.
            if (
                run is not None
                and checkpoint_due
                and not all(parameter.isfinite().all() for parameter in trainer.model.parameters())
            ):
                raise _not_finite(f"a weight is not finite after step {step}", run)
            if run is not None and writing:
                run.log(row)
                if sample_due:
                    for name, pictures in trainer.pictures(real_images, real_labels).items():
                        run.save_images(f"{name}-{step:06d}", pictures)
                    run.plot(history, trainer.curves)
            # Last: what a run that is killed before this one has written, it writes again when it is resumed.
            if run is not None and checkpoint_due:
                rng = gather_objects(_rng_state(trainer.device))
                if writing:
                    run.save_checkpoint({**trainer.state_dict(), "rng": rng, "config": run.config})
            clock = time.perf_counter()  # the time for the files is not that of the steps
    if trainer.steps_done < steps:
        where = "nothing was saved" if run is None else f"checkpoint saved to {run.checkpoint}"
        raise KeyboardInterrupt(f"stopped after step {trainer.steps_done}; {where}")
    return history


def _check_range(images: Tensor) -> None:
    lowest, highest = images.min().item(), images.max().item()
    if not (lowest >= -1 and highest <= 1):
        raise ValueError(
            "images must lie in [-1, 1], the range that models generate; "
            f"those of the data reach from {lowest:g} to {highest:g}"
        )
    if lowest >= 0:
        warnings.warn(
            f"no pixel lies below 0, the middle of [-1, 1] ({lowest:g} is the lowest): is the data in [0, 1]?",
            stacklevel=3,
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _summarise(pending: list[dict[str, Tensor]], step: int, run: RunFolder | None) -> dict[str, float]:
    """Average what the last steps returned, and raise if any of it is not finite."""
    names = list(pending[0])
    # One transfer from the accelerator for all steps.
    values = torch.stack([torch.stack([row[name] for name in names]) for row in pending]).float()
    values = mean_over_processes(values).double().cpu()
    bad = (~values.isfinite()).nonzero()
    if len(bad) > 0:
        row, column = bad[0].tolist()
        what = f"{names[column]} is {values[row, column].item()} at step {step - len(pending) + 1 + row}"
        raise _not_finite(what, run)
    return {"step": step, **dict(zip(names, values.mean(0).tolist(), strict=True))}


def _not_finite(what: str, run: RunFolder | None) -> NonFiniteLossError:
    if run is not None and run.checkpoint.exists():
        return NonFiniteLossError(f"{what}; the last good checkpoint is {run.checkpoint}")
    return NonFiniteLossError(f"{what}; no checkpoint was written before")


def _peak_memory(device: torch.device) -> int:
    """Return bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _describe(row: dict[str, float], curves: Sequence[Sequence[str]]) -> str:
    values = [f"{name}={row[name]:#.4g}" for panel in curves for name in panel]
    return ", ".join([*values, f"{row['images_per_s']:.0f} images/s"])


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    """Get the state of this process's random number generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _resume(trainer: Trainer, run: RunFolder) -> list[dict[str, float]]:
    """Put everything back that the run's checkpoint holds; return the rows of statistics up to there."""
    state = load_checkpoint(run.path)
    if len(state["rng"]) != world_size():
        raise ValueError(f"the run had {len(state['rng'])} processes, and now there are {world_size()}")
    try:
        trainer.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{run.checkpoint} does not fit what is trained: {error}") from error
    rng = state["rng"][rank()]
    torch.set_rng_state(rng["cpu"])
    if "cuda" in rng and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(rng["cuda"], trainer.device)
    # One process writes the file, the others wait for it.
    rows = run.rows_until(state["step"]) if rank() == 0 else []
    return gather_objects(rows)[0]


def _progress_bar(show: bool, initial: int, total: int) -> AbstractContextManager[Any]:
    if not show:
        return nullcontext()
    # In a log file every update is a new line, so there are few.
    interval = 0.2 if sys.stderr.isatty() else 10
    return optional_import("tqdm").tqdm(
        initial=initial, total=total, unit="step", mininterval=interval, maxinterval=interval
    )


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that checkpoints are taken between two steps and never within one."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread sees signals
        yield interrupted
        return
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(signum: int, frame: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
