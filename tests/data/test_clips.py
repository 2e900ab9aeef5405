import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import genimg_fast as gf
from genimg_fast.data import FrameFolders, load_sequences
from genimg_fast.data.clips import identify_clips
from genimg_fast.data.decode import UnreadableError
from genimg_fast.data.stored import StoredImages


def write_frames(folder: Path, count: int, first: int = 0, size: int = 8) -> None:
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        Image.new("RGB", (size + 2, size), (number, 0, 100)).save(folder / f"frame{number}.png")


def reds(frames: Tensor) -> list[int]:
    return ((frames[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_a_folder_of_frames_in_natural_order(tmp_path: Path) -> None:
    write_frames(tmp_path / "walk", 12)
    (tmp_path / "walk" / "notes.txt").write_text("no image")
    data = FrameFolders(tmp_path / "walk", frames=10, image_size=8)
    assert len(data) == 3
    frames, labels = data[:]
    assert frames.shape == (3, 10, 3, 8, 8)
    assert [reds(window) for window in frames] == [list(range(i, i + 10)) for i in range(3)]
    assert labels.tolist() == [0, 0, 0]
    grey = FrameFolders(tmp_path / "walk", frames=10, image_size=16, channels=1)
    assert grey[0][0].shape == (10, 1, 16, 16)


def test_folders_of_clips_and_strides(tmp_path: Path) -> None:
    write_frames(tmp_path / "clip10", 5, first=100)
    write_frames(tmp_path / "clip9", 8, first=50)
    write_frames(tmp_path / "short", 3)
    data = FrameFolders(tmp_path, frames=4, image_size=8, stride=2)
    assert list(data.clips) == ["clip9", "clip10"]  # the short one is left out
    frames, labels = data[:]
    assert [reds(window)[0] for window in frames] == [50, 52, 54, 100]
    assert labels.tolist() == [0, 0, 0, 1]
    assert reds(data[-1][0]) == [100, 101, 102, 103]
    assert data[:0][0].shape == (0, 4, 3, 8, 8)
    with pytest.raises(IndexError, match="index 4 is out of range for 4 sequences"):
        data[4]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation(suffix: str, tmp_path: Path) -> None:
    images = [Image.new("RGB", (8, 8), (40 * number, 0, 0)) for number in range(6)]
    images[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=images[1:], lossless=True)
    data = load_sequences(tmp_path / f"a{suffix}", frames=6, image_size=8)
    assert reds(data[0][0]) == pytest.approx([0, 40, 80, 120, 160, 200], abs=2)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".tiff"])
def test_a_damaged_animation_is_named(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    first, *others = (Image.fromarray(pixels) for pixels in noise)
    first.save(file, save_all=True, append_images=others)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ValueError, match=rf"cannot read image .*cut\{suffix}: ."):
        FrameFolders(file, frames=4)


def write_video(file: Path, pictures: list[np.ndarray], **shown: object) -> None:
    """Write a video; ``shown`` says how it is to be turned."""
    av = pytest.importorskip("av")
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        if shown:
            stream.set_display_rotation(**shown)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def test_a_video(tmp_path: Path) -> None:
    pictures = [np.full((32, 48, 3), level, dtype=np.uint8) for level in (0, 60, 120, 180, 240)]
    write_video(tmp_path / "film.mp4", pictures)
    for path in (tmp_path, tmp_path / "film.mp4"):
        data = FrameFolders(path, frames=5, image_size=16)
        assert len(data) == 1
        assert reds(data[0][0]) == pytest.approx([0, 60, 120, 180, 240], abs=12)
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    with pytest.raises(ValueError, match=r"cannot read video .*broken\.mp4"):
        FrameFolders(tmp_path / "broken.mp4", frames=5)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrored", [{}, {"hflip": True}, {"vflip": True}])
def test_a_video_is_turned_upright(degrees: int, mirrored: dict[str, bool], suffix: str, tmp_path: Path) -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 0, 0], [255, 255, 255]]])
    picture = colours.repeat(32, 0).repeat(32, 1).astype(np.uint8)
    write_video(tmp_path / f"film{suffix}", [picture], degrees=degrees, **mirrored)
    upright = np.rot90(picture, degrees // 90)
    if mirrored:
        upright = upright[:, ::-1] if "hflip" in mirrored else upright[::-1]
    Image.fromarray(np.ascontiguousarray(upright)).save(tmp_path / "upright.png")
    expected = FrameFolders(tmp_path / "upright.png", frames=1, image_size=16)[0][0]
    actual = FrameFolders(tmp_path / f"film{suffix}", frames=1, image_size=16)[0][0]
    assert (actual - expected).abs().mean() < 0.1


def test_a_name_of_a_video_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what FFmpeg calls a protocol stands at the beginning of the path
    write_video(tmp_path / "film.mp4", [np.zeros((32, 32, 3), np.uint8)])
    (tmp_path / "film.mp4").rename(tmp_path / "http:film.mp4")
    assert len(FrameFolders("http:film.mp4", frames=1, image_size=16)) == 1


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "film.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'av is needed here .* pip install --no-build-isolation "\.\[video\]"'):
        FrameFolders(tmp_path / "film.mp4")


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames in"):
        FrameFolders(tmp_path)
    write_frames(tmp_path / "clip", 3)
    with pytest.raises(ValueError, match=r"no clip in .* has 4 frames, the longest one has 3"):
        FrameFolders(tmp_path, frames=4)
    (tmp_path / "clip" / "frame1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"cannot read image .*frame1\.png"):
        FrameFolders(tmp_path, frames=3)
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere"):
        FrameFolders(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        FrameFolders(tmp_path, stride=0)


def clips(folder: Path, *lengths: int) -> FrameFolders:
    """Clips whose frames are all different."""
    level = 0
    for number, length in enumerate(lengths):
        (folder / str(number)).mkdir()
        for frame in range(length):
            Image.new("L", (8, 8), level).save(folder / str(number) / f"{frame}.png")
            level += 2
    return FrameFolders(folder, frames=4, image_size=8, channels=1)


@pytest.mark.parametrize(
    ("lengths", "share", "held_out_frames"),
    [([6, 6, 6, 6, 6], 0.4, 12), ([30, 20], 0.2, 6 + 4), ([30, 5], 0.1, 4)],
    ids=["clips", "ends", "ends-of-long-clips"],
)
def test_a_split_of_clips_has_no_frame_in_common(
    lengths: list[int], share: float, held_out_frames: int, tmp_path: Path
) -> None:
    data = clips(tmp_path, *lengths)
    training, held_out = data.split(share, seed=1)
    frames = [set(part[:][0].flatten(0, 1)[:, 0, 0, 0].tolist()) for part in (training, held_out)]
    assert not frames[0] & frames[1]
    assert len(frames[1]) == held_out_frames
    assert len(frames[0]) + len(frames[1]) == sum(lengths)
    assert torch.equal(data.split(share, seed=1)[1][:][0], held_out[:][0])
    assert held_out.windows(2)[0][0].shape == (2, 1, 8, 8)


def test_clips_too_few_or_too_short_to_split(tmp_path: Path) -> None:
    data = clips(tmp_path, 7)
    for share in (0.5, 0, 1):
        with pytest.raises(
            ValueError, match="does not leave 4 frames both to train on and to hold out: the longest"
        ):
            data.split(share)
    with pytest.raises(ValueError, match="no clip has 8 frames, the longest one has 7"):
        data.windows(8)


def stored(folder: Path, kept: str, cache: Path, **options: Any) -> FrameFolders:
    where = {
        "memory": {},
        "cache": {"memory": 0, "cache": cache, "workers": 2},
        "decoded": {"memory": 0, "cache": None, "workers": 2},
    }
    return FrameFolders(folder, frames=4, image_size=8, channels=1, **where[kept], **options)


@pytest.mark.parametrize("kept", ["cache", "decoded"])
@pytest.mark.parametrize("films", [False, True])
def test_clips_that_memory_does_not_hold(films: bool, kept: str, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    clips(folder, 9, 5, 3, 40)
    if films:
        random = np.random.default_rng(0)
        for number in range(2):
            write_video(folder / f"film{number}.mp4", list(random.integers(0, 256, (20, 16, 16, 3), np.uint8)))
    in_memory, elsewhere = (stored(folder, each, tmp_path / "cache") for each in ("memory", kept))
    assert "in memory" in in_memory.storage
    assert "in memory" not in elsewhere.storage
    assert list(elsewhere.clips) == list(in_memory.clips)
    assert len(elsewhere) == len(in_memory)
    order = torch.randperm(len(in_memory), generator=torch.Generator().manual_seed(0))
    for data in (elsewhere, elsewhere.windows(3), *elsewhere.split(0.4), *elsewhere.split(0.1)):
        assert isinstance(data.images, StoredImages)
    for ours, expected in zip(elsewhere.split(0.4, seed=1), in_memory.split(0.4, seed=1), strict=True):
        torch.testing.assert_close(ours[:], expected[:])
    torch.testing.assert_close(elsewhere[order], in_memory[order])
    torch.testing.assert_close(elsewhere[-1], in_memory[-1])
    batches = [gf.data.batches(data, 5, seed=3, start=2) for data in (elsewhere, in_memory)]
    for _ in range(4):
        torch.testing.assert_close(next(batches[0]), next(batches[1]))
    ours, expected = identify_clips(elsewhere), identify_clips(in_memory)
    assert ours["files"] == expected["files"]
    assert ours["sha256"] == (expected["sha256"] if kept == "cache" else None)


def test_a_broken_frame_is_named_wherever_frames_are(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    clips(tmp_path / "clips", 6)
    broken = sorted((tmp_path / "clips").rglob("*.png"))[3]
    broken.write_bytes(b"no image")
    for kept in ("memory", "cache"):
        with pytest.raises(ValueError, match=rf"cannot read image {broken}") as raised:
            stored(tmp_path / "clips", kept, tmp_path / "cache")
        assert not isinstance(raised.value, UnreadableError)  # nothing can be left out of a clip
