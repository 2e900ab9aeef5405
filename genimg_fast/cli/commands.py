"""From Python functions to commands: flags, help and checks follow from signatures and docstrings."""

# Not jsonargparse: it has --z_dim for --z-dim, [a,b] for two values, no switches, and errors of several lines.

import argparse
import inspect
from collections.abc import Callable
from typing import Any

from genimg_fast._signatures import REQUIRED, Option, document, groups_of, options_of
from genimg_fast.cli.arguments import Parser, add_command, reads


def add_option(parser: argparse._ActionsContainer, option: Option) -> None:
    """Add the argument of an option to a parser, or to a group of one."""
    settings: dict[str, Any] = {"help": option.help.replace("%", "%%")}
    required = option.default is REQUIRED
    if not required:
        settings["default"] = list(option.default) if isinstance(option.default, tuple) else option.default
    if option.positional:
        settings |= {"metavar": option.flag} if required else {"metavar": option.flag, "nargs": "?"}
    else:
        settings |= {"dest": option.name, "required": required}
    if option.type is bool:
        # One that may be None has three values: yes, no, and not said.
        both = option.default is True or option.optional
        action: Any = argparse.BooleanOptionalAction if both else "store_true"
        parser.add_argument(option.flag, action=action, **settings)
        return
    reader, choices, number = option.takes()
    settings |= {"metavar": reader.metavar, **settings} if choices is None else {"choices": choices}
    if number is not None:
        settings["nargs"] = number
    read = reads(reader)
    if option.optional and option.default is not None:  # the default is no way to say None
        read = _none_or(read)
    parser.add_argument(option.name if option.positional else option.flag, type=read, **settings)


def _none_or(read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text == "none" else read(text)


def add_function(
    commands: Any, function: Callable[..., int], *, name: str | None = None, examples: str | None = None
) -> Parser:
    """Add a function as a command.

    Positional parameters are positional arguments, keyword-only ones are flags: ``bool = False`` a switch, ``bool
    | None = None`` a switch and its opposite, ``Literal`` choices, ``X | None = None`` what may be left out, a
    list one value or more, a tuple that many. The types of :mod:`genimg_fast.options` have ranges. A name that
    Python keeps for itself has an underscore behind: ``class_`` is ``--class``. What several commands have in
    common is a dataclass: a parameter of such a type stands for a flag for each field. Of the docstring, the first
    line is the help, ``Args:`` the help of each flag (its first sentence), ``Example:`` the examples, the rest the
    description.

    What the function finds wrong with an argument, it raises as a ValueError that begins with the parameter's name
    and "must": of "n must be at most 5, got 9" the user reads "argument --n: must be at most 5, got 9". In other
    words, and for files that cannot be read, there is :func:`genimg_fast.cli.arguments.blaming` and
    :class:`genimg_fast.options.OptionError`.

    Args:
        commands: What ``add_subparsers`` returned.
        function: What the command does; it returns the exit status.
        name: What the user types; by default the function's name, with dashes.
        examples: Calls of the command, one a line, instead of those in the docstring.

    Returns:
        The command's parser.

    Raises:
        TypeError: If a parameter without a default is of a type that no argument can have.
    """
    own, groups = options_of(function), groups_of(function)
    parameters = inspect.signature(function).parameters
    if missing := [n for n, p in parameters.items() if n not in {**own, **groups} and p.default is REQUIRED]:
        raise TypeError(f"{function.__qualname__}: no argument can be of the type of {', '.join(missing)}")

    def given(args: argparse.Namespace, options: dict[str, Option]) -> dict[str, Any]:
        return {option.name: option.finished(getattr(args, option.name)) for option in options.values()}

    def run(args: argparse.Namespace) -> int:
        together = {name: group(**given(args, options_of(group))) for name, group in groups.items()}
        with args.parser.explaining():
            return function(**given(args, own), **together)

    text = document(function)
    if examples is None:
        examples = "\n".join(example.description or "" for example in text.examples)
    name = name or function.__name__.rstrip("_").replace("_", "-")
    new = add_command(commands, name, run, text.short_description or "", examples)
    if text.long_description:
        new.description = f"{new.description}\n\n{text.long_description}"
    for parameter in parameters:
        if parameter in own:
            add_option(new, own[parameter])
        elif parameter in groups:
            for option in options_of(groups[parameter]).values():
                add_option(new, option)
    return new
