"""Import of packages that only some users need."""

import importlib
from types import ModuleType


def optional_import(name: str, extra: str = "train") -> ModuleType:
    """Import an optional package where it is used.

    Args:
        name: The module to import, such as ``"sklearn.datasets"``.
        extra: The extra of this package that installs it.

    Returns:
        The module.

    Raises:
        ImportError: If it is missing; the message names the command that installs it.

    Example:
        >>> from genimg_fast.data.optional import optional_import
        >>> optional_import("PIL.Image").__name__
        'PIL.Image'
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = (error.name or name).partition(".")[0]
        raise ImportError(
            f"{package} is needed here ({error}); in the checkout of genimg_fast: "
            f'pip install --no-build-isolation ".[{extra}]"'
        ) from error
