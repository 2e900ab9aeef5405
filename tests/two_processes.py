"""The same script in one process and in two."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch


def run_in_two_and_in_one(source: str, folder: Path, *arguments: str) -> tuple[Any, Any]:
    """Run a script that writes a file, its first argument, with ``torch.save``; return what both wrote."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(source))
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    written = []
    for command, file in ((two, folder / "two.pt"), ([sys.executable], folder / "one.pt")):
        done = subprocess.run([*command, script, file, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        written.append(torch.load(file))
    return written[0], written[1]
