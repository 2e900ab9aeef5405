"""What the signature and the docstring of a function, or of a class, say about its options."""

import inspect
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from genimg_fast.options import Reader

if TYPE_CHECKING:
    from docstring_parser import Docstring

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """A parameter of a function, as the user of a command sees it.

    Args:
        name: Of the parameter.
        type: Its annotation, without ``None``.
        optional: Whether it may be None.
        default: Its default, ``REQUIRED`` if there is none.
        documented: What has the docstring, a function or a class, and what the parameter is called there.
        positional: Whether it has no flag.
        note: What a user has to know beside what the docstring says.
    """

    name: str
    type: Any
    optional: bool
    default: Any
    documented: tuple[Callable[..., Any], str]
    positional: bool = False
    note: str = ""

    @property
    def help(self) -> str:
        """What the docstring says, in a line."""
        function, parameter = self.documented
        return in_a_line(_said_of_parameters(function).get(parameter, "")) + self.note

    @property
    def flag(self) -> str:
        """``--z-dim`` for ``z_dim``, ``--class`` for ``class_``; ``RUN`` for a positional argument."""
        word = self.name.rstrip("_")
        return word.upper() if self.positional else f"--{word.replace('_', '-')}"

    def takes(self) -> tuple[Reader, Collection[Any] | None, int | str | None]:
        """Tell how to read a value, which values there are, and how many it takes (``"+"``: one or more).

        Raises:
            TypeError: If a text cannot be a value of its type.
        """
        origin, inner = get_origin(self.type), get_args(self.type)
        if origin is tuple and Ellipsis not in inner:
            if any(each != inner[0] for each in inner):
                raise TypeError(f"a text cannot be a value of type {self.type}: its elements are of several types")
            return *_reads(inner[0]), len(inner)
        if origin in (list, tuple, Sequence):
            return *_reads(inner[0]), "+"
        return *_reads(self.type), None

    def finished(self, value: Any) -> Any:
        """Turn the list that several values are read into into what its type is."""
        return tuple(value) if isinstance(value, list) and get_origin(self.type) is tuple else value


def _reads(kind: Any) -> tuple[Reader, Collection[Any] | None]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        readers = [reader for reader in kind.__metadata__ if isinstance(reader, Reader)]
        return (readers[0], None) if readers else _reads(inner[0])
    if origin is Literal:
        by_text = {str(choice): choice for choice in inner}
        return Reader(lambda text: by_text.get(text, text), ""), inner
    if kind in (int, float):
        what = "an integer" if kind is int else "a number"

        def read(text: str) -> Any:
            try:
                return kind(text)
            except ValueError:
                raise ValueError(f"must be {what}, got {text!r}") from None

        return Reader(read, "N" if kind is int else "X"), None
    if kind is str:
        return Reader(str, "TEXT"), None
    if kind is Path or set(inner) == {str, Path}:
        return Reader(Path, "PATH"), None
    raise TypeError(f"a text cannot be a value of type {kind}")


def options_of(function: Callable[..., Any], *, kinds: Mapping[str, Any] | None = None) -> dict[str, Option]:
    """Get the options of a function, or of a class, by name: its parameters that a text can set.

    Args:
        function: What has the options.
        kinds: Types of some parameters instead of their annotations.

    Returns:
        All but those whose names begin with an underscore. What the docstring of a class leaves out, that of its
        base class may say.

    Example:
        >>> from genimg_fast._signatures import options_of
        >>> def triple(number: int, *, quiet: bool = False) -> int:
        ...     '''Triple a number.
        ...
        ...     Args:
        ...         number: What to triple. It may be negative.
        ...         quiet: Whether to print nothing.
        ...     '''
        >>> [(option.flag, option.help) for option in options_of(triple).values()]
        [('NUMBER', 'what to triple'), ('--quiet', 'print nothing')]
    """
    return {**_options_of(function, tuple((kinds or {}).items()))}


@cache
def _options_of(function: Callable[..., Any], kinds: tuple[tuple[str, Any], ...]) -> dict[str, Option]:
    made: Any = function
    hints = get_type_hints(made.__init__ if isinstance(function, type) else function, include_extras=True)
    hints |= dict(kinds)
    options = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name.startswith("_"):
            continue
        kind = hints.get(name, type(parameter.default))
        inner = get_args(kind)
        optional = get_origin(kind) in (Union, types.UnionType) and types.NoneType in inner
        if optional:
            kind = Union[tuple(k for k in inner if k is not types.NoneType)]  # noqa: UP007 - there is no other way
        elif get_origin(kind) is Literal and None in inner:
            optional, kind = True, Literal[tuple(k for k in inner if k is not None)]
        positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and not isinstance(function, type)
        option = Option(name, kind, optional, parameter.default, (function, name), positional)
        with suppress(TypeError):
            if kind is not bool:
                option.takes()
            options[name] = option
    return options


def groups_of(function: Callable[..., Any]) -> dict[str, type]:
    """Get the parameters of a function that stand for several options each: dataclasses, with these as fields."""
    hints = get_type_hints(function)
    return {name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)}


@cache
def _said_of_parameters(function: Callable[..., Any]) -> dict[str, str]:
    documented = reversed(function.__mro__) if isinstance(function, type) else [function]
    return {text.arg_name: text.description or "" for each in documented for text in document(each).params}


@cache
def document(function: Callable[..., Any]) -> "Docstring":
    """Parse the docstring of a function or a class."""
    # Not above: training and benchmarks/gpu_check.py run where there is torch and this package's tree alone.
    from docstring_parser import DocstringStyle, parse

    return parse(inspect.getdoc(function) or "", DocstringStyle.GOOGLE)


def in_a_line(text: str) -> str:
    """Make the help of a flag from what a docstring says about a parameter: its first sentence, as plain text."""
    text = re.sub(r":\w+:`(?:~[\w.]*\.|genimg_fast\.)?([^`]+)`", r"\1", " ".join(text.split()))
    text = re.sub(r'``"?(.*?)"?``', r"\1", text)
    text = re.split(r"\.(?=$| [A-Z\"])", text)[0]
    text = re.sub(r"^Whether (to )?", "", text)
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
