"""Which files belong to a data set: the same answer for images, classes, pairs and clips."""

import os
import socket
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

import genimg_fast as gf
from genimg_fast.data.files import files_below, list_folder


def picture(file: Path | str, grey: int = 0, width: int = 8) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, 8), grey).save(file, "PNG")


def greys(folder: Path) -> list[tuple[str, int]]:
    """Class and brightness of each image."""
    data = gf.data.load_dataset(folder, image_size=8)
    values = data.images[:, 0, 0, 0].tolist()
    return [(data.class_names[label], grey) for label, grey in zip(data.labels.tolist(), values, strict=True)]


def test_the_folder_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "1.png", 7)
    monkeypatch.chdir(tmp_path)
    assert gf.data.load_dataset(".", image_size=8).images[0, 0, 0, 0] == 7


def test_the_same_files_as_torchvision(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    root = tmp_path / "data"
    for number, name in enumerate(["cat/1.png", "cat/2023/1.png", "cat/10.PNG", "dog/b.png", "dog/a.png"]):
        picture(root / name, number)
    picture(elsewhere / "1.png", 50)
    picture(elsewhere / "one.png", 51)
    (root / "cat" / "2024").symlink_to(elsewhere)
    (root / "fox").symlink_to(elsewhere)
    (root / "dog" / "c.png").symlink_to(elsewhere / "one.png")
    (root / "dog" / "notes.txt").write_text("no image")
    theirs = ImageFolder(root)
    expected = [(theirs.classes[label], image.convert("L").getpixel((0, 0))) for image, label in theirs]
    assert len(expected) == 10
    assert sorted(greys(root)) == sorted(expected)


def test_hidden_files_and_folders_are_left_out_at_every_level(tmp_path: Path) -> None:
    for name in (
        "cat/a.png",
        "cat/.ipynb_checkpoints/a-checkpoint.png",
        "cat/deep/.b.png",
        ".git/x/c.png",
        ".d.png",
    ):
        picture(tmp_path / name)
    assert len(greys(tmp_path)) == 1
    assert len(gf.data.FrameFolders(tmp_path, frames=1, image_size=8).clips) == 1
    for name in ("A/0.png", "B/0.png", "A/.1.png"):
        picture(tmp_path / "pairs" / name)
    assert len(gf.data.load_pairs(tmp_path / "pairs", image_size=8)) == 1
    for name in ("0.png", "._0.png"):
        picture(tmp_path / "wide" / name, width=16)
    assert len(gf.data.load_pairs(tmp_path / "wide", image_size=8)) == 1


def test_no_link_leads_round_in_circles(tmp_path: Path) -> None:
    for number, name in enumerate(["cat/one/1.png", "cat/two/2.png", "dog/3.png"]):
        picture(tmp_path / name, number)
    for link, target in [
        ("cat/one/two", "../two"), ("cat/two/one", "../one"), ("cat/self", "."), ("cat/all", ".."), ("loop", "."),
    ]:  # fmt: skip
        (tmp_path / link).symlink_to(target)
    assert greys(tmp_path) == [("cat", 0), ("cat", 1), ("dog", 2)]
    assert list(gf.data.FrameFolders(tmp_path, frames=1, image_size=8).clips) == ["dog"]


def test_what_is_no_regular_file_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.mp4")
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        assert len(greys(tmp_path)) == 1
        assert len(gf.data.FrameFolders(tmp_path, frames=1, image_size=8)) == 1
    with pytest.raises(ValueError, match=r"pipe\.mp4 is neither a file nor a folder"):
        gf.data.FrameFolders(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match=r"'pipe\.png' is neither a folder"):
        gf.data.load_dataset("pipe.png", image_size=8)


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "2024").symlink_to("unmounted")
    (tmp_path / "2025").symlink_to("unmounted")
    with pytest.warns(UserWarning, match=r"skipped: .*202[45]: No such file") as told:
        assert len(greys(tmp_path)) == 1
    assert len(told) == 2  # once for each
    (tmp_path / "2025").unlink()
    (tmp_path / "cat" / "2024").unlink()
    (tmp_path / "cat" / "b.png").symlink_to("gone.png")
    (tmp_path / "cat" / "c.png").symlink_to("c.png")
    with pytest.raises(ValueError, match=r"cannot read image .*b\.png: .*No such file"):
        greys(tmp_path)
    with pytest.warns(UserWarning, match=r"skipped: cannot read image .*[bc]\.png"):
        assert len(gf.data.load_dataset(tmp_path, image_size=8, skip_broken=True)) == 1


def test_names_need_not_be_unicode(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    for half in "AB":
        picture(tmp_path / half / f"{odd}.png")
    assert greys(tmp_path) == [("A", 0), ("B", 0)]
    assert len(gf.data.load_pairs(tmp_path, image_size=8)) == 1
    (tmp_path / "A").rename(tmp_path / odd)
    assert {name for name, _ in greys(tmp_path)} == {"B", odd}
    assert set(gf.data.FrameFolders(tmp_path, frames=1, image_size=8).clips) == {"B", odd}
    (tmp_path / odd / f"{odd}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot read image"):
        greys(tmp_path)
    assert gf.data.dataset.content_hash(odd) != gf.data.dataset.content_hash("caf")


def test_order_follows_the_paths(tmp_path: Path) -> None:
    names = ["a/b/1.png", "a/b.png", "a/10.png", "a/2.png", "a/c/1.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = files_below(tmp_path / "a", above=tmp_path)
    assert found == sorted((tmp_path / "a").rglob("*.png"))
    assert [folder.name for folder in list_folder(tmp_path / "a")[0]] == ["b", "c"]
