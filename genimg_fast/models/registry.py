"""Models by name, for the command line, for checkpoints and for tests that cover every model."""

import inspect
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from genimg_fast import nn
from genimg_fast._close_names import did_you_mean

_Builder = TypeVar("_Builder", bound=Callable[..., nn.Module])
_builders: dict[str, Callable[..., nn.Module]] = {}


def register_model(name: str) -> Callable[[_Builder], _Builder]:
    """Register a model class, or a function that builds a model, under a name.

    Args:
        name: The name that :func:`create_model` will know, lower case with hyphens.

    Returns:
        A decorator that registers its argument and returns it unchanged.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> import genimg_fast as gf
        >>> @gf.models.register_model("one-layer")
        ... class OneLayer(gf.nn.Module):
        ...     pass
        >>> gf.models.list_models("one*")
        ['one-layer']
    """

    def register(builder: _Builder) -> _Builder:
        if name in _builders:
            raise ValueError(f"a model named {name!r} is already registered: {_builders[name]!r}")
        _builders[name] = builder
        return builder

    return register


def is_model(name: str, builder: Callable[..., nn.Module]) -> bool:
    """Tell whether this very class, or function, is registered under a name."""
    return _builders.get(name) is builder


def list_models(pattern: str = "*") -> list[str]:
    """List the registered models.

    Args:
        pattern: A shell-style pattern (``*``, ``?``, ``[abc]``) that the names have to match.

    Returns:
        The matching names, sorted. If there are none, a warning lists similar names, should there be any.

    Example:
        >>> import genimg_fast as gf
        >>> gf.models.list_models("dc*")
        ['dcgan']
    """
    found = sorted(name for name in _builders if fnmatchcase(name, pattern))
    if not found and (hint := did_you_mean(pattern, sorted(_builders))):
        warnings.warn(f"no model matches {pattern!r}{hint}", stacklevel=2)
    return found


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a registered model.

    Args:
        name: One of :func:`list_models`.
        **kwargs: Arguments of the model's constructor.

    Returns:
        The model, freshly initialised, on the CPU.

    Raises:
        ValueError: If no model has this name; the message lists similar names.

    Example:
        >>> import genimg_fast as gf
        >>> gf.models.create_model("dcgan", c_dim=1, n_blocks=2).image_size
        16
    """
    if name not in _builders:
        hint = did_you_mean(name, list_models()) or f"; known models: {', '.join(list_models())}"
        raise ValueError(f"unknown model {name!r}{hint}")
    return _builders[name](**kwargs)


def model_name(cls: type[nn.Module]) -> str:
    """Find the name under which a class of models is registered.

    Args:
        cls: The class.

    Returns:
        The name.

    Raises:
        ValueError: If it is not registered.

    Example:
        >>> import genimg_fast as gf
        >>> from genimg_fast.models.registry import model_name
        >>> model_name(gf.models.DCGAN)
        'dcgan'
    """
    for name, builder in _builders.items():
        if builder is cls:
            return name
    raise ValueError(f"{cls.__name__} has no name: decorate the class with @register_model")


def describe_model(name: str) -> str:
    """Get the first line of what a registered model's docstring says.

    Args:
        name: One of :func:`list_models`.

    Example:
        >>> from genimg_fast.models.registry import describe_model
        >>> describe_model("glo")[:11]
        'A generator'
    """
    return (inspect.getdoc(_builders[name]) or "").partition("\n")[0]
