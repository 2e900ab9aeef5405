"""Pictures of what a model does, as files."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genimg_fast.data.optional import optional_import

Panels = Tensor | Mapping[str, Tensor]

ANIMATIONS = (".gif", ".webp")
# Endings of videos, with their codecs, which PyAV brings along.
VIDEOS = {".mp4": "libx264", ".webm": "libvpx-vp9"}
_READABLE = 64  # pixels of a tile's shorter side, at least
# Pixels between tiles, between groups of them, and around what is generated; height of letters.
_GAP, _GROUP_GAP, _BORDER, _LETTERS = 4, 16, 3, 12
_PAGE, _INK, _ORANGE = 232, 0, (240, 120, 0)
_LEGEND = "generated"
# More classes than this do not fit beside each other.
_CLASSES_ACROSS, SAMPLES_OF_A_CLASS = 16, 8


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Images, or sequences of them, with what a reader has to know.

    Args:
        images: What :func:`save_grid` and :func:`save_animation` take: images in [-1, 1], of shape (n, channels,
            height, width), sequences, of shape (n, frames, channels, height, width), or several of these by name.
        columns: Examples in a row; by default, as :func:`save_grid` chooses.
        generated: The images that get a border; see :func:`save_grid`.
        column_classes: Numbers of the classes that the columns show, if they do; None: that of the one before.
        row_classes: Those of the rows.
        column_labels: Texts above the columns, by default the classes' names.
        bounce: Whether an animation plays forth and back instead of from the beginning again.
        caption: A few words to stand below.

    Example:
        >>> import tempfile, torch, genimg_fast as gf
        >>> a, b = torch.zeros(2, 8, 1, 32, 32)
        >>> gf.training.Picture(images={"input": a, "output": b}).save(tempfile.mkdtemp() + "/pairs.png")
    """

    images: Panels
    columns: int | None = None
    generated: Tensor | None = None
    column_classes: Sequence[int | None] | None = None
    row_classes: Sequence[int] | None = None
    column_labels: Sequence[str] | None = None
    bounce: bool = False
    caption: str = ""

    @property
    def moves(self) -> bool:
        """Whether these are sequences."""
        return next(iter(panels_of(self.images).values())).ndim == 5

    def save(
        self,
        path: str | Path,
        *,
        scale: int | None = None,
        plain: bool = False,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Write images as a grid; sequences as an animation or a video if the path ends like one, else as strips.

        Args:
            path: The file; its ending decides the format.
            scale: Pixels of the file for a pixel, in either direction; see :func:`save_grid`.
            plain: Whether to leave out names, borders and the margin.
            class_names: Names of the classes; by default their numbers.

        Raises:
            ValueError: If the images have another shape.
            OSError: If the file cannot be written.
            ImportError: If Pillow or matplotlib is missing.
        """

        def named(classes: Sequence[int | None] | None) -> list[str] | None:
            if classes is None:
                return None
            return ["" if k is None else class_names[k] if class_names else str(k) for k in classes]

        options: dict[str, Any] = {
            "columns": self.columns, "scale": scale, "generated": self.generated, "plain": plain,
            "row_labels": named(self.row_classes), "caption": self.caption,
            "column_labels": self.column_labels or named(self.column_classes),
        }  # fmt: skip
        if self.moves and Path(path).suffix.lower() in (*ANIMATIONS, *VIDEOS):
            save_animation(self.images, path, bounce=self.bounce, **options)
        else:
            save_grid(self.images, path, **options)


def class_samples(
    model: Any, n: int | None = None, *, label: int | None = None, generator: torch.Generator
) -> Picture:
    """Generate images; those of a class-conditional model in order, a class in each column, or in each row.

    Args:
        model: A model with a method ``sample``.
        n: Number of images; see :func:`class_layout`.
        label: The only class to generate, of a class-conditional model; by default all.
        generator: Source of the random numbers.

    Returns:
        The images.
    """
    n, labels, layout = class_layout(model, n, label=label)
    given = {} if labels is None else {"labels": labels}
    return Picture(images=model.sample(n, **given, generator=generator), **layout)


def class_layout(
    model: Any, n: int | None = None, *, label: int | None = None
) -> tuple[int, Tensor | None, dict[str, Any]]:
    """Choose which images to generate, and how to show them.

    Args:
        model: A model with a method ``sample``.
        n: Number of images; by default 64, or 8 of each class, of 16 classes if there are more.
        label: The only class to generate, of a class-conditional model; by default all.

    Returns:
        The number of images, their classes, int64 of shape (n,), if they have any, and options of
        :class:`Picture`.
    """
    classes: int = getattr(model, "num_classes", 0)
    if classes == 0:
        return n or 64, None, {}
    device = next(model.parameters()).device
    if label is not None:
        n = n or 64
        columns = _columns(n, 1, 1, 1)
        labels = torch.full((n,), label, device=device)
        return n, labels, {"columns": columns, "column_classes": [label, *[None] * (columns - 1)]}
    if classes <= _CLASSES_ACROSS:
        n = n or SAMPLES_OF_A_CLASS * classes
        labels = torch.arange(n, device=device) % classes
        return n, labels, {"columns": classes, "column_classes": range(classes)}
    n = n or SAMPLES_OF_A_CLASS * _CLASSES_ACROSS
    columns = max(SAMPLES_OF_A_CLASS, math.ceil(n / classes))
    rows = math.ceil(n / columns)
    shown = torch.arange(rows) * classes // rows
    labels = shown.repeat_interleave(columns)[:n].to(device)
    return n, labels, {"columns": columns, "row_classes": shown.tolist()}


def save_grid(
    images: Panels,
    path: str | Path,
    *,
    columns: int | None = None,
    scale: int | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    generated: Tensor | None = None,
    caption: str = "",
    plain: bool = False,
) -> None:
    """Write images as a grid, or sequences as film strips.

    Args:
        images: Images in [-1, 1], of shape (n, channels, height, width) with 1 or 3 channels, or sequences, of
            shape (n, frames, channels, height, width), each of which becomes a row. Or several of one shape by
            name, such as ``{"input": a, "output": b}``, to be shown side by side, or one below the other, in n
            groups.
        path: The file; its ending decides the format.
        columns: Images, or groups, in a row; by default as many as leave no place empty, if the grid can be less
            than twice as wide as high, or as high as wide, and make it most like a square. Not for sequences.
        scale: Pixels of the file for a pixel, in either direction; by default so many that an image has at least
            64 on either side.
        row_labels: Texts on the left of the rows; by default the names, of sequences.
        column_labels: Texts above the columns; by default the names, or, of sequences, the numbers of the frames.
        generated: True for images to put a border around, because a model has made them: bool of shape (n,), or,
            of sequences, (frames,) or (n, frames). Of several with names, those of the last name.
        caption: A few words to stand below.
        plain: Whether to leave out texts, borders and the margin.

    Raises:
        ValueError: If the shapes do not fit, or there are no images.
        OSError: If the file cannot be written.
        ImportError: If Pillow or, for texts, matplotlib is missing.

    Example:
        >>> import tempfile, torch, genimg_fast as gf
        >>> images, made = torch.zeros(2, 64, 1, 32, 32)
        >>> gf.training.save_grid(images, tempfile.mkdtemp() + "/grid.png")
        >>> gf.training.save_grid({"input": images, "output": made}, tempfile.mkdtemp() + "/pairs.png")
    """
    tiles, marked = _tiles(images, generated)
    names = _names(images)
    legend = not plain and bool(marked.any())
    if tiles.ndim == 5:
        columns = columns or _columns(*tiles.shape[:2], *tiles.shape[-2:])
        page = _Page(
            tiles.shape, columns * tiles.shape[1], scale, column_group=tiles.shape[1], row_labels=row_labels,
            column_labels=column_labels or names, legend=legend, caption=caption, plain=plain,
        )  # fmt: skip
    else:
        frames = tiles.shape[2]
        page = _Page(
            tiles.shape, frames, scale, row_group=tiles.shape[1], row_labels=row_labels or names,
            column_labels=column_labels or list(map(str, range(1, frames + 1))), legend=legend,
            caption=caption, plain=plain,
        )  # fmt: skip
    _for_file(page.draw(tiles.flatten(0, -4), marked.flatten()), path).save(path)


def save_animation(
    frames: Panels,
    path: str | Path,
    *,
    milliseconds: int = 100,
    columns: int | None = None,
    bounce: bool = True,
    scale: int | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    generated: Tensor | None = None,
    caption: str = "",
    plain: bool = False,
) -> None:
    """Write images that change together as an animated grid, played without end, or as a video.

    Args:
        frames: Images in [-1, 1], of shape (n, frames, channels, height, width); each of the n has its place. Or
            several of one shape by name, to be shown side by side.
        path: The file; its ending, ``.gif`` or ``.webp``, or of a video ``.mp4`` or ``.webm``, decides the format.
        milliseconds: How long a frame is shown.
        columns: Images, or groups, in a row; see :func:`save_grid`.
        bounce: Whether to play forth and back instead of from the beginning again.
        scale: Pixels of the file for a pixel, in either direction; see :func:`save_grid`.
        row_labels: Texts on the left of the rows.
        column_labels: Texts above the columns; by default the names.
        generated: True for frames to put a border around, bool of shape (frames,) or (n, frames); see
            :func:`save_grid`.
        caption: A few words to stand below.
        plain: Whether to leave out texts, borders and the margin.

    Raises:
        ValueError: If the shapes do not fit, or there are no images.
        OSError: If the file cannot be written.
        ImportError: If Pillow or, for texts, matplotlib or, for videos, PyAV is missing.

    Example:
        >>> import tempfile, torch, genimg_fast as gf
        >>> frames = torch.linspace(-1, 1, 10).view(1, 10, 1, 1, 1).expand(4, 10, 1, 32, 32)
        >>> gf.training.save_animation(frames, tempfile.mkdtemp() + "/fade.gif")
    """
    tiles, marked = _tiles(frames, generated)
    if tiles.ndim != 6:
        raise ValueError("frames must have the shape (n, frames, channels, height, width), and have no frames")
    columns = columns or _columns(*tiles.shape[:2], *tiles.shape[-2:])
    page = _Page(
        (*tiles.shape[:2], *tiles.shape[3:]), columns * tiles.shape[1], scale, column_group=tiles.shape[1],
        row_labels=row_labels, column_labels=column_labels or _names(frames),
        legend=not plain and bool(marked.any()), caption=caption, plain=plain,
    )  # fmt: skip
    steps = list(range(tiles.shape[2]))
    if bounce:
        steps += steps[-2:0:-1]
    pages = (page.draw(tiles[:, :, t].flatten(0, 1), marked[:, :, t].flatten()) for t in steps)
    if Path(path).suffix.lower() in VIDEOS:
        _save_video(pages, Path(path), Fraction(1000, milliseconds))
        return
    shown = [_for_file(page, path) for page in pages]
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=milliseconds, loop=0)


def _save_video(pages: Iterable[Any], path: Path, frames_per_second: Fraction) -> None:
    av = optional_import("av", "video")
    suffix = path.suffix.lower()
    # Not av.open(path): a colon in a file's name would make it an address.
    with open(path, "wb") as file, av.open(file, "w", format=suffix[1:]) as video:
        stream = None
        for page in pages:
            if stream is None:
                stream = video.add_stream(VIDEOS[suffix], rate=frames_per_second, options={"crf": "18"})
                stream.pix_fmt = "yuv420p"  # which players know; its colours have half the resolution
                stream.width, stream.height = (side + side % 2 for side in page.size)
            even = optional_import("PIL.Image").new("RGB", (stream.width, stream.height), (_PAGE,) * 3)
            even.paste(page.convert("RGB"))
            video.mux(stream.encode(av.VideoFrame.from_image(even)))
        if stream is not None:
            video.mux(stream.encode(None))


def printable(text: str) -> str:
    """Get a text that can be drawn on a line: escapes for line ends, and for the bytes of a name that are none."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def plot_latents(
    mu: Tensor, labels: Tensor, class_names: Sequence[str], path: str | Path, *, title: str = ""
) -> None:
    """Draw latent vectors as points coloured by class; longer ones by their first two principal components.

    Args:
        mu: Latent vectors, such as posterior means, of shape (n, z_dim), with z_dim of at least 2.
        labels: Their classes, int64 of shape (n,).
        class_names: Names of the classes.
        path: The file; its ending decides the format.
        title: A few words to stand above, such as what the vectors are of.

    Raises:
        ValueError: If ``mu`` has another shape.
        OSError: If the file cannot be written.
        ImportError: If matplotlib is missing.

    Example:
        >>> import tempfile, torch, genimg_fast as gf
        >>> mu, labels = torch.randn(50, 8), torch.arange(50) % 2
        >>> gf.training.plot_latents(mu, labels, ["even", "odd"], tempfile.mkdtemp() + "/latent.png")
    """
    if mu.ndim != 2 or mu.shape[1] < 2 or len(mu) == 0:
        raise ValueError(f"mu must have shape (n, z_dim) with z_dim of at least 2, got {tuple(mu.shape)}")
    points, labels = mu.detach().double().cpu(), labels.cpu()
    names = ("z[0]", "z[1]")
    if mu.shape[1] > 2:
        centred = points - points.mean(0)
        variances, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
        points = centred @ axes[:, [-1, -2]]
        shares = variances[[-1, -2]] / variances.sum().clamp(min=1e-30)
        names = (
            f"1st principal component of z ({shares[0]:.0%} of the variance)",
            f"2nd principal component of z ({shares[1]:.0%})",
        )
    # Not pyplot: this touches neither the user's figures nor their backend.
    figure = optional_import("matplotlib.figure").Figure(figsize=(7, 6), layout="constrained")
    colours = optional_import("matplotlib").colormaps["tab10" if len(class_names) <= 10 else "turbo"]
    plot = figure.subplots()
    for label in range(len(class_names)):
        x, y = points[labels == label].T
        colour = colours(label if len(class_names) <= 10 else label / (len(class_names) - 1))
        plot.scatter(x, y, s=8, color=colour, label=str(label))
    plot.set(xlabel=names[0], ylabel=names[1])
    plot.set_title(_short(printable(title), 70), fontsize="medium", parse_math=False)
    plot.grid(alpha=0.3)
    if len(class_names) <= 20:
        legend = figure.legend(title="class", markerscale=2, loc="outside right upper")
        # Only here: a legend leaves out labels that begin with an underscore.
        for text, name in zip(legend.get_texts(), class_names, strict=True):
            text.set(text=_short(printable(name)), parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a name in another alphabet
        figure.savefig(path, dpi=100)


def _short(text: str, most: int = 30) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def to_bytes(images: Tensor) -> Tensor:
    """Turn images in [-1, 1] into bytes in 0..255, on the CPU."""
    return images.detach().float().clamp(-1, 1).add_(1).mul_(127.5).round_().byte().cpu()


def join(pictures: Iterable[Picture], n: int) -> Picture:
    """Make one picture of those of batches, ``n`` examples in all, which are alike but for their images."""
    first: Picture | None = None
    joined: dict[str, Tensor] = {}
    marks: list[Tensor] = []
    start = stop = 0
    for part in pictures:
        panels = panels_of(part.images)
        if first is None:
            first = part
            # Before the others are made: if there is no room for all, the user need not wait for them.
            joined = {name: panel.new_empty(n, *panel.shape[1:]) for name, panel in panels.items()}
        stop = start + len(next(iter(panels.values())))
        if stop <= n:
            for name, panel in panels.items():
                joined[name][start:stop] = panel
        if part.generated is not None and part.generated.ndim == 2:
            marks.append(part.generated)
        start = stop
    if first is None or stop != n:
        raise ValueError(f"n must be the number of all images, {stop}, got {n}")
    images = joined.get("", joined)
    return replace(first, images=images, generated=torch.cat(marks) if marks else first.generated)


def panels_of(images: Panels) -> dict[str, Tensor]:
    """Get images by name, "" if they have none."""
    return dict(images) if isinstance(images, Mapping) else {"": images}


def _names(images: Panels) -> list[str] | None:
    return list(images) if isinstance(images, Mapping) else None


def _tiles(images: Panels, generated: Tensor | None) -> tuple[Tensor, Tensor]:
    """Get images as bytes, of shape (n, panels, ..., channels, height, width), and which of them are generated."""
    panels = list(panels_of(images).values())
    shapes = [tuple(panel.shape) for panel in panels]
    sizes = {(*shape[:-3], *shape[-2:]) for shape in shapes}
    if len(sizes) != 1 or any(
        len(shape) not in (4, 5) or shape[-3] not in (1, 3) or 0 in shape for shape in shapes
    ):
        raise ValueError(
            "images must have the shape (n, channels, height, width) or (n, frames, channels, height, width) with "
            f"n > 0 and 1 or 3 channels, all the same, got {', '.join(map(str, shapes))}"
        )
    channels = max(shape[-3] for shape in shapes)
    alike = [
        to_bytes(panel).expand(*shape[:-3], channels, *shape[-2:])
        for panel, shape in zip(panels, shapes, strict=True)
    ]  # fmt: skip
    tiles = torch.stack(alike, 1)
    marked = torch.zeros(tiles.shape[:-3], dtype=torch.bool)
    if generated is not None:
        if generated.dtype != torch.bool or generated.shape not in (marked[:, 0].shape, marked.shape[2:]):
            raise ValueError(
                f"generated must be bool of a shape that fits {tuple(marked[:, 0].shape)}, "
                f"got {generated.dtype} of shape {tuple(generated.shape)}"
            )
        marked[:, -1] = generated.cpu()
    return tiles, marked


def _columns(n: int, panels: int, height: int, width: int) -> int:
    """Choose how many groups of tiles are in a row: no place empty, near a square, and rather wide than high."""

    def shape(columns: int) -> tuple[int, float, int]:
        rows = math.ceil(n / columns)
        ratio = abs(math.log(columns * panels * width / (rows * height)))
        # A strip is worse than empty places.
        return (rows * columns - n) if ratio < math.log(2.01) else n, round(ratio, 6), -columns

    return min(range(1, n + 1), key=shape)


class _Page:
    """Places of tiles on a page, and the texts around them.

    Args:
        shape: Of the tiles: their number in the first dimensions, then (channels, height, width).
        columns: Tiles in a row.
        scale: Pixels of the page for a pixel; by default so many that a tile is large enough.
        row_group: Rows that belong together.
        column_group: Columns that belong together.
        row_labels: Texts on the left, again and again until all rows have one.
        column_labels: Texts above.
        legend: Whether to say what the border means.
        caption: Text below.
        plain: Whether to have no texts, and no margin.
    """

    def __init__(
        self,
        shape: Sequence[int],
        columns: int,
        scale: int | None,
        *,
        row_group: int = 1,
        column_group: int = 1,
        row_labels: Sequence[str] | None,
        column_labels: Sequence[str] | None,
        legend: bool,
        caption: str,
        plain: bool,
    ) -> None:
        if scale is not None and scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        if columns < 1:
            raise ValueError(f"columns must be at least 1, got {columns}")
        number = math.prod(shape[:-3])
        columns = min(columns, number)
        rows = math.ceil(number / columns)
        self.scale = scale or max(1, math.ceil(_READABLE / min(shape[-2:])))
        self.height, self.width = (side * self.scale for side in shape[-2:])
        above = [] if plain else list(islice(cycle(column_labels or []), columns))
        left = [] if plain else list(islice(cycle(row_labels or []), rows))

        margin = 0 if plain else _GAP
        across = max((_length(_short(printable(text), 100)) for text in left), default=0)
        across = margin + (min(across, 3 * _READABLE) + 2 * _GAP if left else 0)
        down = margin + (_line() + _GAP if above else 0)
        self.lefts = [across + k * (self.width + _GAP) + _wider(k, column_group) for k in range(columns)]
        self.tops = [down + k * (self.height + _GAP) + _wider(k, row_group) for k in range(rows)]
        size = [self.lefts[-1] + self.width + margin, self.tops[-1] + self.height + margin]
        caption = "" if plain else caption
        beside = (
            _LETTERS + _length(_LEGEND) + 4 * _GAP if legend else 0
        )  # room for the legend, left of the caption
        if legend or caption:
            size = [max(size[0], across + beside + _length(caption) + margin), size[1] + _line() + _GAP]

        self.blank = optional_import("PIL.Image").new("L", size, _PAGE)
        self.legend: tuple[int, int] | None = (size[1] - _GAP - _line(), across) if legend else None
        for text, x in zip(above, self.lefts, strict=False):
            self._write(text, x + self.width // 2, margin, self.width + _GAP, "ma")
        for text, y in zip(left, self.tops, strict=False):
            self._write(text, across - 2 * _GAP, y + self.height // 2, across - 3 * _GAP, "rm")
        if self.legend is not None:
            self._write(_LEGEND, across + _LETTERS + _GAP, self.legend[0], size[0], "la")
        self._write(caption, across + beside, size[1] - _GAP - _line(), size[0], "la")

    def _write(self, text: str, x: int, y: int, room: int, anchor: str) -> None:
        text = printable(text)
        most = len(text[:200])
        while most > 0 and _length(_short(text, most)) > room:
            most -= 1
        text = _short(text, most)
        optional_import("PIL.ImageDraw").Draw(self.blank).text((x, y), text, _INK, _font(), anchor)

    def draw(self, tiles: Tensor, marked: Tensor) -> Any:
        """Put tiles in their places, row by row.

        Args:
            tiles: Bytes of shape (n, channels, height, width).
            marked: True for tiles that get a border, bool of shape (n,).

        Returns:
            An image of Pillow's: grey, RGB, or of 255 levels of grey and one colour.
        """
        Image = optional_import("PIL.Image")
        page = torch.frombuffer(bytearray(self.blank.tobytes()), dtype=torch.uint8)
        page = page.view(1, self.blank.height, self.blank.width).repeat(tiles.shape[1], 1, 1)
        one_colour = len(page) == 1 and self.legend is not None
        if one_colour:  # it takes the place of the darkest grey but black
            tiles = torch.where(tiles == 1, 0, tiles)
            page[page == 1] = 0
        orange = torch.tensor([1] if one_colour else _ORANGE, dtype=torch.uint8).view(-1, 1, 1)
        tiles = tiles.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        places = ((y, x) for y in self.tops for x in self.lefts)
        for tile, mark, (y, x) in zip(tiles, marked.tolist(), places, strict=False):
            if mark and self.legend is not None:
                around = slice(max(0, x - _BORDER), x + self.width + _BORDER)
                page[:, max(0, y - _BORDER) : y + self.height + _BORDER, around] = orange
            page[:, y : y + self.height, x : x + self.width] = tile
        if self.legend is not None:
            y, x = self.legend
            page[:, y + 1 : y + 1 + _LETTERS, x : x + _LETTERS] = orange
        picture = Image.fromarray((page[0] if len(page) == 1 else page.permute(1, 2, 0)).contiguous().numpy())
        if one_colour:
            levels = [(level,) * 3 for level in range(256)]
            levels[1] = _ORANGE
            picture.putpalette([value for colour in levels for value in colour])
        return picture


def _wider(place: int, group: int) -> int:
    """Room that the gaps between groups add in front of a place."""
    return place // group * (_GROUP_GAP - _GAP) if group > 1 else 0


def _for_file(picture: Any, path: str | Path) -> Any:
    """Turn an image with a palette, which few formats have, into RGB where need be."""
    keep = picture.mode != "P" or Path(path).suffix.lower() in (".gif", ".png")
    return picture if keep else picture.convert("RGB")


@cache
def _font() -> Any:
    # matplotlib's knows more alphabets than Pillow's.
    file = Path(optional_import("matplotlib").get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return optional_import("PIL.ImageFont").truetype(str(file), _LETTERS)


def _length(text: str) -> int:
    """Width of a text, in pixels."""
    return math.ceil(_font().getlength(text))


def _line() -> int:
    """Height of a line of text, in pixels."""
    return sum(_font().getmetrics())
