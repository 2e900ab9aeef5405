import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import genimg_fast as gf
from genimg_fast.data import MovingDigits


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
