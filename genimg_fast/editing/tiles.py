"""Large pictures a tile at a time.

Through a network, a tile is computed with a margin around it, which is cut off afterwards: with a margin as wide
as the network sees, every pixel comes out as if the whole picture had gone through at once. At the picture's
border there is no margin, so whatever the network does at borders, it does there only.

An optimisation takes a grid that lies elsewhere in each of its steps: what borders do stays nowhere.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from genimg_fast.data.progress import bar


def in_tiles(
    function: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    margin: int,
    size: int = 256,
    scale: int = 1,
    multiple: int = 1,
    what: str = "tiles",
    progress: bool = False,
) -> Tensor:
    """Compute a function of a picture in tiles.

    Args:
        function: Gets parts of the picture, (channels, height, width), and returns them ``scale`` times as large,
            with any number of channels.
        image: The picture, of shape (channels, height, width).
        margin: Pixels around one that the function sees.
        size: Height and width of a tile, without its margin.
        scale: How many times as large the result is.
        multiple: Tiles and margins begin at multiples of so many pixels, such as of a network that halves.
        what: What the progress bar says.
        progress: Whether to show a progress bar.

    Returns:
        The function's value for the whole picture.

    Example:
        >>> import torch
        >>> from genimg_fast.editing.tiles import in_tiles
        >>> blur = torch.nn.AvgPool2d(5, stride=1, padding=2)
        >>> image = torch.rand(3, 40, 50)
        >>> torch.allclose(in_tiles(blur, image, margin=2, size=16), blur(image))
        True
    """
    height, width = image.shape[1:]
    margin, size = (-(-n // multiple) * multiple for n in (margin, size))
    if max(height, width) <= size + 2 * margin:  # then tiles would save nothing
        return function(image)
    places = list(itertools.product(spans(height, size), spans(width, size)))
    result: Tensor | None = None
    for (top, bottom), (left, right) in bar(places, what, "tile", progress):
        above, before = max(0, top - margin), max(0, left - margin)
        made = function(image[:, above : bottom + margin, before : right + margin])
        inside = made[:, (top - above) * scale :, (left - before) * scale :]
        inside = inside[:, : (bottom - top) * scale, : (right - left) * scale]
        if result is None:
            result = made.new_empty(len(made), height * scale, width * scale)
        rows = slice(top * scale, top * scale + inside.shape[1])
        result[:, rows, left * scale : left * scale + inside.shape[2]] = inside
    assert result is not None
    return result


def spans(length: int, size: int, *, offset: int = 0, least: int = 1) -> list[tuple[int, int]]:
    """Cut a side into pieces, (begin, end), at ``offset`` and every ``size`` from there.

    None is shorter than ``least``, or longer than ``size + 2 * least``.
    """
    cuts = [cut for cut in range(offset, length, size) if least <= cut <= length - least]
    return list(itertools.pairwise([0, *cuts, length]))


def random_tiles(
    height: int, width: int, size: int, generator: torch.Generator | None = None
) -> list[tuple[slice, slice]]:
    """Cut a picture into tiles of ``size`` pixels a side on a grid that begins at random; none is left out.

    Those at the picture's border have between a quarter and three halves of the size. A picture of up to three
    halves is one tile.

    Returns:
        Rows and columns of each.
    """
    sides = []
    for length in (height, width):
        offset = int(torch.randint(size, (), generator=generator))
        cut = spans(length, size, offset=offset, least=size // 4) if length > size + size // 2 else [(0, length)]
        sides.append([slice(*span) for span in cut])
    return list(itertools.product(*sides))
