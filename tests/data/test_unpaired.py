from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import genimg_fast as gf
from genimg_fast.data import UnpairedImages, batches, load_unpaired


def numbered(n: int) -> gf.data.ImageDataset:
    """Images that are their numbers all over."""
    return gf.data.ImageDataset(
        torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 4, 4).contiguous()
    )


def numbers(images: torch.Tensor) -> tuple[list[int], list[int]]:
    a, b = ((half[:, 0, 0, 0] + 1) * 127.5 for half in images.chunk(2, 3))
    return a.round().int().tolist(), b.round().int().tolist()


def test_an_epoch_has_each_image_once_and_other_partners_every_time() -> None:
    data = UnpairedImages(numbered(12), numbered(6))
    assert len(data) == 12
    stream = batches(data, 3, seed=5)
    got = [numbers(next(stream)[0]) for _ in range(8)]
    first, second = ([k for a, _ in got[start : start + 4] for k in a] for start in (0, 4))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    for k in range(0, 8, 2):
        assert sorted(got[k][1] + got[k + 1][1]) == list(range(6))
    pairs = [set(zip(*got[k], strict=True)) for k in range(8)]
    assert len(set().union(*pairs)) > 12  # other partners in the second epoch

    later = batches(data, 3, seed=5, start=5)
    assert [numbers(next(later)[0]) for _ in range(3)] == got[5:]
    parts = [batches(data, 3, seed=5, part=part, parts=3) for part in range(3)]
    assert [[k for part in parts for k in numbers(next(part)[0])[0]] for _ in range(4)] == [a for a, _ in got[:4]]


def test_kinds_of_one_size_do_not_keep_their_partners() -> None:
    a, b = numbers(next(batches(UnpairedImages(numbered(8), numbered(8)), 8))[0])
    assert a != b


def test_indices_are_of_the_whole() -> None:
    data = UnpairedImages(numbered(10), numbered(6))
    assert numbers(data[torch.tensor([-1, -10])][0]) == ([9, 0], [3, 0])
    assert numbers(data[torch.arange(10) > 7][0]) == ([8, 9], [2, 3])
    with pytest.raises(IndexError):
        data[torch.tensor([10])]


def test_items_pieces_and_a_split() -> None:
    data = UnpairedImages(numbered(10), numbered(5))
    assert numbers(data[torch.tensor([1, 7])][0]) == ([1, 7], [1, 2])
    assert numbers(data[6:8][0]) == ([6, 7], [1, 2])
    assert torch.equal(data[-3][0], data[7:8][0][0])
    pieces = list(data.pieces([torch.tensor([1, 7]), torch.tensor([9])]))
    assert [numbers(images) for images, _ in pieces] == [([1, 7], [1, 2]), ([9], [4])]
    training, held_out = data.split(0.2, seed=1)
    assert (len(training.a), len(training.b), len(held_out.a), len(held_out.b)) == (8, 4, 2, 1)
    changing = UnpairedImages(gf.data.Augmented(numbered(4), flip=True), numbered(4))
    assert [sorted(kind) for kind in numbers(next(batches(changing, 4))[0])] == [[0, 1, 2, 3]] * 2
    with pytest.raises(ValueError, match=r"same shape, got \(1, 4, 4\) and \(1, 8, 8\)"):
        UnpairedImages(numbered(4), torch.zeros(3, 1, 8, 8))


@pytest.mark.parametrize("names", [("A", "B"), ("trainA", "trainB"), ("horses", "zebras")])
def test_folders(names: tuple[str, str], tmp_path: Path) -> None:
    for kind, colour in zip(names, (40, 200), strict=True):
        (tmp_path / kind).mkdir()
        for k in range(3):
            pixels = (
                np.full((8, 8, 3), colour + k, np.uint8)
                if kind == names[0]
                else np.full((8, 8), colour + k, np.uint8)
            )
            Image.fromarray(pixels).save(tmp_path / kind / f"{k}.png")
    folders = [tmp_path / kind for kind in names]
    data = load_unpaired(folders if names[0] == "horses" else tmp_path, image_size=8)
    images, _ = data[torch.arange(3)]
    assert images.shape == (3, 3, 8, 16)  # colour, since one kind is
    assert numbers(images) == ([40, 41, 42], [200, 201, 202])
    assert data.identify() == load_unpaired(folders, image_size=8).identify()
    assert data.identify() != load_unpaired(folders[::-1], image_size=8).identify()


def test_folders_that_are_not_two(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no subfolders A and B, or trainA and trainB: name two folders"):
        load_unpaired(tmp_path, image_size=8)
    with pytest.raises(ValueError, match="there is no folder"):
        load_unpaired(tmp_path / "none", image_size=8)
    with pytest.raises(ValueError, match="paths must be two folders, or one with two, got 3"):
        load_unpaired([tmp_path] * 3, image_size=8)
