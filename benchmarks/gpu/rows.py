"""The file of results: one JSON object a line, appended as it is found, so that a run cut short loses nothing."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from genimg_fast import _native

Row = dict[str, Any]


class Rows:
    """The rows of one GPU and one build of the library in a file, which may hold those of others.

    Args:
        path: Of the file; it need not exist yet.
        gpu: Name of the GPU.
    """

    def __init__(self, path: Path, gpu: str) -> None:
        self.path = path
        library = _native.LIBRARY.read_bytes() if _native.LIBRARY.exists() else b""
        self.origin = {"gpu": gpu, "library": f"{zlib.crc32(library):08x}"}
        text = path.read_text() if path.exists() else ""
        self.line_break = "" if text.endswith("\n") or not text else "\n"  # after a line that was cut short
        self.rows = [row for row in read(path) if self.origin.items() <= row.items()]

    def add(self, row: Row) -> Row:
        """Append a row."""
        row = {**row, **self.origin}
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(self.line_break + json.dumps(row) + "\n")
        self.line_break = ""
        return row

    def of(self, stage: str, contender: str | None = None) -> list[Row]:
        """The rows of a stage."""
        return [r for r in self.rows if r["stage"] == stage and contender in (None, r["contender"])]

    def done(self, stage: str, contender: str) -> set[str]:
        """Names of rows that need not be found again; one that failed would fail again."""
        return {row["row"] for row in self.of(stage, contender)}


def read(path: Path) -> list[Row]:
    """All rows of a file; the last line may be cut short."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
