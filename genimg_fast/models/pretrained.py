"""Trained models in files: what a run has trained, and folders that other programs and the Hugging Face hub read.

A folder of a model holds ``config.json``, with the model's registered name and its arguments, and
``model.safetensors``, its weights. The folder of a run has the same ``config.json``, and a checkpoint.
"""

import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from genimg_fast import nn
from genimg_fast._close_names import did_you_mean
from genimg_fast._files import replacing
from genimg_fast.data.optional import optional_import
from genimg_fast.models.checkpoint import CheckpointError, find_checkpoint, load_checkpoint
from genimg_fast.models.registry import create_model, list_models, model_name

Source = str | os.PathLike[str]
_Model = TypeVar("_Model", bound="BaseModel")

_CONFIG, _WEIGHTS, _CHECKPOINT = "config.json", "model.safetensors", "checkpoint.pt"
_LONGEST_REASON = 300  # a model may have hundreds of parameters, each with a line of its own
# What the settings that commands look at have to be.
_FITS: dict[str, Callable[[Any], bool]] = {
    "model": lambda v: isinstance(v, str),
    "code": lambda v: isinstance(v, str),
    "model_args": lambda v: isinstance(v, dict) and all(isinstance(key, str) for key in v),
    "data": lambda v: isinstance(v, str) or (isinstance(v, list) and all(isinstance(path, str) for path in v)),
    "classes": lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v),
    "frames": lambda v: type(v) is int and v >= 1,
    "context": lambda v: v is None or (type(v) is int and v >= 1),
    "speed": lambda v: isinstance(v, list) and len(v) == 2 and all(type(s) in (int, float) for s in v),
    "crops": lambda v: type(v) is int and v >= 0,
    "seed": lambda v: type(v) is int and 0 <= v < 2**63,
    "skip_broken": lambda v: isinstance(v, bool),
    "memory": lambda v: v is None or (type(v) in (int, float) and v >= 0),
    "cache": lambda v: v is None or isinstance(v, str),
    "workers": lambda v: v is None or (type(v) is int and v >= 0),
    "direction": lambda v: v in ("a2b", "b2a"),
    "val_split": lambda v: type(v) is float and 0 < v < 1,
    "val_data": lambda v: isinstance(v, str),
    "val_sha256": lambda v: v is None or isinstance(v, str),
}


class BaseModel(nn.Module):
    """What all models here have in common: they know what they were built with, and go into files and come back.

    A subclass that is to be saved is registered, and its arguments are numbers, strings, lists of them, or None.

    Example:
        >>> import torch, genimg_fast as gf
        >>> @gf.models.register_model("my-layer")
        ... class MyLayer(gf.models.BaseModel):
        ...     def __init__(self, width: int = 4):
        ...         super().__init__()
        ...         self.layer = gf.nn.Linear(width, width)
        >>> MyLayer(width=3).save_pretrained("my-layer")
        >>> MyLayer.from_pretrained("my-layer").layer.in_features
        3
    """

    _built_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Remember the arguments. Copies and pickles, made without any, get them with the rest of the state."""
        self = super().__new__(cls)
        self.__dict__["_built_with"] = (args, kwargs)
        return self

    def save_pretrained(self, folder: Source, *, config: Mapping[str, Any] | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        Args:
            folder: Where to; made if it is missing.
            config: What else to say of the model, such as ``{"classes": ["cat", "dog"]}``, which the commands that
                use a model show.

        Raises:
            ValueError: If the class is not registered, an argument of the model is nothing that JSON holds, its
                state has more than plain tensors, or ``folder`` holds another model or a run, with a model of its
                own.
            TypeError: If ``config`` is nothing that JSON holds.
            OSError: If a file cannot be written.
            ImportError: If safetensors is missing.

        Example:
            >>> import torch, genimg_fast as gf
            >>> model = gf.models.MLPVAE(z_dim=2, image_size=8, hidden=(16,))
            >>> model.save_pretrained("my-vae")
            >>> loaded = gf.models.MLPVAE.from_pretrained("my-vae")
            >>> z = torch.randn(4, 2)
            >>> torch.equal(model.decode(z), loaded.decode(z))
            True
        """
        folder = Path(folder)
        settings = self._settings()
        before = read_config(folder) if (folder / _CONFIG).exists() else {}
        if before and not self._is_described_by(before):
            raise ValueError(f"{folder} holds another model: {before.get('model')!r}, or with other arguments")
        if (folder / _CHECKPOINT).exists():
            raise ValueError(f"{folder} is the folder of a run, which has a model: choose another one")
        text = json.dumps({**before, **(config or {}), **settings}, indent=2) + "\n"
        save_file = optional_import("safetensors.torch", "hub").save_file
        state = self.state_dict()
        if odd := [name for name, value in state.items() if type(value) is not Tensor]:
            what = f"{odd[0]} is of type {type(state[odd[0]]).__name__}"
            raise ValueError(f"{_WEIGHTS} holds whole, plain tensors, and {what}")
        # Copies, since the file takes no two that share memory.
        weights = {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / _WEIGHTS) as temporary:
            save_file(weights, temporary, {"format": "pt"})
        with replacing(folder / _CONFIG) as temporary:
            temporary.write_text(text)

    @classmethod
    def from_pretrained(cls: type[_Model], source: Source, **hub: Any) -> _Model:
        """Load a model that :meth:`save_pretrained` or a run has written, or one of the Hugging Face hub.

        Args:
            source: A folder, or a checkpoint, or ``"owner/name"`` on the hub, which is downloaded unless it has
                been before.
            **hub: For a model on the hub: arguments of ``huggingface_hub.snapshot_download``, such as
                ``revision``.

        Returns:
            The model, in float32, on the CPU, in evaluation mode.

        Raises:
            FileNotFoundError: If there is nothing of that name.
            ValueError: If it is damaged, unknown here, or not of this class.
            OSError: If it cannot be downloaded.
            ImportError: If safetensors, or huggingface_hub, is missing.

        Example:
            >>> import genimg_fast as gf
            >>> gf.models.DCGAN(c_dim=1, channels=4).save_pretrained("my-gan")
            >>> gf.models.DCGAN.from_pretrained("my-gan").sample(4).shape
            torch.Size([4, 1, 32, 32])
            >>> gf.models.BaseVAE.from_pretrained("my-gan")
            Traceback (most recent call last):
            ValueError: my-gan holds a DCGAN, not a BaseVAE
        """
        folder = Path(source)
        if not folder.exists() and _is_on_hub(source):
            folder = _download(str(source), hub)
        if folder.is_dir() and not any((folder / file).is_file() for file in (_WEIGHTS, _CHECKPOINT)):
            raise FileNotFoundError(f"{folder} holds neither {_WEIGHTS} nor {_CHECKPOINT}")
        model = load_run(folder)[0]
        if not isinstance(model, cls):
            raise ValueError(f"{source} holds a {type(model).__name__}, not a {cls.__name__}")
        return model

    def push_to_hub(self, repo: str, *, config: Mapping[str, Any] | None = None, **options: Any) -> str:
        """Upload what :meth:`save_pretrained` writes, and a model card, to the Hugging Face hub.

        Args:
            repo: Its name there: ``"owner/name"``.
            config: What else to say of the model; see :meth:`save_pretrained`.
            **options: Arguments of ``huggingface_hub.PyTorchModelHubMixin.push_to_hub``, such as ``private``,
                ``token`` or ``commit_message``.

        Returns:
            The address of the commit.

        Raises:
            ValueError: If the class is not registered.
            OSError: If it cannot be uploaded.
            ImportError: If safetensors or huggingface_hub is missing.
        """
        settings = self._settings()
        mixin: Any = optional_import("huggingface_hub", "hub").PyTorchModelHubMixin

        class Uploaded(mixin, library_name="genimg_fast", tags=["genimg_fast", settings["model"]]):  # type: ignore[call-arg]
            def _save_pretrained(_, save_directory: Path) -> None:
                self.save_pretrained(save_directory, config=config)

        return str(Uploaded().push_to_hub(repo, **options))

    def _settings(self) -> dict[str, Any]:
        """Get the model's name and all of its arguments."""
        args, kwargs = self._built_with
        return {"model": model_name(type(self)), "model_args": _arguments(type(self), *args, **kwargs)}

    def _is_described_by(self, config: dict[str, Any]) -> bool:
        """Whether settings, which may leave out arguments that have a default, are those of this model."""
        settings = self._settings()
        try:
            arguments = _arguments(type(self), **config.get("model_args", {}))
        except (TypeError, ValueError):
            return False
        return (config.get("model"), arguments) == (settings["model"], settings["model_args"])


def _arguments(cls: type[nn.Module], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Get all arguments of a model that is built like this, as JSON holds them."""
    signature = inspect.signature(cls)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(parameter.name)
    try:
        held: dict[str, Any] = json.loads(json.dumps(arguments))
    except TypeError as error:
        raise ValueError(f"an argument of this {cls.__name__} is nothing that JSON holds: {error}") from error
    return held


def load(path: Source) -> nn.Module:
    """Load a trained model.

    Args:
        path: A run folder, a checkpoint, or what :meth:`BaseModel.save_pretrained` has written.

    Returns:
        The model, on the CPU, in evaluation mode; of a run, with averaged weights if it has them.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a file is damaged, its model is unknown here, or it holds the weights of another one.

    Example:
        >>> import genimg_fast as gf
        >>> sizes = {"c_dim": 1, "channels": 4, "n_blocks": 1}
        >>> run = gf.training.RunFolder.create("runs", "dcgan-digits", {"model": "dcgan", "model_args": sizes})
        >>> trainer = gf.training.GANTrainer(gf.models.DCGAN(**sizes))
        >>> history = gf.training.fit(trainer, gf.data.load_dataset("digits", image_size=8), steps=2, run=run)
        >>> gf.models.load("runs/00000-dcgan-digits").sample(16).shape
        torch.Size([16, 1, 8, 8])
    """
    return load_run(path)[0]


def load_run(path: Source) -> tuple[nn.Module, dict[str, Any]]:
    """Load the trained model of a run and the settings it was trained with.

    It has averaged weights, if there are any; a GAN's discriminator has those that the generator trained against.

    Args:
        path: A run folder, a checkpoint, or what :meth:`genimg_fast.models.BaseModel.save_pretrained` has written.

    Returns:
        The model, on the CPU, in evaluation mode, and what ``config.json`` holds.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a file is damaged, its model is unknown here, or it holds the weights of another one.

    Example:
        >>> import genimg_fast as gf
        >>> sizes = {"c_dim": 1, "channels": 4, "n_blocks": 1}
        >>> run = gf.training.RunFolder.create("runs", "dcgan-digits", {"model": "dcgan", "model_args": sizes})
        >>> trainer = gf.training.GANTrainer(gf.models.DCGAN(**sizes))
        >>> history = gf.training.fit(trainer, gf.data.load_dataset("digits", image_size=8), steps=2, run=run)
        >>> model, config = gf.training.load_run(run.path)
        >>> config["model"]
        'dcgan'
    """
    path = Path(path)
    if (path / _WEIGHTS).is_file() and not (path / _CHECKPOINT).is_file():
        return _load_folder(path)
    state = load_checkpoint(path)
    averaged = state.get("ema")
    return _build(state["config"], f"checkpoint of {path}", state["model"], averaged), state["config"]


def find_run(path: Source) -> Path:
    """Find the folder that a model is in.

    Args:
        path: What :func:`load_run` takes.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = Path(path)
    return path if (path / _WEIGHTS).is_file() else find_checkpoint(path).parent


def read_config(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a folder.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON object.
    """
    file = folder / _CONFIG
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is damaged: no settings, but {type(config).__name__}")
    return config


def _load_folder(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Load what ``save_pretrained`` has written."""
    config = read_config(folder)
    file = folder / _WEIGHTS
    load_file = optional_import("safetensors.torch", "hub").load_file
    with open(file, "rb"):  # the errors of the system are those of Python, with the file's name
        pass
    try:
        weights: dict[str, Tensor] = load_file(file)
    except Exception as error:  # of a class of its own, which its Rust part defines
        raise CheckpointError(f"{file} is damaged: {error}") from error
    return _build(config, f"{_WEIGHTS} of {folder}", weights), config


def _build(
    config: dict[str, Any], where: str, weights: dict[str, Any], averaged: dict[str, Any] | None = None
) -> nn.Module:
    """Build the model that settings describe, and give it weights.

    Args:
        config: The settings.
        where: Where they come from, for messages.
        weights: The model's ``state_dict``.
        averaged: That of an average of it, if there is one.
    """
    if not {"model", "model_args"} <= config.keys():
        raise CheckpointError(
            f"the config of {where} does not say which model it is: 'model' and 'model_args' are missing"
        )
    for key, fits in _FITS.items():
        if key in config and not fits(config[key]):
            raise CheckpointError(f"the config of {where} is damaged: {key} is {config[key]!r}")
    name = config["model"]
    if name not in list_models():
        if "code" not in config:
            hint = did_you_mean(name, list_models()) or ";"
            own = "a model of yours needs its file: import that first, or genimg-fast --code FILE.py"
            raise CheckpointError(f"unknown model {name!r}{hint} {own}")
        # Not run from here: whoever made a checkpoint could name any file.
        file = config["code"]
        raise CheckpointError(f"{name} is a model of {file}: import that first, or genimg-fast --code {file}")
    try:
        model: Any = create_model(name, **config["model_args"])
        model.load_state_dict(weights)
        if averaged is not None:
            average = AveragedModel(model, use_buffers=True)
            average.load_state_dict(averaged)
            if hasattr(model, "discriminator"):
                average.module.discriminator = model.discriminator
            model = average.module
    except ValueError:  # an unknown model, or a size that it does not take
        raise
    except Exception as error:  # a file may hold anything, and so anything may be raised
        what = " ".join(str(error).split())
        what = what if len(what) <= _LONGEST_REASON else f"{what[:_LONGEST_REASON]}…"
        raise CheckpointError(f"the {where} does not fit its model, {name}: {what}") from error
    return model.eval()


def _is_on_hub(source: Source) -> bool:
    """Whether this may be the name of a model on the hub: not a path of files that are missing."""
    name = re.fullmatch(r"(\w[\w.-]*)/\w[\w.-]*", source) if isinstance(source, str) else None
    return name is not None and not Path(name[1]).exists()


def _download(name: str, options: dict[str, Any]) -> Path:
    hub = optional_import("huggingface_hub", "hub")
    try:
        return Path(hub.snapshot_download(name, **{"allow_patterns": [_CONFIG, _WEIGHTS], **options}))
    except Exception as error:  # of the hub's, the network's, and the cache's classes
        raise OSError(f"{name} is no folder here, and cannot be had from the hub: {error}") from error
