from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import genimg_fast as gf
from genimg_fast.training import Picture, save_output
from genimg_fast.training.outputs import batch_sizes, form_of


def batches(images: Any, size: int = 2) -> Iterator[Picture]:
    """Pictures of a few examples each."""
    panels = images if isinstance(images, dict) else {"": images}
    for start in range(0, len(next(iter(panels.values()))), size):
        part = {name: panel[start : start + size] for name, panel in panels.items()}
        yield Picture(images=part.get("", part))


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, 6, 8) * 2 - 1


def bytes_of(images: torch.Tensor) -> np.ndarray:
    return ((images + 1) * 127.5).round().byte().movedim(-3, -1).numpy()


@pytest.mark.parametrize(
    ("path", "form"),
    [("a", "folder"), ("a.v2/", "folder"), ("a.npz", "arrays"), ("a.NPZ", "arrays"), ("a.png", "picture"),
     ("a.mp4", "picture"), ("a.gif", "picture"), ("b/a", "folder")],
)  # fmt: skip
def test_the_ending_decides(path: str, form: str) -> None:
    assert form_of(path) == form


def test_a_folder_of_images_with_their_classes(images: torch.Tensor, tmp_path: Path) -> None:
    labels = torch.tensor([1, 0, 1, 1, 0])
    out = tmp_path / "new" / "samples"
    save_output(batches(images), out, n=5, labels=labels, class_names=["cat", "a/b"])
    names = ["00000-a_b.png", "00001-cat.png", "00002-a_b.png", "00003-a_b.png", "00004-cat.png"]
    assert files(tmp_path / "new") == [f"samples/{name}" for name in names]
    for name, image in zip(names, bytes_of(images), strict=True):
        assert (np.asarray(Image.open(out / name)) == image).all()


def test_a_folder_for_each_name_and_each_sequence(tmp_path: Path) -> None:
    panels = {"from": torch.zeros(3, 1, 4, 4), "morph": torch.zeros(3, 2, 1, 4, 4)}
    save_output(batches(panels), f"{tmp_path}/out.v2/", n=3)
    assert files(tmp_path / "out.v2") == [
        *(f"from/0000{k}.png" for k in range(3)), *(f"morph/0000{k}/00{t}.png" for k in range(3) for t in range(2))
    ]  # fmt: skip
    assert len(gf.data.FrameFolders(tmp_path / "out.v2" / "morph", frames=2, image_size=4)) == 3


def test_arrays(images: torch.Tensor, tmp_path: Path) -> None:
    save_output(batches(images), tmp_path / "a.npz", n=5, labels=torch.arange(5))
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        assert (arrays["arr_0"] == bytes_of(images)).all()
        assert (arrays["arr_1"] == np.arange(5)).all()
    sequences = images[:, None].expand(-1, 3, -1, -1, -1)
    save_output(batches({"input": images, "output": sequences}), tmp_path / "b.npz", n=5, labels=torch.arange(5))
    with np.load(tmp_path / "b.npz") as arrays:
        assert arrays.files == ["input", "output", "labels"]
        assert (arrays["output"] == bytes_of(sequences)).all()
    assert files(tmp_path) == ["a.npz", "b.npz"]


@pytest.mark.parametrize("path", ["a.png", "a.gif", "a.webp"])
def test_a_picture_is_that_of_all_batches(path: str, tmp_path: Path) -> None:
    images = {"truth": torch.rand(5, 3, 1, 8, 8) * 2 - 1, "model": torch.rand(5, 3, 1, 8, 8) * 2 - 1}
    save_output(batches(images), tmp_path / path, n=5, scale=2, plain=True)
    Picture(images=images).save(tmp_path / f"whole{path[1:]}", scale=2, plain=True)
    assert (tmp_path / path).read_bytes() == (tmp_path / f"whole{path[1:]}").read_bytes()


@pytest.mark.parametrize("path", ["a.mp4", "a b:c.webm"])
def test_a_video(path: str, tmp_path: Path) -> None:
    levels = torch.linspace(-0.8, 0.8, 6).view(1, 6, 1, 1, 1).expand(2, 6, 1, 15, 15)
    save_output(batches(levels), tmp_path / path, n=2, scale=1, plain=True)
    with av.open(str(tmp_path / path)) as video:
        frames = [frame.to_ndarray(format="gray") for frame in video.decode(video=0)]
        assert float(video.streams.video[0].average_rate) == 10
    assert len(frames) == 6
    for frame, level in zip(frames, bytes_of(levels)[0, :, 0, 0, 0], strict=True):
        assert frame.shape in ((16, 34), (34, 16))  # two of 15 pixels and the gap, made even
        assert abs(float(frame[:15, :15].mean()) - level) < 4


@pytest.mark.parametrize("path", ["out", "out.npz", "out.png"])
def test_nothing_stays_of_what_fails(path: str, images: torch.Tensor, tmp_path: Path) -> None:
    def failing() -> Iterator[Picture]:
        yield from batches(images)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_output(failing(), tmp_path / path, n=9)
    assert list(tmp_path.iterdir()) == []


def test_one_batch_is_made_at_a_time(tmp_path: Path) -> None:
    alive = 0

    class Watched(torch.Tensor):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def made() -> Iterator[Picture]:
        nonlocal alive
        for _ in range(50):
            alive += 1
            assert alive <= 2  # the one before may not be gone yet
            yield Picture(images=torch.zeros(2, 1, 4, 4).as_subclass(Watched))

    save_output(made(), tmp_path / "out.npz", n=100)
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["arr_0"].shape == (100, 4, 4, 1)


def test_batches_get_smaller_as_images_get_larger() -> None:
    assert batch_sizes(600, 32) == [256, 256, 88]
    assert batch_sizes(40, 256) == [16, 16, 8]
    assert batch_sizes(2, 4096) == [1, 1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("full", "is a folder with something in it: name another one"),
        ("file", "is a file: give it an ending, such as .png, or name a folder"),
        ("a.mp4", r"a.mp4' is a video, and nothing moves here"),
        ("a.txt", "does not end like an image file, such as .png"),
    ],
)
def test_what_cannot_be_written(path: str, message: str, images: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=message):
        save_output(batches(images), tmp_path / path, n=5)
    assert files(tmp_path) == ["file", "full/mine"]
    with pytest.raises(ValueError, match="n must be the number of all images, 5, got 6"):
        save_output(batches(images), tmp_path / "new", n=6)


def test_a_link_stays_one(images: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    for _ in range(2):  # while there is no file, and when there is one
        save_output(batches(images), tmp_path / "a.png", n=5)
        assert (tmp_path / "a.png").is_symlink()
        assert files(tmp_path / "elsewhere") == ["b.png"]


@pytest.mark.parametrize("path", ["a.npz", "a/"])
def test_what_would_be_damaged_is_refused(path: str, images: torch.Tensor, tmp_path: Path) -> None:
    out = f"{tmp_path}/{path}"
    pictures = [Picture(images=images), Picture(images=images[..., :4])]
    with pytest.raises(ValueError, match="images of one shape"):
        save_output(pictures, out, n=10)
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\), got \(4,\)"):
        save_output(batches(images), out, n=5, labels=torch.arange(4))
    with pytest.raises(ValueError, match="NaN"):
        save_output(batches(images / 0 * 0), out, n=5)
    assert files(tmp_path) == []
