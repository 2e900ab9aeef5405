import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

import genimg_fast as gf
from genimg_fast.data import FrameFolders, MovingDigits, load_sequences
from genimg_fast.data.decode import UnreadableError
from genimg_fast.data.sequences import identify_clips
from genimg_fast.data.stored import StoredImages


def small(length: int = 10, **options: object) -> MovingDigits:
    return MovingDigits(length, **{"frames": 5, "image_size": 16, **options})


def test_moving_digits_shapes() -> None:
    data = MovingDigits()
    frames, labels = data[3]
    assert len(data) == 10_000
    assert frames.shape == (20, 1, 64, 64)
    assert (frames.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (frames.min(), frames.max()) == (-1, 1)
    assert data.images.shape[1:] == (28, 28)
    batch, labels = small(digits=3, channels=3)[torch.tensor([1, 4])]
    assert batch.shape == (2, 5, 3, 16, 16)
    assert torch.equal(batch[:, :, 0], batch[:, :, 2])
    assert labels.shape == (2, 3)
    assert small()[2:2][0].shape == (0, 5, 1, 16, 16)


def test_a_sequence_depends_on_seed_and_index_alone() -> None:
    data = small()
    frames, labels = data[:]
    assert torch.equal(small(length=7)[3][0], frames[3])
    assert torch.equal(data[torch.tensor([8, 3, 8])][0], frames[[8, 3, 8]])
    assert torch.equal(data[-1][0], frames[9])
    assert len({frame.numpy().tobytes() for frame in frames}) == 10
    assert not torch.equal(small(seed=1)[:][0], frames)
    torch.manual_seed(5)  # nobody else's random numbers play a part
    loaded = next(iter(DataLoader(data, batch_size=10, num_workers=2)))
    assert torch.equal(loaded[0], frames)
    assert torch.equal(loaded[1], labels)


def test_training_and_test_digits_are_disjoint() -> None:
    training, test = small(train=True), small(train=False, seed=9)
    assert len(training.images) + len(test.images) == 1797
    # Some of the digits are equal to the pixel, in both parts; how often an image occurs tells the parts apart.
    everything = gf.data.load_dataset("digits", image_size=7).images[:, 0]
    parts = torch.cat([training.images, test.images])

    def sort(images: Tensor) -> list[bytes]:
        return sorted(image.numpy().tobytes() for image in images)

    assert sort(parts) == sort(everything)
    assert not torch.equal(training[0][0], small(train=False)[0][0])


def test_digits_are_whole_and_bounce() -> None:
    data = small(length=20, frames=60, digits=1, speed=(0.05, 0.3))
    for index in range(20):
        chosen, corners = data._draw(index)
        frames, label = data[index]
        assert label == data.labels[chosen]
        assert corners.min() >= 0
        assert corners.max() <= 16 - 7
        row, column = corners[17, 0]
        patch = frames[17, 0, row : row + 7, column : column + 7]
        torch.testing.assert_close(patch, data.images[chosen[0]] / 127.5 - 1)
        assert (frames[17] > -1).sum() == (patch > -1).sum()  # and nothing anywhere else


def test_speed_is_that_of_the_protocol() -> None:
    data = MovingDigits(50, frames=2, image_size=256, digits=1)
    ways = np.stack([np.diff(data._draw(index)[1][:, 0], axis=0)[0] for index in range(50)])
    straight = np.hypot(*ways.T)  # but for those that bounce, and for rounding
    assert np.median(straight) == pytest.approx(0.1 * (256 - 112), abs=0.5)
    assert straight.max() < 0.1 * (256 - 112) + 1.5
    still = MovingDigits(2, frames=3, image_size=16, speed=0)[:][0]
    assert torch.equal(still[:, 0], still[:, 2])


def test_where_digits_overlap_the_brighter_pixel_shows() -> None:
    data = small(length=1, digit_size=12)
    (first, second), corners = data._draw(0)
    expected = torch.zeros(2, 16, 16, dtype=torch.uint8)
    for digit, chosen in enumerate((first, second)):
        row, column = corners[0, digit]
        expected[digit, row : row + 12, column : column + 12] = data.images[chosen]
    torch.testing.assert_close(data[0][0][0, 0], expected.amax(0) / 127.5 - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"digit_size": 16}, "digit_size must be below image_size, 16, got 16"),
        ({"speed": (0.2, 0.1)}, r"speed must be a number, or a range, within 0\.\.1, got \(0\.2, 0\.1\)"),
        ({"speed": 1.5}, "speed must be a number"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_bad_moving_digits(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("index", [10, -11, torch.tensor([3, 10])])
def test_no_such_sequence(index: int | Tensor) -> None:
    with pytest.raises(IndexError, match="is out of range for 10 sequences"):
        small()[index]


def test_batches_of_sequences() -> None:
    data = small()
    frames, labels = next(gf.data.batches(data, 4, seed=1))
    assert (frames.shape, labels.shape) == ((4, 5, 1, 16, 16), (4, 2))
    assert data.to("cpu").device == torch.device("cpu")


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
    with pytest.raises(ImportError, match=r'av is needed here .* pip install "genimg_fast\[video\]"'):
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


def test_load_sequences() -> None:
    options = {"frames": 4, "image_size": 16, "speed": (0.1, 0.2), "seed": 3}
    data = load_sequences("moving-digits", channels=3, train=False, **options)
    expected = MovingDigits(train=False, channels=3, **options)
    assert torch.equal(data[5][0], expected[5][0])
    with pytest.raises(ValueError, match="'nowhere' is neither a folder nor a file nor moving-digits"):
        load_sequences("nowhere", frames=4, image_size=16)


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


def test_moving_digits_hold_digits_out() -> None:
    data = small(100, speed=(0.1, 0.2))
    training, held_out = data.split(0.05, seed=2)
    assert training is data
    assert len(held_out) == 5
    assert held_out.images.shape[0] == 359
    assert held_out[0][0].shape == data[0][0].shape
    with pytest.raises(ValueError, match=r"a share of 0\.001 of 100 sequences is none"):
        data.split(0.001)
    with pytest.raises(ValueError, match="are made of the digits held out"):
        held_out.split(0.5)


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
