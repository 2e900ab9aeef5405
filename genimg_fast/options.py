"""What the values of options may be: types for signatures, which the command line checks and explains.

An option is written once, in the signature and docstring of what takes it. ``z_dim: PositiveInt = 100`` is an
``int`` to Python and to type checkers, and to ``genimg-fast`` the flag ``--z-dim N`` for an integer of at least 1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

# Numbers from here on have no place in a 32-bit integer, or a float32.
LARGEST_INTEGER = 2**31 - 1
LARGEST_FLOAT = (2 - 2**-23) * 2.0**127


class OptionError(ValueError):
    """An option has a value that makes no sense.

    Args:
        option: Name of the parameter.
        message: What is wrong, to stand behind the name: ``"must be below 8, the height, got 9"``.

    Example:
        >>> from genimg_fast.options import OptionError
        >>> str(OptionError("z_dim", "must be even, got 3"))
        'z_dim must be even, got 3'
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(f"{option} {message}")
        self.option = option
        self.message = message


def about_option(error: ValueError, names: Mapping[str, str]) -> OptionError | None:
    """Find the option that an error is about: its message begins with the parameter's name and "must".

    Args:
        error: The error.
        names: Names of options, by those of parameters.

    Returns:
        The error of that option, None if it is about none of them.

    Example:
        >>> from genimg_fast.options import about_option
        >>> about_option(ValueError("hidden[1] must be at least 1, got 0"), {"hidden": "hidden"})
        OptionError('hidden must be at least 1, got 0')
    """
    if isinstance(error, OptionError):
        return error
    name, _, message = str(error).partition(" ")
    name = name.partition("[")[0]  # one of several values may be to blame
    return OptionError(names[name], message) if name in names and message.startswith("must ") else None


@dataclass(frozen=True)
class Reader:
    """How to read a value of an option from a text.

    Args:
        read: Turns the text into the value; a ValueError says what it must be.
        metavar: What stands for the value in the help.
        name: What stands for the reader where types are shown.

    Example:
        >>> from pathlib import Path
        >>> from typing import Annotated
        >>> from genimg_fast.options import Reader
        >>> Folder = Annotated[Path, Reader(Path, "FOLDER")]
        >>> Hexadecimal = Annotated[int, Reader(lambda text: int(text, 16), "HEX")]
    """

    read: Callable[[str], Any]
    metavar: str
    name: str = ""

    def __repr__(self) -> str:
        return self.name or self.metavar


def integers(minimum: int, maximum: int = LARGEST_INTEGER) -> Reader:
    """Make a reader of integers from ``minimum`` to ``maximum``.

    Example:
        >>> from genimg_fast.options import integers
        >>> integers(1).read("12")
        12
    """

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise ValueError(f"must be an integer of at least {minimum}, got {text!r}")
        if value > maximum:
            raise ValueError(f"must be an integer of at most {maximum}, got {text!r}")
        return value

    return Reader(
        read, "N", f"integers({minimum})" if maximum == LARGEST_INTEGER else f"integers({minimum}, {maximum})"
    )


def numbers(words: str, accepted: Callable[[float], bool], metavar: str = "X") -> Reader:
    """Make a reader of numbers.

    Args:
        words: Which ones, to stand behind "must be a number".
        accepted: Whether a number is one of them.
        metavar: What stands for the value in the help.

    Example:
        >>> from genimg_fast.options import numbers
        >>> numbers("above 0", lambda value: value > 0).read("1e-3")
        0.001
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if LARGEST_FLOAT < value < math.inf:
            raise ValueError(f"must be a number of at most {LARGEST_FLOAT:.1e}, got {text!r}")
        if not (math.isfinite(value) and accepted(value)):
            raise ValueError(f"must be a number {words}, got {text!r}")
        return value

    return Reader(read, metavar, f"numbers({words!r})")


def _conv_image_size(text: str) -> int:
    sizes = [4 * 2**blocks for blocks in range(1, 9)]
    if text not in map(str, sizes):
        raise ValueError(f"must be one of {', '.join(map(str, sizes))}, got {text!r}")
    return int(text)


PositiveInt = Annotated[int, integers(1)]
NonNegativeInt = Annotated[int, integers(0)]
Seed = Annotated[int, integers(0, 2**63 - 1)]
NumLayers = Annotated[int, integers(1, 1000)]
PositiveFloat = Annotated[float, numbers("above 0", lambda value: value > 0)]
NonNegativeFloat = Annotated[float, numbers("of at least 0", lambda value: value >= 0)]
Probability = Annotated[float, numbers("from 0 to 1", lambda value: 0 <= value <= 1)]
Decay = Annotated[float, numbers("from 0 to below 1", lambda value: 0 <= value < 1)]
Share = Annotated[float, numbers("from 0 to below 1", lambda value: 0 <= value < 1, "SHARE")]
# What the networks take that halve an image until it has 4 pixels a side.
ConvImageSize = Annotated[int, Reader(_conv_image_size, "N")]
File = Annotated[Path, Reader(Path, "FILE")]
Folder = Annotated[Path, Reader(Path, "FOLDER")]
