"""The training loop."""

import math
import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from genimg_fast.data import Augmented, as_batched, batches
from genimg_fast.data.adapt import look_at, own_random_numbers
from genimg_fast.data.dataset import pieces
from genimg_fast.data.optional import optional_import
from genimg_fast.models.checkpoint import CheckpointError, load_checkpoint
from genimg_fast.options import NonNegativeInt, PositiveInt, Seed
from genimg_fast.training.callbacks import Callback, calling
from genimg_fast.training.pictures import Picture
from genimg_fast.training.processes import (
    gather_objects,
    highest_of_processes,
    mean_over_processes,
    raised_in_all,
    rank,
    wait_for_all,
    world_size,
)
from genimg_fast.training.run import RunFolder


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
        (('loss_d', 'loss_g'), ('real_logit', 'fake_logit'))
    """

    model: Any
    device: torch.device
    steps_done: int
    curves: Sequence[Sequence[str]]

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Train on one batch, of images or of sequences; return scalars to log."""

    def pictures(self, images: Tensor, labels: Tensor) -> Mapping[str, Tensor | Picture]:
        """Make images or sequences to look at, by name, from the same random numbers and real ones each time."""

    # With a validation set: evaluate(images, labels, *, generator), like step, for held-out images; no training.

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


class Terminated(SystemExit):
    """SIGTERM or SIGHUP came, and everything is saved. Not caught, it ends Python with status 128 + signal.

    Args:
        message: What was saved, and where.
        signum: Number of the signal.

    Example:
        >>> import signal, genimg_fast as gf
        >>> gf.training.Terminated("stopped after step 7", signal.SIGTERM).code
        143
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.code: int = 128 + signum


def fit(
    trainer: Trainer,
    dataset: Any,
    *,
    steps: PositiveInt,
    batch_size: PositiveInt = 64,
    seed: Seed = 0,
    validation: Any = None,
    run: RunFolder | None = None,
    log_every: PositiveInt = 20,
    val_every: NonNegativeInt = 100,
    sample_every: NonNegativeInt = 500,
    checkpoint_every: NonNegativeInt = 500,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> list[dict[str, float]]:
    """Train until ``steps`` steps are done, counting those that the trainer has behind it already.

    With a run folder, it writes statistics, checkpoints, pictures and a plot of the losses there; what goes wrong
    with other files than checkpoints is a warning. One training at a time can have a folder. Ctrl-C, SIGTERM and
    SIGHUP (unless ignored, or handled by the program) stop after the current step and save a checkpoint; a second
    Ctrl-C stops at once.

    Resumed from the run folder's checkpoint, training goes on as if it had never stopped: on the CPU, bit for bit.
    In several processes (``torchrun``), every one has its share of each batch, and the first one writes.

    Args:
        trainer: What to train.
        dataset: Real images, or sequences of them, of the size and channels that the model takes: a data set of
            this package, any other data set, a ``DataLoader``, something iterable, tensors. See
            :func:`genimg_fast.data.as_batched`, which also has options for them.
        steps: Steps to train, counting those before; a resumed run may have more if nothing in it depends on their
            number.
        batch_size: Images, or sequences, in a batch of each process. A ``DataLoader`` has its own.
        seed: Seed of all random numbers. Here, it decides the order of the images.
        validation: Held-out images, or sequences, that are not trained on, with indices. The trainer's
            ``evaluate`` computes their losses: ``val_loss`` and so on in the rows of statistics and the plot. They
            are shown in pictures in place of training images. The training is the same, bit for bit, with and
            without them.
        run: Where to write; by default nothing is written. Of several processes each passes it, and the first
            one writes.
        log_every: Steps between two rows of statistics. The losses are looked at no more often, because that makes
            the processor wait for the accelerator.
        val_every: Steps between two evaluations on all held-out data; 0: at the end.
        sample_every: Steps between two sets of pictures; 0: at the end.
        checkpoint_every: Steps between two checkpoints; 0: at the end.
        progress: Whether to show a progress bar; where stderr is no terminal, a line for each row of statistics.
        callbacks: What is told of steps, rows of statistics, pictures and checkpoints; see :class:`Callback`.
        resume: Whether to go on from the run folder's checkpoint.

    Returns:
        The rows of statistics: number of a step, means since the row before, images, or frames, per second, the
        share of that time that the training waited for data (``data_wait``, 0 to 1), and the most memory until
        then, in megabytes: of this process, or of its tensors on a GPU.

    Raises:
        TypeError: If the data is of no kind that is known.
        ValueError: If a number is out of range, the checkpoint does not fit, or something in the data is no image.
        FileNotFoundError: If there is no checkpoint to resume from.
        NonFiniteLossError: If a loss or, at a checkpoint, a weight is NaN or infinite. The message names the step
            and the last good checkpoint, which stays.
        BlockingIOError: If another process is training in the run folder.
        OSError: If a checkpoint cannot be written, or a callback cannot start.
        KeyboardInterrupt: After Ctrl-C, when everything is saved; the message says where.
        Terminated: After SIGTERM or SIGHUP, likewise: a SystemExit with status 128 + signal.

    Example:
        >>> import genimg_fast as gf
        >>> data = gf.data.load_dataset("digits", image_size=16)
        >>> trainer = gf.training.GANTrainer(gf.models.DCGAN(c_dim=1, channels=16, n_blocks=2))
        >>> history = gf.training.fit(trainer, data, steps=4, batch_size=32, log_every=2)
        >>> [row["step"] for row in history]
        [2, 4]
    """
    if log_every < 1 or min(val_every, sample_every, checkpoint_every) < 0:
        raise ValueError(
            "log_every must be at least 1, val_every, sample_every and checkpoint_every at least 0, "
            f"got {log_every}, {val_every}, {sample_every} and {checkpoint_every}"
        )
    if validation is not None and not hasattr(trainer, "evaluate"):
        raise ValueError(f"validation needs a method evaluate, and {type(trainer).__name__} has none")
    if resume and run is None:
        raise ValueError("resume needs a run folder")
    if len(set(gather_objects(run is None))) > 1:  # some would wait for ever for what the others never send
        raise ValueError(
            "of several processes some have a run folder and others have none: pass run in all of them"
        )
    dataset = as_batched(dataset).to(trainer.device)
    processes, writing = world_size(), rank() == 0
    real_images, real_labels = _look(dataset)
    if validation is not None:
        validation = as_batched(validation).to(trainer.device)
        if not hasattr(validation, "__len__") or not hasattr(_innermost(validation), "__getitem__"):
            raise ValueError("validation needs images with indices, and a stream has none")
        with own_random_numbers(seed):
            real_images, real_labels = _look(validation, doubt=False)  # a few images may well be bright
    if real_images.ndim == 5 or real_images.shape[-2] > 64:  # enough to look at
        fewer = slice(None, None, max(1, len(real_images) // 16))
        real_images, real_labels = real_images[fewer], real_labels[fewer]

    pending: list[dict[str, Tensor]] = []  # what the steps since the last row returned
    shown = "training" if validation is None else "held-out"
    shown += " sequences" if real_images.ndim == 5 else " images"
    frames = real_images.shape[1] if real_images.ndim == 5 else 1
    saved = signum = 0  # step of the checkpoint; signal that has come

    def where() -> str:
        if run is None or saved == 0:
            return "nothing was saved"
        if saved == trainer.steps_done:
            return f"checkpoint saved to {run.checkpoint}"
        return f"the last checkpoint, of step {saved}, is {run.checkpoint}"

    with _locked(run), _deferred_signals(trainer, where) as signals, ExitStack() as stack:
        # Behind the look at the data, which may draw random numbers.
        history = _resume(trainer, run) if resume and run is not None else []
        done = trainer.steps_done >= steps
        if resume:
            saved = trainer.steps_done
        tell = stack.enter_context(calling(callbacks, run, trainer.steps_done))
        if run is not None and writing:
            if not resume:
                with _warning_only("real images"):
                    tell("on_pictures", 0, [run.save_images("real", Picture(images=real_images, caption=shown))])
            elif done or _due(saved, sample_every):  # the process may have been killed behind the checkpoint
                tell("on_pictures", saved, _draw(trainer, run, history, real_images, real_labels, shown))
        stream: Any = batches(  # a generator, which ends its threads and processes when it is closed
            dataset, batch_size * processes, seed=seed, start=trainer.steps_done, part=rank(), parts=processes
        )
        trainer.model.train()
        with closing(stream), _progress(progress and writing, trainer.steps_done, steps) as show:
            clock, taken, waited = time.perf_counter(), 0, 0.0
            while not done:
                asked = time.monotonic()
                images, labels = next(stream)
                waited += time.monotonic() - asked
                taken += processes * len(images) * frames
                pending.append(trainer.step(images, labels))
                step = trainer.steps_done
                show(step, None)
                tell("on_step", step, pending[-1])

                signum = highest_of_processes(signals[0] if signals else 0, trainer.device)
                done = step >= steps or signum > 0
                sample_due = done or _due(step, sample_every)
                checkpoint_due = done or _due(step, checkpoint_every)
                val_due = validation is not None and (step >= steps or _due(step, val_every))
                if not (sample_due or checkpoint_due or val_due or _due(step, log_every)):
                    continue

                row = _summarise(pending, step, run)
                elapsed = time.perf_counter() - clock
                row["images_per_s"] = taken / elapsed
                row["data_wait"] = min(1.0, waited / elapsed)
                row["memory_mb"] = _peak_memory(trainer.device) / 1e6
                if validation is not None and val_due:
                    row |= _validate(trainer, validation, batch_size, seed)
                history.append(row)
                show(step, _describe(row, trainer.curves))
                pending.clear()
                # The losses are those before the last update: it may have spoilt the weights all the same.
                if (
                    run is not None
                    and checkpoint_due
                    and not all(parameter.isfinite().all() for parameter in trainer.model.parameters())
                ):
                    raise _not_finite(f"a weight is not finite after step {step}", run)
                # First the row: a run that is resumed drops rows behind its checkpoint and cannot make up for one
                # before it. Then the checkpoint. Last what can be made from it again.
                if run is not None and writing:
                    with _warning_only(f"statistics of step {step}"):
                        run.log(row)
                tell("on_row", row)
                if run is not None and checkpoint_due:
                    rng = gather_objects(_rng_state(trainer.device))
                    with raised_in_all():
                        if writing:
                            run.save_checkpoint({**trainer.state_dict(), "rng": rng, "config": run.config})
                    if writing:
                        tell("on_checkpoint", step, run.checkpoint)
                    saved = step
                if run is not None and writing and sample_due:
                    tell("on_pictures", step, _draw(trainer, run, history, real_images, real_labels, shown))
                # The time for the files is not that of the steps.
                clock, taken, waited = time.perf_counter(), 0, 0.0
        if trainer.steps_done < steps:
            wait_for_all()  # for the one that writes: when one has left, torchrun ends the others
            message = f"stopped after step {trainer.steps_done}; {where()}"
            raise KeyboardInterrupt(message) if signum == signal.SIGINT else Terminated(message, signum)
    return history


def _look(dataset: Any, *, doubt: bool = True) -> tuple[Tensor, Tensor]:
    """Take up to 64 images from all over a data set; check their range, with ``doubt`` for another one, too."""
    images, labels = look_at(dataset)
    if images.ndim >= 4:
        _check_range(images, doubt=doubt)
    return images, labels


def _innermost(dataset: Any) -> Any:
    """Get what augmented data augments."""
    return _innermost(dataset.dataset) if isinstance(dataset, Augmented) else dataset


def _validate(trainer: Any, dataset: Any, batch_size: int, seed: int) -> dict[str, float]:
    """Average what a trainer's ``evaluate`` returns over a data set: the same random numbers every time.

    All processes do it, since batch norm may share its statistics between them; what the first one finds counts.
    """
    found: dict[str, float] = {}
    with _warning_only(f"validation after step {trainer.steps_done}"):
        generator = torch.Generator().manual_seed(seed)
        sums: dict[str, Tensor] = {}
        # Parts of about the same size: where a batch has statistics, they are not of a handful.
        parts = torch.arange(len(dataset)).tensor_split(math.ceil(len(dataset) / batch_size))
        with own_random_numbers(seed):  # augmented images draw some, and the training must not depend on that
            for images, labels in pieces(dataset, parts):
                for name, value in trainer.evaluate(images, labels, generator=generator).items():
                    sums[name] = sums.get(name, 0) + value.double() * (len(images) / len(dataset))
        found = {f"val_{name}": float(value) for name, value in sums.items()}
        if bad := [name for name, value in found.items() if not math.isfinite(value)]:
            found = {name: value for name, value in found.items() if name not in bad}
            warnings.warn(f"not finite after step {trainer.steps_done}: {', '.join(bad)}", stacklevel=3)
    return gather_objects(found)[0]


def _check_range(images: Tensor, *, doubt: bool) -> None:
    lowest, highest = images.min().item(), images.max().item()
    if not (lowest >= -1 and highest <= 1):
        raise ValueError(
            "images must lie in [-1, 1], the range that models generate; "
            f"those of the data reach from {lowest:g} to {highest:g}"
        )
    if doubt and lowest >= 0:
        warnings.warn(
            f"no pixel lies below 0, the middle of [-1, 1] ({lowest:g} is the lowest): is the data in [0, 1]?",
            stacklevel=4,
        )


@contextmanager
def _locked(run: RunFolder | None) -> Iterator[None]:
    """Keep other trainings out of the run folder: the first process does, and tells the others if it cannot."""
    with ExitStack() as stack:
        with raised_in_all():
            if run is not None and rank() == 0:
                stack.enter_context(run.locked())
        yield


def _draw(
    trainer: Trainer,
    run: RunFolder,
    history: list[dict[str, float]],
    images: Tensor,
    labels: Tensor,
    shown: str,
) -> list[Path]:
    """Write pictures, and the plot. What they draw of random numbers plays no part in the training.

    Args:
        trainer: Makes the pictures.
        run: Where to write.
        history: The rows to plot.
        images: Real images, for pictures that show some.
        labels: Their classes.
        shown: What these are.

    Returns:
        The files of the pictures.
    """
    written = []
    with torch.random.fork_rng([trainer.device] if trainer.device.type == "cuda" else []):
        with _warning_only(f"pictures of step {trainer.steps_done}"):
            for name, pictures in trainer.pictures(images, labels).items():
                with _warning_only(f"{name} of step {trainer.steps_done}"):
                    if isinstance(pictures, Picture) and isinstance(pictures.images, Mapping):
                        pictures = replace(pictures, caption=shown)
                    written.append(run.save_images(f"{name}-{trainer.steps_done:06d}", pictures))
        with _warning_only("plot"):
            run.plot(history, trainer.curves)
    return written


@contextmanager
def _warning_only(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever it is, the training is worth more
        warnings.warn(f"no {what}: {type(error).__name__}: {error}", stacklevel=4)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _summarise(pending: list[dict[str, Tensor]], step: int, run: RunFolder | None) -> dict[str, float]:
    """Average what the last steps returned, each name over those that have it; raise if any is not finite."""
    places = [(name, index) for index, values in enumerate(pending) for name in values]
    # One transfer from the accelerator for all steps.
    scalars = torch.stack([pending[index][name] for name, index in places]).float()
    values = mean_over_processes(scalars).double().cpu()
    bad = (~values.isfinite()).nonzero()
    if len(bad) > 0:
        name, index = places[bad[0]]
        raise _not_finite(f"{name} is {values[bad[0]].item()} at step {step - len(pending) + 1 + index}", run)
    columns: dict[str, list[float]] = {}
    for (name, _), value in zip(places, values.tolist(), strict=True):
        columns.setdefault(name, []).append(value)
    return {"step": step, **{name: math.fsum(column) / len(column) for name, column in columns.items()}}


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
    names = [name for panel in curves for each in panel for name in (each, f"val_{each}")]
    values = [f"{name}={f'{row[name]:#.4g}'.rstrip('.')}" for name in names if name in row]
    waiting = f", {row['data_wait']:.0%} of the time waiting for data" if row["data_wait"] >= 0.1 else ""
    return ", ".join([*values, f"{row['images_per_s']:.0f} images/s"]) + waiting


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    """Get the state of this process's random number generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _resume(trainer: Trainer, run: RunFolder) -> list[dict[str, float]]:
    """Put everything back that the run's checkpoint holds; return the rows of statistics up to there."""
    state = load_checkpoint(run.path)
    with _blaming_checkpoint(run):
        rng = state["rng"]
        if len(rng) != world_size():
            raise CheckpointError(f"the run had {len(rng)} processes, and now there are {world_size()}")
        for states in rng:  # every process looks at all of them, so that none goes on alone
            torch.Generator().set_state(states["cpu"])
        trainer.load_state_dict(state)
        torch.set_rng_state(rng[rank()]["cpu"])
        if "cuda" in rng[rank()] and trainer.device.type == "cuda":
            torch.cuda.set_rng_state(rng[rank()]["cuda"], trainer.device)
    # One process writes the file, the others wait for it.
    rows = run.rows_until(state["step"]) if rank() == 0 else []
    return gather_objects(rows)[0]


@contextmanager
def _blaming_checkpoint(run: RunFolder) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of odd values: the error says it all
            yield
    except CheckpointError:
        raise
    except Exception as error:  # a file may hold anything, and so anything may be raised
        what = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else error
        raise CheckpointError(f"{run.checkpoint} does not fit what is trained, or is damaged: {what}") from error


@contextmanager
def _progress(show: bool, initial: int, total: int) -> Iterator[Callable[[int, str | None], None]]:
    """Yield what shows the number of a step, and a text if there is one: a bar on a terminal, else lines."""
    if show and _terminal_width() > 0:
        with optional_import("tqdm").tqdm(initial=initial, total=total, unit="step", mininterval=0.2) as bar:

            def update(step: int, text: str | None) -> None:
                if text is not None:
                    bar.set_postfix_str(text, refresh=False)
                bar.update(step - bar.n)

            yield update
        return

    def write(step: int, text: str | None) -> None:
        if show and text is not None:
            with suppress(OSError):  # a full disk, say: the training is worth more
                print(f"step {step}/{total}: {text}", file=sys.stderr, flush=True)

    yield write


def _terminal_width() -> int:
    """Return the columns of the terminal that stderr is; 0 if it is none, or does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else 0
    except (OSError, ValueError):
        return 0


@contextmanager
def _deferred_signals(trainer: Trainer, where: Callable[[], str]) -> Iterator[list[int]]:
    """Note Ctrl-C, SIGTERM and SIGHUP, so that checkpoints are taken between two steps and never within one.

    Args:
        trainer: What is trained.
        where: Says what is saved.

    Yields:
        The signals that have come.
    """
    caught: list[int] = []

    def on_signal(signum: int, frame: Any) -> None:
        # torchrun passes on what the terminal has sent already, and schedulers repeat themselves.
        if caught and signum == signal.SIGINT and world_size() == 1:
            raise KeyboardInterrupt(f"stopped at once, after step {trainer.steps_done}; {where()}")
        caught.append(signum)

    if threading.current_thread() is not threading.main_thread():  # only the main thread sees signals
        yield caught
        return
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # One that is ignored, as under nohup, and a handler of the program's stay.
    ours = {s: h for s in signals if (h := signal.getsignal(s)) in (signal.SIG_DFL, signal.default_int_handler)}
    try:
        for signum in ours:
            signal.signal(signum, on_signal)
        yield caught
    finally:
        for signum, handler in ours.items():
            signal.signal(signum, handler)
