"""The command line: ``genimg-fast``, or ``python -m genimg_fast``."""

import argparse
import sys
from collections.abc import Sequence

import genimg_fast as gf
from genimg_fast.cli import demo, evaluate, train, use
from genimg_fast.cli.arguments import Parser, add_command
from genimg_fast.training import NonFiniteLossError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments, without the program's name; those of the process by default.

    Returns:
        The exit status: 0 done, 1 failed, 130 stopped by Ctrl-C.

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
    parser = Parser(prog="genimg-fast", description="Train image-generation models with fused kernels.")
    parser.add_argument("--version", action="version", version=f"genimg-fast {gf.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train.add(commands)
    use.add(commands)
    evaluate.add(commands)
    demo.add(commands)
    add_command(commands, "info", _info, "Show versions, and which path is live for each operator and device.")

    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (ImportError, OSError, NonFiniteLossError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"{parser.prog}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130


def _info(args: argparse.Namespace) -> int:
    print(gf.info())
    return 0
