"""From Python functions to commands: flags, help and checks follow from signatures and docstrings."""

# Not jsonargparse: it has --z_dim for --z-dim, [a,b] for two values, no switches, and errors of several lines.

import argparse
import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser

from genimg_fast.cli.arguments import Parser, add_command, reads
from genimg_fast.options import Reader

REQUIRED = inspect.Parameter.empty
_ANY: dict[Any, Reader] = {
    str: Reader(str, "TEXT"),
    Path: Reader(Path, "PATH"),
}


@dataclass(frozen=True)
class Option:
    """A parameter of a function, as the user of a command sees it.

    Args:
        name: Of the parameter.
        type: Its annotation, without ``None``.
        optional: Whether it may be None.
        default: Its default, ``REQUIRED`` if there is none.
        help: What the docstring says, in a line.
        positional: Whether it has no flag.
    """

    name: str
    type: Any
    optional: bool
    default: Any
    help: str
    positional: bool

    @property
    def flag(self) -> str:
        """``--z-dim`` for ``z_dim``, ``--class`` for ``class_``; ``RUN`` for a positional argument."""
        word = self.name.rstrip("_")
        return word.upper() if self.positional else f"--{word.replace('_', '-')}"

    def takes(self) -> tuple[Reader, Collection[Any] | None, int | str | None]:
        """How to read a value, the values there are, and how many it takes (``"+"``: one or more)."""
        kind, origin, inner = self.type, get_origin(self.type), get_args(self.type)
        if origin is Annotated or origin is Literal or kind in (*_ANY, int, float):
            return *_single(kind), None
        if origin is tuple and len(inner) > 0 and Ellipsis not in inner:
            return *_single(inner[0]), len(inner)
        if origin in (list, tuple, Sequence):
            return *_single(inner[0]), "+"
        raise TypeError(f"no flag can have a value of type {kind}")

    def value(self, args: argparse.Namespace) -> Any:
        """Get its value."""
        value = getattr(args, self.name)
        return tuple(value) if get_origin(self.type) is tuple and isinstance(value, list) else value

    def add_to(self, parser: argparse._ActionsContainer) -> argparse.Action:
        """Add it to a parser, or to a group of one."""
        settings: dict[str, Any] = {"help": self.help.replace("%", "%%")}
        if self.positional:
            settings |= {"metavar": self.flag}
        else:
            settings |= {"dest": self.name, "required": self.default is REQUIRED}
        if self.default is not REQUIRED:
            settings["default"] = list(self.default) if isinstance(self.default, tuple) else self.default
        if self.type is bool:
            action: Any = argparse.BooleanOptionalAction if self.default is True else "store_true"
            return parser.add_argument(self.flag, action=action, **settings)
        reader, choices, number = self.takes()
        if choices is not None:
            settings["choices"] = choices
        else:
            settings.setdefault("metavar", reader.metavar)
        if number is not None:
            settings["nargs"] = number
        elif self.positional and self.default is not REQUIRED:
            settings["nargs"] = "?"
        return parser.add_argument(self.name if self.positional else self.flag, type=reads(reader), **settings)


def _single(kind: Any) -> tuple[Reader, Collection[Any] | None]:
    if get_origin(kind) is Annotated:
        readers = [reader for reader in kind.__metadata__ if isinstance(reader, Reader)]
        return (readers[0], None) if readers else _single(get_args(kind)[0])
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        by_text = {str(choice): choice for choice in choices}
        return Reader(lambda text: by_text.get(text, text), ""), choices
    if kind in (int, float):

        def read(text: str) -> Any:
            try:
                return kind(text)
            except ValueError:
                what = "an integer" if kind is int else "a number"
                raise ValueError(f"must be {what}, got {text!r}") from None

        return Reader(read, "N" if kind is int else "X"), None
    return _ANY[kind], None


@cache
def options_of(function: Callable[..., Any]) -> dict[str, Option]:
    """Get the options of a function, or of a class, by name: its parameters that a flag can set.

    Those of another type are left out: their default has to do, if there is one.

    Example:
        >>> from genimg_fast.cli.commands import options_of
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
    made: Any = function
    hints = get_type_hints(made.__init__ if isinstance(function, type) else function, include_extras=True)
    texts = {p.arg_name: p.description or "" for p in document(function).params}
    options = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints.get(name, REQUIRED if parameter.default is None else type(parameter.default))
        arguments = get_args(kind)
        optional = get_origin(kind) in (Union, types.UnionType) and types.NoneType in arguments
        if optional:
            kind = Union[tuple(a for a in arguments if a is not types.NoneType)]  # noqa: UP007 - of a tuple
        positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and not isinstance(function, type)
        option = Option(name, kind, optional, parameter.default, in_a_line(texts.get(name, "")), positional)
        with suppress(KeyError, TypeError):  # no flag can have a value of that type
            if kind is not bool:
                option.takes()
            options[name] = option
    return options


@cache
def document(function: Callable[..., Any]) -> docstring_parser.Docstring:
    """Parse the docstring of a function or a class."""
    return docstring_parser.parse(inspect.getdoc(function) or "", docstring_parser.DocstringStyle.GOOGLE)


def in_a_line(text: str) -> str:
    """Make the help of a flag from what a docstring says about a parameter: its first sentence, as plain text."""
    text = re.sub(r":\w+:`[~.]?(?:[\w.]*\.)?([^`]+)`", r"\1", " ".join(text.split()))
    text = re.sub(r'``"?(.*?)"?``', r"\1", text)
    text = re.split(r"\.(?=$| [A-Z\"])", text)[0]
    text = re.sub(r"^Whether (to )?", "", text)
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def add_options(
    parser: Parser, title: str, options: Iterable[Option], *, defaults: Mapping[str, Any] | None = None
) -> None:
    """Add options to a group of a parser's; with other defaults for some, if given."""
    group = parser.add_argument_group(title)
    for option in options:
        if defaults and option.name in defaults:
            option = replace(option, default=defaults[option.name])
        option.add_to(group)


def add_function(
    commands: Any, function: Callable[..., int], *, name: str | None = None
) -> Parser:  # commands: see add_command
    """Add a function as a command.

    Positional parameters are positional arguments, keyword-only ones are flags: ``bool = False`` a switch,
    ``Literal`` choices, ``X | None = None`` what may be left out, a list one value or more, a tuple that many. The
    types of :mod:`genimg_fast.options` have ranges. A name that Python keeps for itself has an underscore behind:
    ``class_`` is ``--class``. Of the docstring, the first line is the help, ``Args:`` the help of each flag (its
    first sentence), ``Example:`` the examples, the rest the description.

    What the function finds wrong with an argument, it raises as a ValueError that begins with the parameter's name
    and "must": of "n must be at most 5, got 9" the user reads "argument --n: must be at most 5, got 9". In other
    words, and for files that cannot be read, there is :func:`genimg_fast.cli.arguments.blaming` and
    :class:`genimg_fast.options.OptionError`.

    Args:
        commands: What ``add_subparsers`` returned.
        function: What the command does; it returns the exit status.
        name: What the user types; by default the function's name, with dashes.

    Returns:
        The command's parser.
    """
    options = options_of(function)
    missing = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.name not in options and p.default is REQUIRED
    ]
    if missing:
        raise TypeError(f"{function.__qualname__}: no argument can be of the type of {', '.join(missing)}")

    def run(args: argparse.Namespace) -> int:
        values = {option.name: option.value(args) for option in options.values()}
        with args.parser.explaining():
            return function(**values)

    text = document(function)
    examples = "\n".join(example.description or "" for example in text.examples)
    name = name or function.__name__.rstrip("_").replace("_", "-")
    new = add_command(commands, name, run, text.short_description or "", examples)
    if text.long_description:
        new.description = f"{new.description}\n\n{text.long_description}"
    for option in options.values():
        option.add_to(new)
    return new
