"""What this package does when it runs as a program, before anything slow is imported."""

import os
import signal
import sys
from types import FrameType

_MODULE = ["-m", "genimg_fast"]


def watch_imports() -> None:
    """Let Ctrl-C end the program with one line until :func:`imports_done`; in other programs, do nothing."""
    if _is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def imports_done() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore_interrupts() -> None:
    """Let no further Ctrl-C disturb the last words of the program; in other programs, do nothing."""
    if _is_program():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_program() -> bool:
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    # Python calls it "-m" until it has found the module.
    return name == "genimg-fast" or (name == "-m" and _MODULE in [sys.orig_argv[i : i + 2] for i in range(1, 9)])


def _end(signum: int, frame: FrameType | None) -> None:
    # No exception: half of an import may turn it into another one.
    os.write(2, b"genimg-fast: interrupted\n")
    os._exit(128 + signum)
