"""What can be trained, by name: a model with its trainer, its kind of data, its defaults and its picture."""

import importlib.util
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import torch

from genimg_fast import nn
from genimg_fast._close_names import did_you_mean
from genimg_fast._signatures import REQUIRED, Option, document, options_of
from genimg_fast.data import ImageDataset
from genimg_fast.models.registry import create_model, is_model, register_model
from genimg_fast.options import ConvImageSize
from genimg_fast.training.data_kinds import DataKind, Follows, images
from genimg_fast.training.loop import fit
from genimg_fast.training.trainer import Recipe

_Model = TypeVar("_Model", bound=Callable[..., nn.Module])
_trainables: dict[str, "Trainable"] = {}
_files: dict[Path, list[str]] = {}  # names that the files of the user's have registered

# Parameters of a model that follow from the data, or from the data's options.
_FROM_DATA: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "c_dim": lambda dataset, options: _channels(dataset),
    "in_channels": lambda dataset, options: _channels(dataset),
    "out_channels": lambda dataset, options: _channels(dataset),
    "image_size": lambda dataset, options: options["image_size"],
    "n_blocks": lambda dataset, options: int(math.log2(options["image_size"] // 4)),
    "num_classes": lambda dataset, options: len(dataset.class_names),
    "num_images": lambda dataset, options: len(dataset),
}
# A model that has a default of these does without.
_ONLY_IF_REQUIRED = ("num_classes", "num_images")
# Names that the command has for itself: parameters of a model or a trainer cannot have them.
_RESERVED = frozenset(
    [
        "backend",
        "code",
        "config",
        "device",
        "execute",
        "help",
        "mlflow",
        "model",
        "option_file",
        "out",
        "parser",
        "print_config",
        "resume",
        "scale",
        "sync_batch_norm",
        "tensorboard",
        "thing",
        "val_data",
        "val_split",
        "wandb",
    ]
)
_SPEED = ("precision", "channels_last", "compile", "cuda_graph")
_TRAINING = ("steps", "batch_size", "seed")


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """Something that can be trained, with all that ``genimg-fast train`` has to know of it.

    Its options are the parameters of its model, its trainer, its kind of data, of :class:`Recipe` and of
    :func:`fit`: signatures and docstrings say which values they take and what they mean.

    Args:
        name: What users call it.
        model: Class of the model, or a function that makes one. Parameters that follow from the data are no
            options: ``c_dim``, ``in_channels``, ``out_channels``, ``image_size``, ``n_blocks`` and, if they have
            no default, ``num_classes`` and ``num_images``.
        trainer: Class of its trainer, which takes the model.
        data: Kind of data.
        text: What training it is, in a line.
        examples: Command lines.
        defaults: Of options, where they are others than those of signatures.
        refuses: Options that it cannot do with, and why, to stand behind its name.
        picture: Name of the trainer's picture that tells most.
        code: File of the user's that has registered it.

    Example:
        >>> import genimg_fast as gf
        >>> dcgan = gf.training.find_trainable("dcgan")
        >>> options = dcgan.resolve(channels=4, image_size=16)
        >>> options["lr"], options["steps"]
        (0.0005, 1500)
        >>> trainer = dcgan.make_trainer(gf.data.load_dataset("digits", image_size=16), options)
        >>> trainer.model.image_size
        16
    """

    name: str
    model: Callable[..., nn.Module]
    trainer: Callable[..., Any]
    data: DataKind = images
    text: str = ""
    examples: Sequence[str] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    picture: str = "samples"
    code: Path | None = None

    @property
    def batch_size(self) -> int:
        """Size of a batch, where none is asked for and there are enough data."""
        return self.defaults.get("batch_size", options_of(fit)["batch_size"].default)

    def options(self) -> dict[str, dict[str, Option]]:
        """Get the options, by group and name.

        Raises:
            ValueError: If two things have an option of one name, a parameter of the model is neither an option
                nor has a default, a parameter cannot be given by name, or there is a default of no option.
        """
        self._check_parameters()
        engine, recipe = options_of(fit), options_of(Recipe)
        groups = {
            "data": _without(self._data_options(), "seed"),
            "model": self._model_options(),
            "training": {
                **_only(engine, _TRAINING),
                **_without(options_of(self.trainer), "seed"),
                **_without(recipe, "decay_steps", *_SPEED),
            },
            "speed": _only(recipe, _SPEED),
            "output": _without(engine, "progress", "resume", *_TRAINING),
        }
        names = [name for group in groups.values() for name in group]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{self.name} has two options named {twice[0]}")
        if reserved := [name for name in names if name in _RESERVED]:
            raise ValueError(
                f"{self.name}: the parameter {reserved[0]} has the name of something of the command's"
            )
        if negated := [o.name for group in groups.values() for o in group.values() if f"no_{o.name}" in names]:
            raise ValueError(f"{self.name}: no_{negated[0]} is what turns off {negated[0]}: call it otherwise")
        if strange := [name for name in self.refuses if name not in {*names, *_RESERVED}]:
            raise ValueError(f"{self.name} refuses {strange[0]}, and has no such option")
        if unknown := [name for name in self.defaults if name not in names]:
            raise ValueError(f"{self.name} has a default of {unknown[0]}, and no such option")
        return {
            title: {name: self._with_default(option) for name, option in group.items()}
            for title, group in groups.items()
        }

    def _check_parameters(self) -> None:
        _, *of_trainer = inspect.signature(self.trainer).parameters.values()  # the first is the model
        of_model = inspect.signature(self.model).parameters.values()
        for whose, parameters in ("model", of_model), ("trainer", of_trainer):
            for each in parameters:
                if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
                    raise ValueError(f"{self.name}: the parameter {each} of its {whose} cannot be given by name")

    def _data_options(self) -> dict[str, Option]:
        """Get those of the data, at a size of images that the model takes."""
        options, model = self.data.options(), options_of(self.model)
        size = options["image_size"]
        if (blocks := model.get("n_blocks")) is not None:
            size = replace(size, type=ConvImageSize)
            if blocks.default is not REQUIRED:
                size = replace(size, default=4 * 2**blocks.default)
        elif (taken := model.get("image_size")) is not None:
            size = replace(size, type=taken.type, default=taken.default)
        if size.default is REQUIRED:
            size = replace(size, default=32)
        return {**options, "image_size": size}

    def _model_options(self) -> dict[str, Option]:
        found = {}
        options = options_of(self.model)
        for name, parameter in inspect.signature(self.model).parameters.items():
            if name in _FROM_DATA:
                continue
            if name in options:
                found[name] = replace(options[name], positional=False)
            if parameter.default is REQUIRED and (name not in options or name not in self.defaults):
                raise ValueError(f"{self.name}: the parameter {name} of its model needs a type and a default")
        return found

    def _with_default(self, option: Option) -> Option:
        default = {**self.data.defaults, **self.defaults}.get(option.name, option.default)
        if option.name == "steps" and default is REQUIRED:
            default = 1000
        if option.name == "batch_size":
            default = Follows(f"{default}, or all if there are fewer")
        if isinstance(default, Follows):
            return replace(option, default=None, optional=True, note=f"; default: {default.words}")
        return replace(option, default=default)

    def resolve(self, recorded: Mapping[str, Any] | None = None, /, **given: Any) -> dict[str, Any]:
        """Get the values of all options: those given, and the defaults of the others.

        Args:
            recorded: Settings of the run to go on with: where its trainer or model was given None, that is kept,
                and so is the memory format that it took.
            **given: Values by name. None stands for a default that follows from other options, or, as of
                ``batch_size`` and of ``frames``, from the data.

        Raises:
            TypeError: If there is no such option.
        """
        options = {name: option for group in self.options().values() for name, option in group.items()}
        for name in given:
            if name not in options:
                raise TypeError(f"{self.name} has no option {name}{did_you_mean(name, options)}")
        values = {name: o.default for name, o in options.items() if o.default is not REQUIRED} | given
        settings = recorded or {}
        before = settings.get("recipe")
        if isinstance(before, dict) and values["channels_last"] is None:
            values["channels_last"] = before.get("channels_last", False)
        arguments = settings.get("model_args")
        settings = {**settings, **(arguments if isinstance(arguments, dict) else {})}
        for name, default in {**self.data.defaults, **self.defaults}.items():
            if isinstance(default, Follows) and values[name] is None and settings.get(name, 0) is not None:
                values[name] = default.value(values)
        return values

    def model_args(self, dataset: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Get the arguments of the model.

        Args:
            dataset: Images, or sequences, to train on.
            options: What :meth:`resolve` returned.
        """
        arguments = {}
        for name, parameter in inspect.signature(self.model).parameters.items():
            if name in _FROM_DATA:
                if name not in _ONLY_IF_REQUIRED or parameter.default is REQUIRED:
                    arguments[name] = _FROM_DATA[name](dataset, options)
            elif name in options:
                arguments[name] = options[name]
        return arguments

    def trainer_args(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Get the arguments of the trainer, from what :meth:`resolve` returned."""
        return {name: options[name] for name in _without(options_of(self.trainer), "seed")}

    def recipe(self, options: Mapping[str, Any]) -> Recipe:
        """Get the recipe, from what :meth:`resolve` returned."""
        steps = 0 if options["schedule"] == "constant" else options["steps"]
        arguments = {name: options[name] for name in _without(options_of(Recipe), "decay_steps")}
        return Recipe(**arguments, decay_steps=steps)

    def make_trainer(
        self,
        dataset: Any,
        options: Mapping[str, Any],
        *,
        device: torch.device | str = "cpu",
        sync_batch_norm: bool = False,
    ) -> Any:
        """Make a model for data, freshly initialised, and its trainer.

        Args:
            dataset: Images, or sequences, to train on.
            options: What :meth:`resolve` returned.
            device: Where to train.
            sync_batch_norm: Whether all processes share their batch statistics.

        Raises:
            ValueError: If the model or the trainer finds something wrong.
        """
        torch.manual_seed(options["seed"])
        model = create_model(self.name, **self.model_args(dataset, options))
        if sync_batch_norm:
            model = nn.SyncBatchNormAct.convert_sync_batchnorm(model)
        taken = inspect.signature(self.trainer).parameters
        ours = {"recipe": self.recipe(options), "seed": options["seed"]}
        ours = {name: value for name, value in ours.items() if name in taken}
        trainer = self.trainer(model.to(device), **ours, **self.trainer_args(options))
        if hasattr(trainer, "check_data"):
            trainer.check_data(dataset[torch.zeros(1, dtype=torch.int64)][0])
        return trainer

    def with_numbers(self, dataset: Any) -> Any:
        """Get the data as the model takes them: with the numbers of images as labels if it tells images apart."""
        if "num_images" not in inspect.signature(self.model).parameters:
            return dataset
        return ImageDataset(dataset.images, torch.arange(len(dataset)))

    def unwritten(self) -> dict[str, Any]:
        """Get what a ``config.json`` means that does not have a setting, since it is older than the option."""
        return {
            "model_args": _defaults(options_of(self.model)),
            **_defaults(options_of(self.trainer)),
            "recipe": asdict(Recipe(channels_last=False)),
        }


def trainable(
    name: str,
    *,
    trainer: Callable[..., Any],
    data: DataKind = images,
    text: str = "",
    examples: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    refuses: Mapping[str, str] | None = None,
    picture: str = "samples",
) -> Callable[[_Model], _Model]:
    """Register a model with what it takes to train it: ``genimg-fast train`` then knows it.

    Its parameters, those of the trainer and those of its kind of data become flags; their docstrings become the
    help. For the arguments, see :class:`Trainable`. :func:`genimg_fast.models.create_model` knows the model, too.

    Args:
        name: What users call it, lower case with hyphens.
        trainer: Class of its trainer.
        data: Kind of data.
        text: What training it is, in a line; by default, the first line of the model's docstring.
        examples: Command lines.
        defaults: Of options, where they are others than those of signatures.
        refuses: Options that it cannot do with, and why.
        picture: Name of the trainer's picture that tells most.

    Returns:
        A decorator for the class of the model.

    Raises:
        ValueError: If the name is taken, or what is registered does not fit together.

    Example:
        >>> import genimg_fast as gf
        >>> @gf.training.trainable("narrow-gan", trainer=gf.training.GANTrainer, defaults={"lr": 1e-3})
        ... class NarrowGAN(gf.models.DCGAN):
        ...     def __init__(self, z_dim: int = 8, c_dim: int = 1, n_blocks: int = 2):
        ...         super().__init__(z_dim, c_dim, channels=4, n_blocks=n_blocks)
        >>> gf.training.find_trainable("narrow-gan").resolve()["z_dim"]
        8
    """

    def register(model: _Model) -> _Model:
        new = Trainable(
            name=name, model=model, trainer=trainer, data=data, picture=picture, examples=examples,
            text=text or document(model).short_description or name, defaults=defaults or {}, refuses=refuses or {},
        )  # fmt: skip
        if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name):
            raise ValueError(f"a name is in lower case with hyphens, such as tiny-gan, got {name!r}")
        if isinstance(model, type) and not issubclass(model, torch.nn.Module):
            raise ValueError(f"{name}: {model.__name__} is no torch.nn.Module")
        if name in _trainables:
            raise ValueError(f"something named {name!r} is already registered: {_trainables[name].model!r}")
        new.options()
        if not is_model(name, model):
            register_model(name)(model)
        _trainables[name] = new
        return model

    return register


def list_trainables(pattern: str = "*") -> list[str]:
    """List what can be trained.

    Args:
        pattern: A shell-style pattern that the names have to match.

    Returns:
        The matching names, in the order in which they were registered.

    Example:
        >>> import genimg_fast as gf
        >>> gf.training.list_trainables("frame*")
        ['frame-predictor', 'frame-filler']
    """
    return [name for name in _trainables if fnmatchcase(name, pattern)]


def find_trainable(name: str) -> Trainable:
    """Find what can be trained by its name.

    Args:
        name: One of :func:`list_trainables`; or ``FILE.py:NAME`` for what a file of the user's registers, by that
            name or the class's, or ``FILE.py`` if that is one thing only. The file is run.

    Returns:
        What it is made of.

    Raises:
        ValueError: If there is no such thing; the message lists similar names.

    Example:
        >>> import genimg_fast as gf
        >>> gf.training.find_trainable("vae").trainer.__name__
        'VAETrainer'
    """
    file, _, wanted = name.rpartition(":") if not name.endswith(".py") else (name, "", "")
    if not file.endswith(".py"):
        if name not in _trainables:
            hint = did_you_mean(name, _trainables) or f"; known: {', '.join(_trainables)}"
            raise ValueError(f"nothing named {name!r} can be trained{hint}")
        return _trainables[name]
    found = [_trainables[each] for each in run_file(file)]
    if not found:
        raise ValueError(f"{file} registers no model: put @gf.training.trainable(...) above its class")
    names = {each.name: each for each in found} | {getattr(e.model, "__name__", e.name): e for e in found}
    if wanted in names:
        return names[wanted]
    if len(found) == 1 and not wanted:
        return found[0]
    known = ", ".join(each.name for each in found)
    if not wanted:
        raise ValueError(f"{file} has several models: {file}:NAME is one, of {known}")
    raise ValueError(f"{file} has no model {wanted}{did_you_mean(wanted, names) or f', only {known}'}")


def run_file(path: str | Path) -> list[str]:
    """Run a Python file of the user's, once, and get the names of what it has registered.

    Its folder is where it imports from, as if it were the program.

    Raises:
        ValueError: If there is no such file, or it fails; the message names the line.
    """
    file = Path(path).resolve()
    if file not in _files:
        if not file.is_file():
            raise ValueError(f"there is no file {path}")
        if file.stem in sys.modules:
            raise ValueError(f"{path} has the name of another module: call it something else than {file.stem}")
        before = set(_trainables)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path} is no Python file: its name must end with .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        sys.path.insert(0, str(file.parent))
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # a file may raise anything
            del sys.modules[file.stem]
            for name in set(_trainables) - before:
                del _trainables[name]
            raise ValueError(f"{path} fails{_line_in(file, error)}: {type(error).__name__}: {error}") from error
        _files[file] = [name for name in _trainables if name not in before]
        for name in _files[file]:
            _trainables[name] = replace(_trainables[name], code=file)
    return _files[file]


def _line_in(file: Path, error: BaseException) -> str:
    """Say in which line of a file an error has come up."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f" in line {error.lineno}"
    lines = [s.lineno for s in traceback.extract_tb(error.__traceback__) if s.filename == str(file)]
    return f" in line {lines[-1]}" if lines else ""


def _channels(dataset: Any) -> int:
    return dataset[torch.zeros(1, dtype=torch.int64)][0].shape[-3]


def _only(options: dict[str, Option], names: Sequence[str]) -> dict[str, Option]:
    return {name: options[name] for name in names}


def _without(options: dict[str, Option], *names: str) -> dict[str, Option]:
    return {name: option for name, option in options.items() if name not in names}


def _defaults(options: dict[str, Option]) -> dict[str, Any]:
    return {name: option.default for name, option in options.items() if option.default is not REQUIRED}
