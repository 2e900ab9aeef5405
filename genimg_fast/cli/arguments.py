"""What the commands have in common: their parser, and types of arguments."""

import argparse
import itertools
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn

import torch

from genimg_fast import options
from genimg_fast._close_names import did_you_mean, invalid_choice
from genimg_fast.training import Terminated
from genimg_fast.training.pictures import printable

# torch has a type of its own for accelerators alone.
_SIGNS_OF_SHORT_MEMORY = ("can't allocate memory", "out of memory", "size calculation overflowed", "bad_alloc")
# Arguments that decide how much memory a command needs.
_SIZES = (
    "batch_size", "n", "channels", "hidden", "hidden_size", "z_dim", "components", "image_size", "frames", "crops",
)  # fmt: skip


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with the defaults, where there is one, and examples line by line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(p if p.startswith("examples:") else textwrap.fill(p, width) for p in paragraphs) + "\n"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that names what may have been meant, and the help of the very command."""

    # Called with the arguments before they are parsed, and returns them: for what depends on them, or takes time.
    prepare: Callable[[list[str]], list[str]] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse arguments; complain about unknown ones here, where their command is known."""
        args = sys.argv[1:] if args is None else list(args)
        if self.prepare is not None:
            args = self.prepare(args)
        self._refuse_unknown_flags(args)
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _refuse_unknown_flags(self, args: list[str]) -> None:
        # argparse would first miss whatever else is required, such as the flag that was mistyped.
        for index, arg in enumerate(args):
            if arg == "--" or (self._subparsers is not None and not arg.startswith("-")):
                return
            flag = arg.partition("=")[0]
            if re.match(r"--?[A-Za-z]", flag) and " " not in flag and flag not in self._option_string_actions:
                behind = args[index + 1 :] if self._subparsers is None else []
                values = itertools.takewhile(lambda value: not value.startswith("-"), behind)
                hint = did_you_mean(flag, self._option_string_actions)
                self.error(f"unrecognized arguments: {' '.join([arg, *values])}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, invalid_choice(value, action.choices))

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # argparse reads a default that is a text, which is a value as it is.
        return arg_string if arg_string is action.default else super()._get_value(action, arg_string)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with status 2."""
        message = re.sub(r"(\S{60})\S{440,}", r"\1...", one_line(message))  # a value may have thousands of digits
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def flags(self) -> dict[str, str]:
        """Get what the user knows each argument by, such as ``--lr`` for ``lr``, by the name of its value."""
        shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
        return {a.dest: a.option_strings[0] if a.option_strings else str(a.metavar) for a in shown}

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Report an error that :func:`genimg_fast.options.about_option` knows like one of parsing it."""
        flags = self.flags()
        try:
            yield
        except ValueError as error:
            found = options.about_option(error, dict(zip(flags, flags, strict=True)))
            if found is None:
                raise
            self.error(f"argument {flags.get(found.option, found.option)}: {found.message}")

    @contextmanager
    def blaming(
        self, flag: str, errors: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError)
    ) -> Iterator[None]:
        """Report an error that comes of a flag's value like one of parsing it; not that memory is short."""
        try:
            yield
        except errors as error:
            if is_out_of_memory(error):
                raise
            self.error(f"argument {flag}: {error}")


@contextmanager
def blaming(
    option: str, errors: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError)
) -> Iterator[None]:
    """Make an error one about an option, by the name of its parameter; not that memory is short."""
    try:
        yield
    except errors as error:
        if is_out_of_memory(error) or isinstance(error, options.OptionError):
            raise
        raise options.OptionError(option, str(error)) from error


@contextmanager
def ending_at_signals(what: str) -> Iterator[None]:
    """Let SIGTERM and SIGHUP end what is done, as Ctrl-C does, with its workers; handlers of others stay."""

    def end(signum: int, frame: Any) -> NoReturn:
        raise Terminated(f"stopped {what}", signum)

    ours = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():  # only the main thread may
        ours = []
    for signum in ours:
        signal.signal(signum, end)
    try:
        yield
    finally:
        for signum in ours:
            signal.signal(signum, signal.SIG_DFL)


def one_line(text: str) -> str:
    """Put a text on one line, with escapes for what a terminal cannot print or takes for a command."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error means that memory is short."""
    told = any(sign in str(error).lower() for sign in _SIGNS_OF_SHORT_MEMORY)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (isinstance(error, RuntimeError) and told)


def what_to_reduce(error: Exception, args: argparse.Namespace) -> str:
    """Say, for an error that means that memory is short, which of a command's arguments to reduce."""
    given = [name for name in _SIZES if hasattr(args, name)]
    # What the user has chosen is the first to look at.
    chosen = [name for name in given if getattr(args, name) not in (None, args.parser.get_default(name))]
    flags = [f"--{name.replace('_', '-')}" for name in chosen or given]
    size = re.search(r"allocate (\d+ bytes|[\d.]+ [KMGT]iB)", str(error))
    wanted = f" for {size[1]}" if size else ""
    return f"out of memory{wanted}; reduce {' or '.join(flags) or 'the size of the model'}"


def say(text: str) -> None:
    """Print a line. If that fails, as after ``| head`` or on a full disk, nothing is printed from then on."""
    try:
        print(printable(text), flush=True)
    except OSError:
        with suppress(OSError):  # there may be no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def add_command(
    commands: Any,  # argparse._SubParsersAction, whose type argument is not subscriptable at run time
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    examples: str = "",
) -> Parser:
    """Add a command.

    Args:
        commands: What ``add_subparsers`` returned.
        name: What the user types.
        run: What it does; it gets the arguments, and the command's parser as one of them.
        text: What it does, in a line.
        examples: Example calls, one a line, below the help; none if empty.

    Returns:
        The command's parser.
    """
    epilog = "examples:\n" + "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    new: Parser = commands.add_parser(
        name, help=text, description=text, epilog=epilog if examples else None, formatter_class=_Help,
        allow_abbrev=False,
    )  # fmt: skip
    new.set_defaults(execute=run, parser=new)
    return new


def reads(option: Any) -> Callable[[str], Any]:
    """Get the type of an argument from a type of :mod:`genimg_fast.options`, or from a reader."""
    reader = option if isinstance(option, options.Reader) else option.__metadata__[0]

    def read(text: str) -> Any:
        try:
            return reader.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def find_device(name: str) -> torch.device:
    """Get a device by its name; ``auto``: a GPU if there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"must be auto, cpu, cuda or cuda:<number>, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"must be auto, cpu, cuda or cuda:<number>, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no {name} on this machine")
    return device


def _device_name(text: str) -> str:
    find_device(text)
    return text


# The name of a device, for find_device: "auto" stays what it is in a file of options.
Device = Annotated[str, options.Reader(_device_name, "DEVICE")]
