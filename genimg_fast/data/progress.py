"""How far long work is."""

from collections.abc import Iterable, Sequence
from typing import Any

from genimg_fast.data.optional import optional_import


def bar(steps: Sequence[Any], what: str, unit: str, progress: bool) -> Iterable[Any]:
    """Show a progress bar, where it is wanted and stderr is a terminal, while steps are taken."""
    if not progress:
        return steps
    return optional_import("tqdm").tqdm(steps, desc=what, unit=unit, leave=False, disable=None)
