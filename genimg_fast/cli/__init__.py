"""The command line: ``genimg-fast``, or ``python -m genimg_fast``."""

import argparse
import io
import os
import select
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from genimg_fast._info import info
from genimg_fast._program import ignore_interrupts, imports_done
from genimg_fast._version import __version__
from genimg_fast.cli import bench, compare, demo, edit, evaluate, listing, train
from genimg_fast.cli.arguments import Parser, is_out_of_memory, one_line, what_to_reduce
from genimg_fast.cli.commands import add_function
from genimg_fast.cli.exporting import export
from genimg_fast.cli.sampling import interpolate, sample
from genimg_fast.cli.shells import Shell, completion_script
from genimg_fast.cli.show import latent, reconstruct, translate
from genimg_fast.data.decode import UnreadableError
from genimg_fast.training import NonFiniteLossError, Terminated
from genimg_fast.training.trainables import run_file


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments, without the program's name; those of the process by default.

    Returns:
        The exit status: 0 done, 1 failed, 128 + signal stopped by it (130 for Ctrl-C).

    Raises:
        SystemExit: With status 2 for arguments that make no sense, after one line on stderr.

    Example:
        >>> from genimg_fast.cli import main
        >>> try:
        ...     main(["--version"])
        ... except SystemExit as done:
        ...     print(done.code)
        genimg-fast 0.1.0
        0
    """
    args = argparse.Namespace()
    try:
        imports_done()
        parser = make_parser()
        with _plain_output(parser.prog):
            words = sys.argv[1:] if argv is None else argv
            parser.parse_args(words or ["--help"], args)
            return args.execute(args)
    except (ImportError, OSError, NonFiniteLossError) as error:
        message, status = f"error: {error}", 1
    except (KeyboardInterrupt, Terminated) as stopped:
        ignore_interrupts()
        message = str(stopped) or "interrupted"
        status = stopped.code if isinstance(stopped, Terminated) else 130
        if int(os.environ.get("RANK", "0")) > 0:  # one of several processes, of which the first says it
            return status
    except UnreadableError as error:  # a file that was whole when the data was loaded, or not looked at
        hint = "; --skip-broken leaves it out" if hasattr(args, "skip_broken") else ""
        message, status = f"error: {error}{hint}", 1
    except (MemoryError, RuntimeError) as error:
        if str(error).startswith("DataLoader worker"):
            hint = ": --workers 0 does without" if hasattr(args, "workers") else ""
            message = f"error: a process that reads images was killed, for want of memory, perhaps{hint}"
        elif is_out_of_memory(error):
            message = f"error: {what_to_reduce(error, args)}"
        else:
            raise
        status = 1
    print(f"genimg-fast: {one_line(message)}", file=sys.stderr)
    return status


def make_parser() -> Parser:
    """Make the parser of the command line, with all commands."""
    parser = Parser(prog="genimg-fast", description="Train image-generation models with fused kernels.")
    parser.add_argument("--version", action="version", version=f"genimg-fast {__version__}")
    parser.add_argument("--code", type=_run_code, metavar="FILE.py", help="run this file, for its models")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train.add(commands)
    for function in (sample, reconstruct, translate, interpolate, latent):
        add_function(commands, function)
    edit.add(commands)
    add_function(commands, export)
    add_function(commands, evaluate.evaluate, name="eval")
    add_function(commands, compare.compare)
    bench.add(commands)
    listing.add(commands)
    add_function(commands, demo.demo)
    add_function(commands, _info, name="info")
    add_function(commands, completion)
    return parser


def _run_code(path: str) -> str:
    try:
        run_file(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


@contextmanager
def _plain_output(program: str) -> Iterator[None]:
    """Print whatever a file may be called, in any encoding, with output closed, too; make a warning one line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the program
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the program runs
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *place, **more: f"{program}: warning: {one_line(str(message))}\n"
    try:
        yield
    except BrokenPipeError:
        if not _nobody_reads():  # it is another pipe
            raise
        raise SystemExit(0) from None
    finally:
        warnings.formatwarning = before
        _nobody_reads()


def _nobody_reads() -> bool:
    """Tell whether stdout is a pipe that nobody reads, as behind ``| head``; if so, print nothing from then on."""
    output = select.poll()
    try:
        output.register(sys.stdout, 0)
    except (OSError, TypeError, ValueError):  # no file of the system's
        return False
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _info() -> int:
    """Show versions, and which path is live for each operator and device."""
    print(info())
    return 0


def completion(shell: Shell) -> int:
    """Print a script that lets a shell complete commands, flags and names of files.

    Args:
        shell: The shell: bash or zsh.

    Example:
        genimg-fast completion bash > ~/.local/share/bash-completion/completions/genimg-fast
        genimg-fast completion zsh > ~/.zfunc/_genimg-fast
    """
    print(completion_script(make_parser(), shell))
    return 0
