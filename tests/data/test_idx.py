"""IDX files, as MNIST and its relatives are published."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import genimg_fast as gf


def write(folder: Path, stem: str, labels: list[int], *, dot: str = "-", packed: bool = False) -> np.ndarray:
    """Write images whose pixels differ, and their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    n = len(labels)
    pixels = np.random.default_rng(len(stem)).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    for name, content in [
        (f"{stem}-images{dot}idx3-ubyte", struct.pack(">4I", 0x803, n, 28, 28) + pixels.tobytes()),
        (f"{stem}-labels{dot}idx1-ubyte", struct.pack(">2I", 0x801, n) + bytes(labels)),
    ]:
        (folder / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)
    return pixels


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dot", ["-", "."])
def test_a_plain_folder(packed: bool, dot: str, tmp_path: Path) -> None:
    training = write(tmp_path, "train", [5, 0, 4, 9], dot=dot, packed=packed)
    test = write(tmp_path, "t10k", [7, 2], dot=dot, packed=packed)
    data = gf.data.load_dataset(tmp_path, image_size=28)
    assert torch.equal(data.images[:, 0], torch.from_numpy(training))
    assert data.labels.tolist() == [5, 0, 4, 9]
    assert data.class_names == list("0123456789")
    held_out = gf.data.load_dataset(tmp_path / f"t10k-images{dot}idx3-ubyte{'.gz' * packed}", image_size=28)
    assert torch.equal(held_out.images[:, 0], torch.from_numpy(test))
    assert gf.data.load_dataset(tmp_path, image_size=32, channels=3).images.shape == (4, 3, 32, 32)


@pytest.mark.parametrize(
    ("kind", "labels", "classes", "expected"),
    [
        ("letters", [1, 26], "abcdefghijklmnopqrstuvwxyz", [0, 25]),
        ("digits", [3, 9], "0123456789", [3, 9]),
        ("balanced", [10, 46], "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt", [10, 46]),
    ],
)
def test_emnist(kind: str, labels: list[int], classes: str, expected: list[int], tmp_path: Path) -> None:
    pixels = write(tmp_path, f"emnist-{kind}-train", labels, packed=True)
    write(tmp_path, f"emnist-{kind}-test", labels, packed=True)
    data = gf.data.load_dataset(tmp_path, image_size=28)
    assert torch.equal(data.images[:, 0], torch.from_numpy(pixels).mT)  # published with rows and columns exchanged
    assert (data.labels.tolist(), data.class_names) == (expected, list(classes))
    write(tmp_path, "emnist-mnist-train", [1])
    with pytest.raises(ValueError, match=r"holds 2 data sets: give the file of one's images, such as .*emnist-"):
        gf.data.load_dataset(tmp_path, image_size=28)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("which", ["images-idx3", "labels-idx1"])
@pytest.mark.parametrize("damage", [lambda c: c[:-3], lambda c: c + b"x", lambda c: b"", lambda c: b"no IDX file"])
def test_a_damaged_file_is_named(packed: bool, which: str, damage: object, tmp_path: Path) -> None:
    write(tmp_path, "train", [1, 2], packed=packed)
    file = tmp_path / f"train-{which}-ubyte{'.gz' * packed}"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f"cannot read .*train-{which}"):
        gf.data.load_dataset(tmp_path, image_size=28)


def test_images_and_labels_have_to_fit(tmp_path: Path) -> None:
    write(tmp_path, "train", [1, 2, 3])
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 2) + bytes(2))
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte do not fit: labels must be int64 of shape \(3,\)"):
        gf.data.load_dataset(tmp_path, image_size=28)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 2, 0, 0))
    with pytest.raises(ValueError, match=r"those of .*train-images-idx3-ubyte have 0x0"):
        gf.data.load_dataset(tmp_path, image_size=28)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"there are no labels beside .*: neither train-labels-idx1-ubyte nor"):
        gf.data.load_dataset(tmp_path, image_size=28)
    with pytest.raises(ValueError, match="leave crops at 0"):
        gf.data.load_dataset(tmp_path, image_size=28, crops=5)


def test_damaged_files_of_torchvisions_folder_are_named(tmp_path: Path) -> None:
    write(tmp_path / "FashionMNIST" / "raw", "train", [1, 2])
    assert gf.data.load_dataset("fashion-mnist", image_size=28, root=tmp_path).class_names[1] == "Trouser"
    (tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read .*FashionMNIST.*train-images-idx3-ubyte"):
        gf.data.load_dataset("fashion-mnist", image_size=28, root=tmp_path, download=True)
