from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import genimg_fast as gf
from genimg_fast.training import Picture, plot_latents, save_animation, save_grid
from genimg_fast.training.pictures import class_samples, printable

GAP, GROUP_GAP, ORANGE = 4, 16, (240, 120, 0)
# What users call their classes and folders.
NAMES = ["50$_and_$60", "_hidden", "猫", "кошка", "two\nlines", "caf\udce9", "", "long " * 99, r"\alpha", "🐈"]


def side(tiles: int, tile: int, *, group: int = 1) -> int:
    """Length of a row of tiles, in groups."""
    return tiles * tile + (tiles - 1) * GAP + ((tiles - 1) // group * (GROUP_GAP - GAP) if group > 1 else 0)


def read(path: Path) -> Tensor:
    """Read a picture as bytes of shape (height, width, 3)."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
        return torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(rgb.height, rgb.width, 3)


def save_and_read(path: Path, images: gf.training.pictures.Panels, **options: object) -> Tensor:
    save_grid(images, path, **options)
    return read(path)


@pytest.mark.parametrize(
    ("n", "columns", "shape"),
    [
        (1, None, (1, 1)), (2, None, (2, 1)), (4, None, (2, 2)), (5, None, (3, 2)), (7, None, (4, 2)),
        (8, None, (4, 2)), (9, None, (3, 3)), (12, None, (4, 3)), (13, None, (5, 3)), (36, None, (6, 6)),
        (64, None, (8, 8)), (6, 6, (6, 1)), (3, 5, (3, 1)),
    ],
)  # fmt: skip
def test_grid_leaves_few_places_empty(n: int, columns: int | None, shape: tuple[int, int], tmp_path: Path) -> None:
    page = save_and_read(tmp_path / "grid.png", torch.zeros(n, 1, 8, 8), columns=columns, scale=1, plain=True)
    assert page.shape == (side(shape[1], 8), side(shape[0], 8), 3)


@pytest.mark.parametrize(("n", "panels", "across"), [(8, 2, 2), (8, 3, 2), (16, 2, 4), (64, 3, 4), (1, 3, 1)])
def test_groups_fill_the_page(n: int, panels: int, across: int, tmp_path: Path) -> None:
    images = {str(panel): torch.zeros(n, 1, 8, 8) for panel in range(panels)}
    page = save_and_read(tmp_path / "grid.png", images, scale=1, plain=True)
    assert page.shape == (side(n // across, 8), side(across * panels, 8, group=panels), 3)


@pytest.mark.parametrize(
    ("height", "width", "scale", "expected"),
    [(8, 8, None, 8), (28, 28, None, 3), (32, 64, None, 2), (64, 64, None, 1), (256, 256, None, 1), (8, 8, 3, 3)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pixel_becomes_a_square(
    height: int, width: int, scale: int | None, expected: int, channels: int, tmp_path: Path
) -> None:
    values = torch.randint(0, 256, (2, channels, height, width), generator=torch.Generator().manual_seed(0))
    page = save_and_read(tmp_path / "grid.png", values / 127.5 - 1, columns=2, scale=scale)
    assert page.shape == (height * expected + 2 * GAP, side(2, width * expected) + 2 * GAP, 3)
    for index, left in enumerate((GAP, 2 * GAP + width * expected)):
        tile = page[GAP : GAP + height * expected, left : left + width * expected].permute(2, 0, 1)
        large = values[index].repeat_interleave(expected, 1).repeat_interleave(expected, 2)
        assert torch.equal(tile.long(), large.expand(3, -1, -1))


def test_values_outside_the_range_and_other_types(tmp_path: Path) -> None:
    page = save_and_read(tmp_path / "a.png", torch.full((1, 1, 2, 2), 7.0).bfloat16(), scale=1, plain=True)
    assert page.unique().tolist() == [255]


def test_names_stand_above_the_tiles_of_each_group(tmp_path: Path) -> None:
    a, b = torch.zeros(2, 4, 1, 64, 64)
    page = save_and_read(tmp_path / "grid.png", {"input": a, "output": b}, columns=2)
    assert page.shape[1] == side(4, 64, group=2) + 2 * GAP
    above = page[: page.shape[0] - side(2, 64) - GAP].float().mean((0, 2))  # mean level of each column
    lefts = [GAP + tile * (64 + GAP) + tile // 2 * (GROUP_GAP - GAP) for tile in range(4)]
    words = [above[left : left + 64] for left in lefts]
    assert all(word.min() < word.max() for word in words)
    assert torch.equal(words[0], words[2])  # the same word
    assert torch.equal(words[1], words[3])
    assert not torch.equal(words[0], words[1])


def test_grey_beside_colour(tmp_path: Path) -> None:
    colour = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    save_grid({"input": torch.ones(1, 1, 64, 64), "output": colour}, tmp_path / "grid.png")
    page = read(tmp_path / "grid.png")
    assert page[-10, 10].tolist() == [255, 255, 255]
    assert page[-10, -10].tolist() == [255, 0, 0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp"])
def test_what_is_generated_has_a_border(channels: int, suffix: str, tmp_path: Path) -> None:
    images = torch.zeros(3, channels, 64, 64)
    generated = torch.tensor([False, True, False])
    save_grid(images, tmp_path / f"grid.{suffix}", columns=3, generated=generated)
    page = read(tmp_path / f"grid.{suffix}").int()
    orange = (page - torch.tensor(ORANGE, dtype=torch.int32)).abs().amax(2) < 60  # JPEG is not exact
    border = [bool(orange[40, x]) for x in (GAP + 64 + 1, 2 * GAP + 2 * 64 + 1, 3 * GAP + 3 * 64 + 1)]
    assert border == [True, True, False]
    assert not orange[GAP : GAP + 64, 2 * GAP + 64 : 2 * GAP + 2 * 64].any()  # no pixel of the image is lost
    assert orange[GAP + 64 + GAP :].any()  # the line that says what it means
    save_grid(images, tmp_path / f"plain.{suffix}", columns=3, generated=generated, plain=True)
    assert read(tmp_path / f"plain.{suffix}").shape == (64, side(3, 64), 3)


def test_sequences_as_strips(tmp_path: Path) -> None:
    truth = torch.linspace(-1, 1, 5).view(1, 5, 1, 1, 1).expand(2, 5, 1, 8, 8)
    images = {"truth": truth, "model": -truth}
    page = save_and_read(tmp_path / "strips.png", images, scale=1, plain=True)
    assert page.shape == (side(4, 8, group=2), side(5, 8), 3)
    middles = [4 + row * 12 + row // 2 * 12 for row in range(4)]
    shown = [[int(page[y, 4 + 12 * frame, 0]) for frame in range(5)] for y in middles]
    assert shown == [[0, 64, 128, 191, 255], [255, 191, 128, 64, 0]] * 2
    named = save_and_read(tmp_path / "named.png", images, generated=torch.arange(5) > 2)
    assert named.shape[1] > side(5, 64) + 2 * GAP + 20  # room for "truth" and "model"
    assert (named == torch.tensor(ORANGE, dtype=torch.uint8)).all(2).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("marked", [False, True])
def test_animation_plays_forth_and_back(channels: int, marked: bool, tmp_path: Path, device: str) -> None:
    levels = torch.tensor([-1.0, 0.0, 0.6, 1.0], device=device)
    frames = levels.view(1, 4, 1, 1, 1).expand(2, 4, channels, 8, 8)
    generated = torch.tensor([False, False, True, True], device=device) if marked else None
    save_animation(frames, tmp_path / "fade.gif", milliseconds=50, generated=generated)
    with Image.open(tmp_path / "fade.gif") as animation:
        assert animation.width == side(2, 64) + 2 * GAP
        assert (animation.info["loop"], animation.info["duration"]) == (0, 50)
        shown, border = [], []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            shown.append(animation.convert("L").getpixel((GAP + 5, GAP + 5)))
            border.append(animation.convert("RGB").getpixel((GAP - 1, GAP + 5)) == ORANGE)
    assert shown == [0, 128, 204, 255, 204, 128]
    if channels == 1:  # of those in colour, Pillow chooses 256
        assert border == [False, False, marked, marked, marked, False]


@pytest.mark.parametrize("ending", ["gif", "png"])
def test_any_name_can_be_drawn(ending: str, tmp_path: Path) -> None:
    n = len(NAMES)
    for scale in (1, 8):
        save_grid(
            torch.zeros(n, 1, 8, 8), tmp_path / f"grid.{ending}", columns=n, column_labels=NAMES, scale=scale
        )
    save_grid(torch.zeros(n, 1, 8, 8), tmp_path / f"rows.{ending}", columns=1, row_labels=NAMES)
    assert read(tmp_path / f"rows.{ending}").shape[1] < 400  # the long name is cut
    save_grid(torch.zeros(1, 1, 8, 8), tmp_path / f"one.{ending}", column_labels=[NAMES[2]])
    plot_latents(torch.randn(n, 2), torch.arange(n), NAMES, tmp_path / "latent.png")
    assert printable("two\nlines caf\udce9 猫") == "two\\nlines caf\\udce9 猫"


@pytest.mark.parametrize("classes", [3, 10, 40])
@pytest.mark.parametrize("n", [None, 7, 100])
def test_samples_of_classes(classes: int, n: int | None) -> None:
    model = gf.models.ConditionalDCGAN(classes, z_dim=4, c_dim=1, channels=2, n_blocks=1)
    drawn: list[Tensor] = []
    model.sample = lambda n, *, labels, generator: drawn.append(labels) or torch.zeros(n, 1, 8, 8)
    picture = class_samples(model, n, generator=torch.Generator())
    labels, columns = drawn[0], picture.columns
    assert columns is not None
    if classes <= 10:
        assert columns == classes
        assert n is not None or len(labels) == 8 * classes
        assert all(labels[k] == picture.column_classes[k % columns] for k in range(len(labels)))
    else:
        assert all(labels[k] == picture.row_classes[k // columns] for k in range(len(labels)))
    assert len(labels) == n or n is None


def test_class_names_stand_above_their_columns(tmp_path: Path) -> None:
    picture = Picture(images=torch.zeros(4, 1, 64, 64), columns=2, column_classes=[0, 1])
    pages = []
    for names in (None, ["0", "1"], ["cat", "dog"]):
        picture.save(tmp_path / "grid.png", class_names=names)
        pages.append(read(tmp_path / "grid.png"))
    assert torch.equal(pages[0], pages[1])
    assert not torch.equal(pages[0], pages[2])


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(0, 1, 8, 8),
        torch.zeros(8, 8),
        torch.zeros(2, 2, 8, 8),
        {"a": torch.zeros(2, 1, 8, 8), "b": torch.zeros(3, 1, 8, 8)},
        {},
    ],
)
def test_images_of_another_shape(images: gf.training.pictures.Panels, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images must have the shape \(n, channels, height, width\) or"):
        save_grid(images, tmp_path / "grid.png")


def test_bad_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        save_grid(torch.zeros(1, 1, 8, 8), tmp_path / "grid.png", scale=0)
    with pytest.raises(ValueError, match="columns must be at least 1, got -1"):
        save_grid(torch.zeros(1, 1, 8, 8), tmp_path / "grid.png", columns=-1)
    with pytest.raises(ValueError, match=r"frames must have the shape \(n, frames, channels, height, width\)"):
        save_animation(torch.zeros(1, 1, 8, 8), tmp_path / "grid.gif")
    with pytest.raises(ValueError, match=r"generated must be bool of a shape that fits \(2, 3\), got .* \(5,\)"):
        save_animation(torch.zeros(2, 3, 1, 8, 8), tmp_path / "grid.gif", generated=torch.ones(5) > 0)


@pytest.mark.parametrize("z_dim", [2, 5])
@pytest.mark.parametrize("classes", [3, 25])
def test_latents(z_dim: int, classes: int, tmp_path: Path, device: str) -> None:
    mu, labels = torch.randn(50, z_dim, device=device), torch.arange(50, device=device) % classes
    before = mu.clone()
    plot_latents(mu, labels, [f"class {label}" for label in range(classes)], tmp_path / "latent.png")
    assert torch.equal(mu, before)
    names = [f"class {label}" for label in range(classes)]
    plot_latents(mu, labels, names, tmp_path / "titled.png", title="50 held-out images of $digits")
    assert (tmp_path / "titled.png").read_bytes() != (tmp_path / "latent.png").read_bytes()
    with Image.open(tmp_path / "latent.png") as plot:
        assert plot.size == (700, 600)
        assert len(plot.convert("RGB").getcolors(1 << 20)) > classes


@pytest.mark.parametrize("classes", [3, 20])
def test_samples_of_one_class_bear_its_number(classes: int) -> None:
    model = gf.models.ConditionalDCGAN(classes, z_dim=4, c_dim=1, channels=2, n_blocks=1)
    picture = class_samples(model, 8, label=2, generator=torch.Generator().manual_seed(0))
    assert (picture.columns, picture.column_classes) == (4, [2, None, None, None])


@pytest.mark.parametrize("shape", [(50, 1), (50,), (0, 2)])
def test_latents_of_another_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mu must have shape \(n, z_dim\) with z_dim of at least 2, got \("):
        plot_latents(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64), ["0"], tmp_path / "latent.png")
