import pytest
import torch

import genimg_fast as gf


def numbered(n: int = 40) -> gf.data.ImageDataset:
    pixels = torch.arange(6 * 5).view(1, 1, 6, 5).expand(n, -1, -1, -1) * 8
    return gf.data.ImageDataset(pixels.to(torch.uint8).contiguous(), torch.arange(n))


def test_flips_half_of_the_images() -> None:
    torch.manual_seed(0)
    data = numbered()
    images, labels = gf.data.Augmented(data, flip=True)[torch.arange(40)]
    plain = data[torch.arange(40)][0]
    same = (images == plain).flatten(1).all(1)
    mirrored = (images == plain.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 8 < same.sum() < 32
    assert torch.equal(labels, torch.arange(40))


def test_shifts_by_up_to_so_many_pixels() -> None:
    torch.manual_seed(0)
    data = numbered()
    images, _ = gf.data.Augmented(data, shift=2)[torch.arange(40)]
    padded = torch.nn.functional.pad(data[torch.arange(40)][0], [2] * 4, mode="reflect")
    windows = {(top, left): padded[0, :, top : top + 6, left : left + 5] for top in range(5) for left in range(5)}
    found = {place for image in images for place, window in windows.items() if torch.equal(image, window)}
    assert all(any(torch.equal(image, window) for window in windows.values()) for image in images)
    assert len(found) > 15


def test_another_time_another_change_but_the_same_for_a_seed() -> None:
    data = gf.data.Augmented(numbered(), flip=True, shift=1)
    torch.manual_seed(1)
    first, second = data[torch.arange(40)][0], data[torch.arange(40)][0]
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(data[torch.arange(40)][0], first)


def test_bad_shift() -> None:
    with pytest.raises(ValueError, match=r"shift must lie in 0\.\.4, got 5"):
        gf.data.Augmented(numbered(), shift=5)
