"""PyTorch's own samples of its modules' arguments, which need expecttest."""

from __future__ import annotations

from typing import Any

import pytest


def modules_named(*names: str) -> list[Any]:
    """Return values for `parametrize`: entries of PyTorch's list of modules, or one that is skipped."""
    try:
        from torch.testing._internal.common_modules import module_db
    except ModuleNotFoundError as error:
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"PyTorch's samples need {error.name}"))]
    return [pytest.param(m, id=m.name) for m in module_db if m.module_cls.__name__ in names]
