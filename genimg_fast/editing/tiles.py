"""Large pictures through a network, a tile at a time.

A tile is computed with a margin around it, which is cut off afterwards: with a margin as wide as the network sees,
every pixel comes out as if the whole picture had gone through at once. At the picture's border there is no margin,
so whatever the network does at borders, it does there only.
"""

from collections.abc import Callable

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
    corners = [(top, left) for top in range(0, height, size) for left in range(0, width, size)]
    result: Tensor | None = None
    for top, left in bar(corners, what, "tile", progress):
        above, before = max(0, top - margin), max(0, left - margin)
        part = image[:, above : top + size + margin, before : left + size + margin]
        inside = function(part)[:, (top - above) * scale :, (left - before) * scale :]
        inside = inside[:, : min(size, height - top) * scale, : min(size, width - left) * scale]
        if result is None:
            result = inside.new_empty(len(inside), height * scale, width * scale)
        rows = slice(top * scale, top * scale + inside.shape[1])
        result[:, rows, left * scale : left * scale + inside.shape[2]] = inside
    assert result is not None
    return result
