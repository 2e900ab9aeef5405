"""``genimg-fast train``."""

import argparse
import ctypes
import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from genimg_fast._close_names import invalid_choice
from genimg_fast._native import get_backend, set_backend
from genimg_fast._signatures import Option, options_of
from genimg_fast._version import __version__
from genimg_fast.cli.arguments import Device, Parser, add_command, blaming, ending_at_signals, find_device, say
from genimg_fast.cli.commands import add_option
from genimg_fast.cli.option_files import OptionFile, write_options
from genimg_fast.data import ImageDataset, UnpairedImages
from genimg_fast.models.checkpoint import CheckpointError, find_checkpoint
from genimg_fast.models.pretrained import read_config
from genimg_fast.options import Folder, OptionError, Reader, Share, integers
from genimg_fast.training import (
    Callback,
    MLflowLogger,
    RunFolder,
    TensorBoardLogger,
    Trainable,
    Trainer,
    WandbLogger,
    find_trainable,
    fit,
    list_trainables,
)
from genimg_fast.training.data_kinds import Loaded
from genimg_fast.training.processes import gather_objects, process_group, rank, world_size


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where a training runs and writes: the options that are the same whatever is trained.

    Args:
        val_split: Hold this share of the data out, for val_loss, pictures and eval.
        val_data: Other data to hold out, of the kind of --data.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; ``auto``: a GPU if there is one.
        backend: Fused kernels where they pay, always, or never; default: as GENIMG_FAST_BACKEND says, else auto.
        sync_batch_norm: Batch statistics over all processes of torchrun.
        out: Folder of all runs.
        resume: Run folder to go on with; ``auto``: newest of this model and data, if any.
        scale: Enlarge pictures N times; default: until an image has 64 pixels a side.
        tensorboard: Write statistics for TensorBoard as well.
        wandb: Send statistics and pictures to Weights & Biases.
        mlflow: Send statistics and pictures to MLflow.
    """

    val_split: Share | None = None
    val_data: Annotated[str, Reader(str, "NAME|FOLDER")] | None = None
    device: Device = "auto"
    backend: Literal["auto", "native", "reference"] | None = None
    sync_batch_norm: bool = False
    out: Folder = Path("runs")
    resume: Annotated[str, Reader(str, "RUN|auto")] | None = None
    scale: Annotated[int, integers(1, 64)] | None = None
    tensorboard: bool = False
    wandb: bool = False
    mlflow: bool = False


_LOGGERS: dict[str, Callable[[], Callback]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MLflowLogger,
}
_OF_THE_LOOP = tuple(options_of(fit))
_GROUPS = {
    "data": ("val_split", "val_data"),
    "training": ("device",),
    "speed": ("backend", "sync_batch_norm"),
    "output": ("out", "resume", "scale", *_LOGGERS),
}


class _TellStep(Callback):
    def on_start(self, run: RunFolder | None, step: int) -> None:
        say(f"going on at step {step}")


def add(commands: Any) -> None:
    """Add the command, with a subcommand for each model."""
    train = add_command(commands, "train", fit_and_report, "Train a model; write a numbered run folder.", """
        genimg-fast train dcgan --data digits
        genimg-fast train my_models.py:TinyGAN --data faces/
        genimg-fast train dcgan --lr 1e-4 --print-config > dcgan.yaml
        genimg-fast train dcgan --config dcgan.yaml --seed 1
    """)  # fmt: skip
    models = train.add_subparsers(title="models", dest="model", required=True)
    for name in list_trainables():
        _add_model(models, name, find_trainable(name))
    train.prepare = partial(_add_what_is_named, train, models)


def _add_what_is_named(train: Parser, models: Any, words: list[str]) -> list[str]:
    """Add subcommands for models of the user's; put the one that a file of options is for in front of it."""
    file = None
    if words and words[0].startswith("-") and (file := _option_file(train, words)) is not None:
        with train.blaming("--config"):
            if _model_of(file) is None:
                raise ValueError(f"{file.path} has no model, such as 'model: dcgan', and none stands before it")
            words = [(file.model() or ("", ""))[1], *words]
    for name in list_trainables():
        if name not in models.choices:
            _add_model(models, name, find_trainable(name))
    if words and ".py" in words[0]:
        with train.blaming("model"):
            _add_model(models, words[0], find_trainable(words[0]))
    elif words and words[0] not in models.choices and not words[0].startswith("-"):
        train.error(f"argument model: {invalid_choice(words[0], models.choices, ', or FILE.py:NAME for yours')}")
    if file is not None:
        models.choices[words[0]].set_defaults(option_file=file)
    return words


def _model_of(file: OptionFile) -> Trainable | None:
    """Find what a file of options is for, if it says so."""
    where, name = file.model() or ("", "")
    if not name:
        return None
    try:
        return find_trainable(name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _add_model(models: Any, name: str, thing: Trainable) -> None:
    new = add_command(models, name, fit_and_report, thing.text, "\n".join(thing.examples))
    groups = session_and_options(thing)
    for title, options in groups.items():
        group = new.add_argument_group(title)
        for option in options.values():
            add_option(group, option)
            if option.type is bool and option.default is False:  # for what a file of options turns on
                no = f"--no-{option.flag.removeprefix('--')}"
                group.add_argument(
                    no, dest=option.name, action="store_false", default=False, help=argparse.SUPPRESS
                )
    group = new.add_argument_group("file of options")
    group.add_argument("--config", metavar="FILE.yaml", help="file to take options from, -: stdin; flags win")
    group.add_argument("--print-config", action="store_true", help="print all options as such a file, and exit")
    required = [f"{a.option_strings[0]} {a.metavar}" for a in new._actions if a.required]
    new.usage = " ".join(["%(prog)s", *required, "[options]"])
    new.set_defaults(thing=thing)
    new.prepare = partial(_use_file, new, thing, groups)


def session_and_options(thing: Trainable) -> dict[str, dict[str, Option]]:
    """Get all options of a training, by group and name."""
    session, groups = options_of(Session), thing.options()
    return {title: options | {n: session[n] for n in _GROUPS.get(title, ())} for title, options in groups.items()}


def _option_file(parser: Parser, words: list[str]) -> OptionFile | None:
    """Read the file of options that the command line names, if it does."""
    paths = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    paths += [path for word, path in itertools.pairwise(words) if word == "--config"]
    if not paths:
        return None
    with parser.blaming("--config"):
        if len(paths) > 1:
            raise ValueError(f"is given {len(paths)} times, and takes one file")
        return OptionFile(paths[-1])


def _use_file(
    parser: Parser,
    thing: Trainable,
    groups: Mapping[str, Mapping[str, Option]],
    words: list[str],
) -> list[str]:
    """Make what a file of options says the defaults."""
    file: OptionFile | None = parser.get_default("option_file") or _option_file(parser, words)
    if file is not None:
        with parser.blaming("--config"):
            values = file.values({name: option for options in groups.values() for name, option in options.items()})
            model = _model_of(file)
            if model is not None and model.name != thing.name:
                where, _ = file.model() or ("", "")
                raise ValueError(f"{where}: is {model.name}, and the command trains {thing.name}")
        parser.set_defaults(**values)
        for action in parser._actions:
            action.required = action.required and action.dest not in values
    return words


def fit_and_report(args: argparse.Namespace) -> int:
    """Train, or print the options; see :func:`run_training`."""
    groups = session_and_options(args.thing)
    values = {name: o.finished(getattr(args, name)) for options in groups.values() for name, o in options.items()}
    if args.print_config:
        named = {title: {name: values[name] for name in options} for title, options in groups.items()}
        model = args.thing.name if args.thing.code is None else f"{args.thing.code}:{args.thing.name}"
        print(write_options(model, named), end="")
        return 0
    with args.parser.explaining():
        run_training(args.thing, values, flags=args.parser.flags())
    return 0


def run_training(
    thing: Trainable, values: Mapping[str, Any], *, flags: Mapping[str, str] | None = None
) -> tuple[RunFolder, Trainer, Any]:
    """Train, in one or more processes, and print where everything is.

    Args:
        thing: What to train.
        values: Values of options, its own and those of a :class:`Session`; others have their defaults.
        flags: What the user knows options by, for messages.

    Returns:
        The run folder, the trainer with the model it has trained, and the data set.

    Raises:
        OptionError: If an option's value makes no sense.
    """
    session = Session(**{name: value for name, value in values.items() if name in options_of(Session)})
    given = {name: value for name, value in values.items() if name not in options_of(Session)}
    options = thing.resolve(**given)
    before = _run_before(thing, options, session)
    if before is not None:
        with suppress(OSError, ValueError):  # what is wrong with the run is told when it is opened
            options = thing.resolve(read_config(find_checkpoint(before).parent), **given)
    _keep_freed_memory()
    with process_group(find_device(session.device)) as device:
        return _run_training(thing, options, session, device, before, flags or {})


def _run_before(thing: Trainable, options: Mapping[str, Any], session: Session) -> Path | None:
    """Find the run to go on with."""
    if session.resume != "auto":
        return None if session.resume is None else Path(session.resume)
    with blaming("resume"):
        return RunFolder.latest(session.out, _run_name(thing, options))


def _run_name(thing: Trainable, options: Mapping[str, Any]) -> str:
    return "-".join([thing.name, *(Path(source).resolve().name for source in thing.data.sources(options))])


def _keep_freed_memory() -> None:
    """Let the C library keep up to 1 GiB that a step has freed for the next one, if it is glibc.

    It would give it back to the system, which clears it again: up to a tenth of a step of a DCGAN on the CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 32 << 20)  # the most that it takes
        mallopt(trim_threshold, 1 << 30)


def _run_training(
    thing: Trainable,
    options: dict[str, Any],
    session: Session,
    device: torch.device,
    before: Path | None,
    flags: Mapping[str, str],
) -> tuple[RunFolder, Trainer, Any]:
    _refuse(thing, {**options, **asdict(session)})
    with blaming("backend"):
        if session.backend is not None:
            set_backend(session.backend)
    with ending_at_signals("while the data was loaded"):
        loaded = _load(thing, options)
        options |= loaded.decided
        for note in loaded.notes if rank() == 0 else ():
            say(note)
        dataset, validation, held_out_config = _hold_out(thing, options, session, loaded)
    options["batch_size"] = _fit_batch_size(thing, options, dataset, loaded)
    if options["cuda_graph"] and device.type != "cuda":
        raise OptionError("cuda_graph", f"needs a GPU of NVIDIA's, and training is on {device}")
    if options["cuda_graph"] and world_size() > 1:
        raise OptionError("cuda_graph", f"is for one process, and there are {world_size()}")
    if options["batch_size"] % options["accumulate"] != 0:
        raise OptionError("accumulate", f"must divide {options['batch_size']}, the batch size")

    callbacks = [logger() for name, logger in _LOGGERS.items() if getattr(session, name)]
    if before is not None:
        callbacks.append(_TellStep())
    trainer = thing.make_trainer(dataset, options, device=device, sync_batch_norm=session.sync_batch_norm)
    if options["batch_size"] < 2 and any(isinstance(m, _BatchNorm) for m in trainer.model.modules()):
        raise OptionError("batch_size", "must be at least 2 for batch norm, got 1")
    recipe = getattr(trainer, "recipe", thing.recipe(options))
    model_args = thing.model_args(dataset, options)
    if rank() == 0 and model_args.get("num_classes") == 1:
        say(f"{thing.name} on one class only, {dataset.class_names[0]}: subfolders make classes")
    config = {
        "model": thing.name,
        **({} if thing.code is None else {"code": str(thing.code)}),
        "model_args": model_args,
        "data": options["data"],
        **loaded.config,
        **held_out_config,
        "image_size": options["image_size"],
        **thing.trainer_args(options),
        "recipe": asdict(recipe),
        "sync_batch_norm": session.sync_batch_norm,
        "batch_size": options["batch_size"],
        "processes": world_size(),
        "steps": options["steps"],
        "seed": options["seed"],
        "device": str(device),
        "backend": get_backend(),
        "versions": {"genimg_fast": __version__, "torch": str(torch.__version__)},
    }
    with blaming("shift"):
        dataset = thing.data.augmented(dataset, options)

    run = _open_run(thing, options, session, before, config, flags)
    run.scale = session.scale
    torch.manual_seed(options["seed"] + rank())  # each process draws its own noise
    if rank() == 0:
        sources = " ".join(thing.data.sources(options))
        source = session.val_data or sources
        held_out = "" if validation is None else f" ({len(validation)} of {source} held out)"
        what = f"{len(dataset)} {loaded.what} of {sources}{held_out}"
        layout = ", channels_last" if recipe.channels_last else ""
        say(f"{thing.name} on {what}, {device}{layout}, writing to {run.path}")
        if before is None and session.resume == "auto":
            say("no run to go on with: starting anew")
    with blaming("resume", (CheckpointError,)):
        fit(
            trainer,
            dataset,
            validation=validation,
            run=run,
            progress=True,
            callbacks=callbacks,
            resume=before is not None,
            **{name: options[name] for name in _OF_THE_LOOP if name in options},
        )
    if rank() == 0:
        pictures = [run.path / f"{thing.picture}-{trainer.steps_done:06d}.{ending}" for ending in ("png", "gif")]
        real = "held-out" if validation is not None else "training"
        of = "" if thing.picture == "samples" else f" of {real} {loaded.what.split()[0]}"
        told = "".join(f"{picture}{of}, " for picture in pictures if picture.is_file())
        say(f"done: {told}checkpoint {run.checkpoint}")
    return run, trainer, dataset


def _refuse(thing: Trainable, values: Mapping[str, Any]) -> None:
    """Find options that do not go together, or not with what is trained."""
    for name, reason in thing.refuses.items():
        if values[name]:
            raise OptionError(name, f"{thing.name} {reason}")
    if values["val_split"] and values["val_data"] is not None:
        raise OptionError("val_data", "not allowed with argument --val-split")


def _load(thing: Trainable, options: Mapping[str, Any]) -> Loaded:
    with blaming("data"):
        return thing.data.load(options)


def _hold_out(
    thing: Trainable, options: Mapping[str, Any], session: Session, loaded: Loaded
) -> tuple[Any, Any, dict[str, Any]]:
    """Get what to train on, what to validate on, if anything, and what config.json is to say about it."""
    dataset = thing.with_numbers(loaded.dataset)
    # What is not asked for is not written, so that runs of before can be resumed.
    if not session.val_split and session.val_data is None:
        return dataset, None, {}
    flag = "val_split" if session.val_split else "val_data"
    conditional = "num_classes" in thing.model_args(dataset, options)
    if session.val_split:
        with blaming(flag):
            training, held_out = dataset.split(session.val_split, seed=options["seed"])
        config: dict[str, Any] = {"val_split": session.val_split}
    else:
        source = str(session.val_data)
        if [Path(source).resolve()] == [Path(each).resolve() for each in thing.data.sources(options)]:
            raise OptionError(flag, f"{source} is the value of --data; --val-split holds a share of it out")
        channels = dataset[torch.zeros(1, dtype=torch.int64)][0].shape[-3]
        with blaming(flag):
            other = thing.data.load({**options, "data": source, "c_dim": channels})
            held_out = other.dataset
            if isinstance(dataset, ImageDataset) and conditional:
                held_out = held_out.with_classes(dataset.class_names)
            for ours, theirs in zip(_of_images(dataset), _of_images(held_out), strict=True):
                if common := _count_common(ours, theirs):
                    raise ValueError(f"{common} of its {len(theirs)} images are among those to train on, too")
        training, config = dataset, {"val_data": source}
        config |= {f"val_{name}": other.config.get(name) for name in ("sha256", "files")}
    if conditional:
        empty = set(range(len(dataset.class_names))) - set(training.labels.tolist())
        if empty:
            raise OptionError(flag, f"leaves no image of class {dataset.class_names[min(empty)]} to train on")
    return training, held_out, config


def _of_images(dataset: Any) -> tuple[ImageDataset, ...]:
    """Get the data sets of images that data consists of; sequences are none."""
    if isinstance(dataset, UnpairedImages):
        return dataset.a, dataset.b
    return (dataset,) if isinstance(dataset, ImageDataset) else ()


def _count_common(training: ImageDataset, held_out: ImageDataset) -> int:
    """Count held-out images that are, to the byte, training images as well."""
    known = {hash(image.numpy().tobytes()) for image in training.images}
    return sum(hash(image.numpy().tobytes()) in known for image in held_out.images)


def _fit_batch_size(thing: Trainable, options: Mapping[str, Any], dataset: Any, loaded: Loaded) -> int:
    """Get the default batch size, or as much of it as there is, unless another one is asked for."""
    # A batch has as many of either kind.
    number = min((len(each) for each in _of_images(dataset)), default=len(dataset))
    most = number // world_size()
    each = f" for each of {world_size()} processes" if world_size() > 1 else ""
    more = f"; {loaded.more}" if loaded.more else ""
    size, source = options["batch_size"], " ".join(thing.data.sources(options))
    if size is not None:
        if size > most:
            which = " of the smaller kind" if number < len(dataset) else ""
            words = f"must be at most {most}, the number of {loaded.what}{which} in {source}{each}{more}"
            raise OptionError("batch_size", words)
        return size
    size = min(thing.batch_size, most - most % options["accumulate"])
    if size < min(2, thing.batch_size):
        raise OptionError("data", f"{number} {loaded.what} in {source} are too few{each}{more}")
    if size < thing.batch_size and rank() == 0:
        say(f"batch size {size} instead of {thing.batch_size}: there are {number} {loaded.what}{more}")
    return size


def _open_run(
    thing: Trainable,
    options: Mapping[str, Any],
    session: Session,
    before: Path | None,
    config: dict[str, Any],
    flags: Mapping[str, str],
) -> RunFolder:
    """Open the folder of the run before again, or make a new one."""
    settings: dict[str, Any] = {"config": config, "names": flags, "unwritten": thing.unwritten()}
    if before is not None:
        with blaming("resume"):
            try:
                return RunFolder.reopen(before, **settings)
            except CheckpointError as error:
                older = (
                    RunFolder.find(session.out, _run_name(thing, options))[1:] if session.resume == "auto" else []
                )
                fitting = next((run for run in older if _can_go_on(run, settings)), None)
                if fitting is None:
                    raise
                raise CheckpointError(f"{error}; those of {fitting} are the same") from error
    with blaming("out"):
        # The first process makes the folder, the others hear of it.
        made = RunFolder.create(session.out, _run_name(thing, options), config).path if rank() == 0 else None
        return RunFolder(gather_objects(made)[0], config)


def _can_go_on(run: Path, settings: dict[str, Any]) -> bool:
    with suppress(OSError, ValueError):
        RunFolder.reopen(run, **settings)
        return True
    return False
