"""Images that do not fit in memory: decoded once into a file, or whenever they are needed."""

import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import write_images, write_shards
from PIL import Image

import genimg_fast as gf
from genimg_fast.data import decode
from genimg_fast.data.cache import CacheFile
from genimg_fast.data.dataset import content_hash
from genimg_fast.options import OptionError
from genimg_fast.training import find_trainable
from genimg_fast.training.data_kinds import images

Load = Callable[..., gf.data.ImageDataset]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path / "images"


def loaders(folder: Path) -> dict[str, Load]:
    """What loads files in every way that there is."""
    pairs, shards = folder.parent / "pairs", folder.parent / "shards"
    if not pairs.exists():
        for index in range(7):
            pairs.mkdir(exist_ok=True)
            Image.effect_noise((24, 12), 50 + index).save(pairs / f"{index}.png")
        write_shards(shards, sorted(folder.rglob("*.*")))
    return {
        "whole": partial(gf.data.load_dataset, folder, image_size=8, workers=0),
        "crops": partial(gf.data.load_dataset, folder, image_size=8, crops=29, workers=0),
        "few crops": partial(gf.data.load_dataset, folder, image_size=8, crops=5, workers=0),
        "shards": partial(gf.data.load_dataset, shards, image_size=8, channels=1, workers=0),
        "pairs": partial(gf.data.load_pairs, pairs, image_size=8, workers=0),
    }


KINDS = ["whole", "crops", "few crops", "shards", "pairs"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_are_the_same_wherever_they_are(kind: str, folder: Path, tmp_path: Path) -> None:
    load = loaders(folder)[kind]
    memory = load()
    assert memory.storage.startswith("in memory")
    cached, decoded = load(memory=0, cache=tmp_path / "cache"), load(memory=0, cache=None)
    assert cached.storage.startswith(f"in {tmp_path / 'cache'}")
    assert decoded.storage == "decoded whenever they are needed"
    for data in (cached, decoded):
        assert data.images.shape == memory.images.shape
        assert data.class_names == memory.class_names
        for ours, expected in zip(data[:], memory[:], strict=True):
            assert torch.equal(ours, expected)
        if kind != "pairs":
            for ours, expected in zip(data.split(0.4, seed=1), memory.split(0.4, seed=1), strict=True):
                assert torch.equal(ours[:][0], expected[:][0])
                assert torch.equal(ours.labels, expected.labels)
    assert content_hash(cached.images, cached.labels) == content_hash(memory.images, memory.labels)
    assert content_hash(decoded.images) == content_hash(load(memory=0, cache=None).images)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("cache", ["cache", None])
def test_batches_are_those_of_images_in_memory(
    workers: int, cache: str | None, folder: Path, tmp_path: Path
) -> None:
    memory = gf.data.load_dataset(folder, image_size=8)
    path = None if cache is None else tmp_path / cache
    data = gf.data.load_dataset(folder, image_size=8, memory=0, cache=path, workers=workers)
    state = torch.get_rng_state()
    for options in ({"seed": 1}, {"seed": 2, "start": 7}, {"part": 1, "parts": 2}):
        ours = islice(gf.data.batches(data, 5, **options), 6)
        for batch, expected in zip(ours, gf.data.batches(memory, 5, **options), strict=False):
            assert torch.equal(batch[0], expected[0])
            assert torch.equal(batch[1], expected[1])
    assert torch.equal(torch.get_rng_state(), state)


def count_decoded(monkeypatch: pytest.MonkeyPatch, fail_at: int = 10**6, error: Any = None) -> list[str]:
    read, seen = decode.open_image, []

    def counted(file: Any, *content: Any) -> Any:
        seen.append(str(file))
        if len(seen) == fail_at:
            raise error
        return read(file, *content)

    monkeypatch.setattr(decode, "open_image", counted)
    return seen


@pytest.mark.parametrize("crops", [0, 29])
def test_an_interrupted_cache_is_continued(
    crops: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = partial(
        gf.data.load_dataset, folder, image_size=8, channels=3, crops=crops, memory=0, cache=tmp_path, workers=0
    )
    measured = 12 if crops else 0  # headers of pictures, for the place of crops
    with monkeypatch.context() as patch:
        count_decoded(patch, measured + 9, KeyboardInterrupt)
        monkeypatch.setattr("genimg_fast.data.stream._CHUNK", 1)
        with pytest.raises(KeyboardInterrupt):
            load()
    (part,) = tmp_path.glob("*.part")
    with open(part, "ab") as file:
        file.write(b"half an image")
    seen = count_decoded(monkeypatch)
    data = load()
    assert len(seen) == measured + 4
    assert torch.equal(data[:][0], gf.data.load_dataset(folder, image_size=8, channels=3, crops=crops)[:][0])
    assert {file.suffix for file in tmp_path.iterdir() if file.is_file()} == {".images", ".json"}


def test_processes_that_come_at_once_decode_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, second = fcntl.flock, threading.Event()

    def waited(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            second.set()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", waited)
    read_item = decode.Decoder.read_item
    monkeypatch.setattr(decode.Decoder, "read_item", lambda *args: second.wait(60) and read_item(*args))
    seen = count_decoded(monkeypatch)
    cache = tmp_path / "new" / "cache"
    load = partial(gf.data.load_dataset, folder, image_size=8, channels=3, memory=0, cache=cache, workers=0)
    with ThreadPoolExecutor(3) as pool, pytest.warns(UserWarning, match="waiting for another process that writes"):
        found = [future.result() for future in [pool.submit(load) for _ in range(3)]]
    assert len(seen) == 12
    assert torch.equal(found[0][:][0], found[2][:][0])


def test_a_full_disk_is_one_line_and_what_is_there_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = partial(gf.data.load_dataset, folder, image_size=8, channels=3, memory=0, cache=tmp_path, workers=0)
    write = os.write

    def full(descriptor: int, content: memoryview) -> int:
        if os.lseek(descriptor, 0, os.SEEK_CUR) >= 4 * 192:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(
            OSError, match=r"cannot write .*images-\w+\.part: No space left on device; the decoded"
        ):
            load()
    seen = count_decoded(monkeypatch)
    load()
    assert len(seen) == 8


def test_a_folder_for_caches_that_is_none_is_to_blame(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    options = find_trainable("dcgan").resolve(data=str(folder), memory=0, cache=tmp_path / "file", image_size=8)
    with pytest.raises(OptionError, match=r"^cache cannot write .*file: File exists$"):
        images.load(options)


def test_without_room_images_are_decoded_when_needed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 100))
    with pytest.warns(UserWarning, match=r"no room for .* GB of decoded images in .*cache: they are decoded when"):
        data = gf.data.load_dataset(folder, image_size=8, memory=0, cache=tmp_path / "cache", workers=0)
    assert data.storage == "decoded whenever they are needed"
    assert not (tmp_path / "cache").exists()


def test_what_decides_is_the_size(folder: Path, tmp_path: Path) -> None:
    size = 12 * 3 * 8 * 8 / 1e9
    load = partial(gf.data.load_dataset, folder, image_size=8, cache=tmp_path)
    assert load(memory=size).storage == "in memory, 2.3e-06 GB"
    assert load(memory=size * 0.99).storage.endswith(".images, 2.3e-06 GB")
    with pytest.raises(ValueError, match="memory must be at least 0 GB, got -1"):
        load(memory=-1)
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        load(workers=-1)


def test_damaged_caches_and_those_of_other_images_are_refused(folder: Path, tmp_path: Path) -> None:
    load = partial(gf.data.load_dataset, folder, image_size=8, memory=0, cache=tmp_path, workers=0)
    data = load()
    (images,) = tmp_path.glob("*.images")
    note = images.with_suffix(".json")
    content = json.loads(note.read_text())
    note.write_text(json.dumps({**content, "key": "0" * 64}))
    with pytest.raises(ValueError, match=rf"{images} is a cache of other images: remove it"):
        load()
    wrong = (
        ("shape", ["x", 3, 8, 8]), ("shape", [-12, 3, 8, 8]), ("shape", [12, 3, 4, 16]), ("shape", None),
        ("skipped", [99]), ("skipped", None), ("hashes", None), ("hashes", {"a": 1}),
    )  # fmt: skip
    for name, value in wrong:
        note.write_text(json.dumps({**content, name: value}))
        with pytest.raises(OptionError, match=f"cache {note} is damaged.* remove {images}, and it is made anew"):
            load()
    for damage, why in (("{", "damaged: "), ("[]", "damaged: "), ("{}", "damaged: something is missing")):
        note.write_text(damage)
        with pytest.raises(ValueError, match=f"{note} is {why}.*; remove {images}, and it is made anew"):
            load()
    note.unlink()
    with pytest.raises(ValueError, match=f"{note} is missing; remove"):
        load()
    note.write_text(json.dumps(content))
    os.truncate(images, 192 * 11 + 5)
    with pytest.raises(ValueError, match=rf"{images} is damaged: it has 2117 bytes instead of 2304"):
        load()
    with pytest.raises(OSError, match="is cut short: image 11 is not in it"):
        data[torch.tensor([3, 11])]


def test_other_files_or_settings_have_another_cache(folder: Path, tmp_path: Path) -> None:
    load = partial(gf.data.load_dataset, folder, memory=0, cache=tmp_path, workers=0)
    load(image_size=8)
    load(image_size=8)
    assert len(list(tmp_path.glob("*.images"))) == 1
    with pytest.warns(UserWarning, match=r"^caches of other files or settings, such as .*, take 2.3e-06 GB"):
        load(image_size=4)
    os.utime(next(folder.rglob("*.jpg")), ns=(1, 1))
    load(image_size=8)
    assert len(list(tmp_path.glob("*.images"))) == 3


def test_a_cache_is_not_taken_for_other_files_of_the_same_size_and_age(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("L", (8, 8), 100 * number).save(tmp_path / f"{number}.bmp")
        os.utime(tmp_path / f"{number}.bmp", (1, 1))
    load = partial(gf.data.load_dataset, tmp_path, image_size=8, memory=0, cache=tmp_path / "c", workers=0)
    assert load().images[:][:, 0, 0, 0].tolist() == [0, 100]
    for old, new in (("0", "2"), ("1", "0"), ("2", "1")):
        (tmp_path / f"{old}.bmp").rename(tmp_path / f"{new}.bmp")
    assert load().images[:][:, 0, 0, 0].tolist() == [100, 0]


def test_broken_files_are_an_error_or_left_out(folder: Path, tmp_path: Path) -> None:
    broken = folder / "class0" / "002.png"
    broken.write_bytes(broken.read_bytes()[:100])
    load = partial(gf.data.load_dataset, folder, image_size=8, channels=3, workers=0)
    for options in ({}, {"memory": 0, "cache": tmp_path}):
        with pytest.raises(ValueError, match=r"cannot read image .*002\.png"):
            load(**options)
        with pytest.raises(ValueError, match=r"cannot read image .*002\.png"):
            load(crops=29, **options)
    decoded = load(memory=0, cache=None)
    with pytest.raises(ValueError, match=r"cannot read image .*002\.png"):
        next(gf.data.batches(decoded, 12))
    with pytest.warns(UserWarning, match=r"skipped: cannot read image .*002\.png"):
        memory, cached = (load(skip_broken=True, **o) for o in ({}, {"memory": 0, "cache": tmp_path}))
    assert len(memory) == len(cached) == 11
    assert torch.equal(memory[:][0], cached[:][0])
    assert torch.equal(memory.labels, cached.labels)
    assert torch.equal(load(memory=0, cache=tmp_path, skip_broken=True).labels, memory.labels)
    with pytest.warns(UserWarning, match=r"skipped: cannot read image .*002\.png"):
        crops = [load(skip_broken=True, crops=29, **o) for o in ({}, {"memory": 0, "cache": tmp_path})]
    assert torch.equal(crops[0][:][0], crops[1][:][0])


@pytest.mark.parametrize("kind", ["whole", "shards", "pairs"])
def test_without_broken_files_everything_is_the_same_wherever_images_are(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    """Labels and splits, too: what is broken is known before they are made."""
    loaders(folder)
    for broken in (*(folder / "class0").glob("00[24].png"), folder.parent / "pairs" / "2.png"):
        broken.write_bytes(broken.read_bytes()[:100])
    if kind == "shards":
        shutil.rmtree(folder.parent / "shards")
        write_shards(folder.parent / "shards", sorted(folder.rglob("*.*")))
    load = partial(loaders(folder)[kind], skip_broken=True)
    with pytest.warns(UserWarning, match="skipped: cannot read image"):
        memory, *others = (load(), load(memory=0, cache=tmp_path / "cache"), load(memory=0, cache=None))
    assert len(memory) == (6 if kind == "pairs" else 10)
    for data in others:
        for ours, expected in zip((data, *data.split(0.3)), (memory, *memory.split(0.3)), strict=True):
            assert torch.equal(ours[:][0], expected[:][0])
            assert torch.equal(ours.labels, expected.labels)


def test_the_hash_of_a_cache_is_computed_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = partial(gf.data.load_dataset, folder, image_size=8, memory=0, cache=tmp_path, workers=0)
    first, second = load(), load()
    known = content_hash(first.images, first.labels), content_hash("network", first.images)
    assert known[0] != known[1]
    part = first.take(torch.arange(5))
    assert content_hash(part.images, part.labels) not in known
    monkeypatch.setattr(CacheFile, "read", None)
    assert (content_hash(second.images, second.labels), content_hash("network", second.images)) == known


def test_grey_and_colour_resize_alike(tmp_path: Path) -> None:
    """A folder of both is read in colour at once, or in grey first: the pixels are the same."""
    (file,) = write_images(tmp_path, 1, grey=True)
    grey, colour = (decode.read_image(file, 8, channels) for channels in (1, 3))
    assert torch.equal(grey.expand(3, -1, -1), colour)
