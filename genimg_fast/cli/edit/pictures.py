"""Commands from functions that make a picture of pictures."""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.cli.arguments import Parser, blaming
from genimg_fast.cli.commands import add_function
from genimg_fast.cli.runs import Output, Session
from genimg_fast.editing.files import before_and_after, check_ending, load_picture, save_picture
from genimg_fast.editing.pictures import Mask, to_grey
from genimg_fast.options import Reader

PictureFile = Annotated[Path, Reader(Path, "PICTURE")]
# What a command is asked for, by the annotation of a function's parameter.
_FILES: dict[Any, Any] = {
    Tensor: PictureFile,
    Tensor | None: PictureFile | None,
    list[Tensor]: list[PictureFile],
    list[Tensor] | None: list[PictureFile] | None,
    Mask: PictureFile,
    Mask | None: PictureFile | None,
    list[Mask]: list[PictureFile],
    list[Mask] | None: list[PictureFile] | None,
}
_MASKS = (Mask, Mask | None, list[Mask], list[Mask] | None)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a command writes.

    Args:
        out: Picture to write, in place of what has that name; default: the first picture's name and the edit's,
            .png, in this folder.
        before_after: Whether to write both pictures side by side, on white where they are transparent.
    """

    out: Output | None = None
    before_after: bool = False


def add_edit(
    commands: Any, function: Callable[..., Tensor], *, examples: str, name: str | None = None, alpha: bool = True
) -> Parser:
    """Add a function of pictures as a command; see :func:`genimg_fast.cli.commands.add_function`.

    Parameters that are pictures become files; the other ones are flags, as ever. A function that takes
    ``generator``, of random numbers, or ``progress`` is given what the command line decides.

    Transparent pixels: the function gets the first picture's colours without its alpha, which the result has
    again, enlarged or reduced as the picture was. Other pictures lose theirs.

    Args:
        commands: What ``add_subparsers`` returned.
        function: Gets pictures and returns one, all in [0, 1] of shape (channels, height, width).
        examples: Calls of the command, one a line.
        name: What the user types; by default the function's name.
        alpha: Whether the result is the first picture, edited, and has its transparent pixels.

    Returns:
        The command's parser.
    """
    name = name or function.__name__.rstrip("_").replace("_", "-")
    hints = get_type_hints(function, include_extras=True)
    pictures = {key: hint for key, hint in hints.items() if hint in _FILES and key != "return"}
    parameters = inspect.signature(function).parameters
    shown = {key: p for key, p in parameters.items() if key not in ("generator", "progress")}
    first = next(iter(pictures))

    def command(*, written: Written, session: Session, **given: Any) -> int:
        device = session.find_device()
        out = Path(written.out or f"{given[first].stem}-{name}.png")
        with blaming("out", (OSError, ValueError)):
            check_ending(out)
            if not out.parent.is_dir():
                raise ValueError(f"{str(out.parent)!r} must be a folder that is there")
            read_files = [given[key] for key in pictures]
            for file in itertools.chain.from_iterable(f if isinstance(f, list) else [f] for f in read_files):
                if file is not None and out.exists() and out.samefile(file):
                    raise ValueError(f"{str(out)!r} must not be a picture that is read")
        before: Tensor | None = None
        for key, hint in pictures.items():
            files = given[key]
            read: list[Tensor | None] = []
            for file in files if isinstance(files, list) else [files]:
                if file is None:
                    read.append(None)
                    continue
                with blaming(key, (OSError, ValueError)):
                    picture = load_picture(file).to(device)
                before = picture if before is None else before
                colours = picture[: 1 if len(picture) < 3 else 3]
                read.append(to_grey(colours) if hint in _MASKS else colours)
            given[key] = read if isinstance(files, list) else read[0]
        assert before is not None  # the first picture is required
        with blaming("out", (ValueError,)):
            check_ending(out, alpha=alpha and not written.before_after and len(before) in (2, 4))
        if "generator" in parameters:
            given["generator"] = session.generator()
        if "progress" in parameters:
            given["progress"] = True
        result = function(**given)
        if alpha and len(before) in (2, 4) and len(result) in (1, 3):
            result = _with_alpha(result, before[-1:])
        with blaming("out", (OSError, ValueError)):
            if written.before_after:
                result = before_and_after(before, result, same_height=alpha)
            save_picture(result, out)
        print(out)
        return 0

    settable = [p.replace(annotation=_FILES.get(hints[key], hints[key])) for key, p in shown.items()]
    groups = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
        for key, kind in (("written", Written), ("session", Session))
    ]
    command.__signature__ = inspect.Signature([*settable, *groups])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*settable, *groups)}
    command.__doc__ = function.__doc__
    return add_function(commands, command, name=name, examples=examples)


def _with_alpha(picture: Tensor, alpha: Tensor) -> Tensor:
    if alpha.shape[1:] != picture.shape[1:]:
        size = tuple(picture.shape[1:])
        alpha = F.interpolate(alpha[None], size, mode="bilinear", antialias=True)[0]
    return torch.cat([picture, alpha.to(picture)])
