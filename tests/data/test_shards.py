import gzip
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
    refused(r"a\.png of shard .*bad\.tar comes twice", ("a.png", image), ("a.png", image))
    refused(r"y/a\.cls of shard .*bad\.tar has no image beside it", ("x/a.png", image), ("y/a.cls", b"1"))
    refused(r"a\.json of shard .*bad\.tar is no JSON", ("a.png", image), ("a.json", b'{"label":'))
    refused(
        r"the class in a\.cls of .*bad\.tar is no number from 0 to 100,000", ("a.png", image), ("a.cls", b"9" * 20)
    )
    refused(r"no images in shard .*bad\.tar", ("a.txt", b"words"))
    refused(r"sample x/a of shard .*bad\.tar holds several images", ("x/a.in.png", image), ("x/a.out.png", image))
    refused(r"the class in a\.cls of shard .*bad\.tar is no number", ("a.png", image), ("a.cls", b"cat"))
    refused(r"the class in a\.json of shard .* is no number", ("a.png", image), ("a.json", b'{"label": "cat"}'))
    refused(r"some images have a class, and others", ("a.png", image), ("a.cls", b"1"), ("b.png", image))
    refused(
        r"cannot read image a\.png, at byte 512 of .*bad\.tar: cannot identify image file$", ("a.png", b"no image")
    )
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
    with pytest.raises(ValueError, match=r"crops are cut from .*, not from shards"):
        load(shard, crops=3)


@pytest.mark.parametrize("order", [("png", "cls"), ("cls", "png")])
def test_files_of_a_sample_may_lie_apart(order: tuple[str, str], tmp_path: Path) -> None:
    content = {"png": write_images(tmp_path / "images", 1)[0].read_bytes()}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for ending in order:
            for number in range(4):
                add(tar, f"{number}.{ending}", content.get(ending, str(number % 2).encode()))
        add(tar, "4.png", content["png"])
        add(tar, "4.json", b'{"label": null, "cls": 7}')
    assert gf.data.load_dataset(tmp_path / "a.tar", image_size=8).labels.tolist() == [0, 1, 0, 1, 7]


def test_links_in_shards_and_shards_put_together(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, write_images(tmp_path / "images", 4), 1)
    with tarfile.open(shard, "a") as tar:
        for name, kind, target in (("b", tarfile.LNKTYPE, "000"), ("c/d", tarfile.SYMTYPE, "../000")):
            for ending in ("png", "cls"):
                link = tarfile.TarInfo(f"{name}.{ending}")
                link.type, link.linkname = kind, f"{target}.{ending}"
                tar.addfile(link)
    once = gf.data.load_dataset(shard, image_size=8)
    assert len(once) == 6
    for copy in (4, 5):
        assert torch.equal(once.images[copy], once.images[0])
    assert once.labels.tolist() == [0, 0, 1, 1, 0, 0]
    shard.write_bytes(shard.read_bytes() * 2)
    twice = gf.data.load_dataset(shard, image_size=8)
    assert torch.equal(twice.images, torch.cat([once.images, once.images]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.LNKTYPE, r"a\.png of shard .*a\.tar is a link to no file in it"),
        (tarfile.GNUTYPE_SPARSE, r"a\.png of shard .*a\.tar is a sparse file"),
    ],
)
def test_what_holds_no_image_is_named(kind: bytes, message: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = kind, "gone.png"
        tar.addfile(member)
    with pytest.raises(ValueError, match=message):
        gf.data.load_dataset(tmp_path / "a.tar", image_size=8)


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz", "b.tgz"])
@pytest.mark.parametrize("beside", [True, False])
def test_compressed_shards_are_refused(name: str, beside: bool, tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, write_images(tmp_path / ".images", 2), 1)
    (tmp_path / name).write_bytes(gzip.compress(shard.read_bytes()))
    if not beside:
        shard.unlink()
    for data in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=rf"shard .*{name} is compressed: unpack it with gunzip"):
            gf.data.load_dataset(data, image_size=8)
