import tarfile
from functools import partial
from pathlib import Path

import pytest
import torch
from folders import add, write_images, write_shards

import genimg_fast as gf


@pytest.mark.parametrize("labels", ["cls", "json"])
def test_shards_hold_what_a_folder_holds(labels: str, tmp_path: Path) -> None:
    files = write_images(tmp_path / "images")
    folder = gf.data.load_dataset(tmp_path / "images", image_size=8)
    shards = write_shards(tmp_path / "shards", files, 3, labels=labels)
    for data in (
        gf.data.load_dataset(tmp_path / "shards", image_size=8),
        gf.data.load_dataset(tmp_path / "shards", image_size=8, memory=0, cache=None, workers=2),
    ):
        assert torch.equal(data[:][0], folder[:][0])
        assert data.labels.tolist() == folder.labels.tolist()
        assert data.class_names == ["0", "1"]
    one = gf.data.load_dataset(shards[0], image_size=8)
    assert len(one) == 4
    assert one.labels.tolist() == [0] * 4


def test_images_without_a_class_and_grey_ones(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images", 3, grey=True)
    (shard,) = write_shards(tmp_path, files, 1, labels="none")
    data = gf.data.load_dataset(shard, image_size=8)
    assert data.images.shape == (3, 1, 8, 8)
    assert data.labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("cut", ["in an image", "in a header", "behind a file", "in the end"])
def test_a_shard_that_is_cut_short_is_refused(cut: str, tmp_path: Path) -> None:
    """Also where tarfile would take it for whole."""
    (shard,) = write_shards(tmp_path, write_images(tmp_path / "images", 4), 1)
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        image, last = tar.getmembers()[2], tar.getmembers()[-1]
    end = last.offset_data + 512
    kept = {"in an image": image.offset_data + 9, "in a header": last.offset + 9, "behind a file": end}
    shard.write_bytes(content[: kept.get(cut, end + 100)])
    with pytest.raises(ValueError, match=rf"shard {shard} cannot be read, or is cut short: "):
        gf.data.load_dataset(shard, image_size=8)


def test_a_shard_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, write_images(tmp_path / "images", 4), 1)
    data = gf.data.load_dataset(shard, image_size=8, memory=0, cache=None, workers=2)
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(ValueError, match=f"^shard {shard} is cut short$"):
        next(gf.data.batches(data, 4))


def test_bad_shards(tmp_path: Path) -> None:
    image = write_images(tmp_path / "images", 1)[0].read_bytes()

    def refused(message: str, *members: tuple[str, bytes]) -> None:
        shard = tmp_path / "bad.tar"
        with tarfile.open(shard, "w") as tar:
            for name, content in members:
                add(tar, name, content)
        with pytest.raises(ValueError, match=message):
            gf.data.load_dataset(shard, image_size=8)

    refused(r"no images in shard .*bad\.tar")
    refused(r"no images in shard .*bad\.tar", ("a.txt", b"words"))
    refused(r"sample x/a of shard .*bad\.tar holds several images", ("x/a.in.png", image), ("x/a.out.png", image))
    refused(r"the class in a\.cls of shard .*bad\.tar is no number", ("a.png", image), ("a.cls", b"cat"))
    refused(r"the class in a\.json of shard .* is no number", ("a.png", image), ("a.json", b'{"label": "cat"}'))
    refused(r"some images have a class, and others", ("a.png", image), ("a.cls", b"1"), ("b.png", image))
    refused(r"cannot read image at byte 512 of .*bad\.tar", ("a.png", image[:50]))
    (tmp_path / "bad.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(ValueError, match=r"bad\.tar cannot be read, or is cut short"):
        gf.data.load_dataset(tmp_path / "bad.tar", image_size=8)


def test_shards_beside_images_and_crops_of_shards_are_refused(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images")
    (shard,) = write_shards(tmp_path, files, 1)
    load = partial(gf.data.load_dataset, image_size=8)
    with pytest.raises(
        ValueError, match=r"holds shards, such as shard0\.tar, beside subfolders of images, such as"
    ):
        load(tmp_path)
    files[0].rename(tmp_path / "loose.png")
    (tmp_path / "images").rename(tmp_path / ".images")
    with pytest.raises(ValueError, match=r"holds images, such as loose\.png, beside shards, such as shard0\.tar"):
        load(tmp_path)
    with pytest.raises(ValueError, match="crops are cut from .*, not from shards"):
        load(shard, crops=3)
