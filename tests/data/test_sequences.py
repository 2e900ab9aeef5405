import pytest
import torch

from genimg_fast.data import MovingDigits, load_sequences


def test_load_sequences() -> None:
    options = {"frames": 4, "image_size": 16, "speed": (0.1, 0.2), "seed": 3}
    data = load_sequences("moving-digits", channels=3, train=False, **options)
    expected = MovingDigits(train=False, channels=3, **options)
    assert torch.equal(data[5][0], expected[5][0])
    with pytest.raises(ValueError, match="'nowhere' is neither a folder nor a file nor moving-digits"):
        load_sequences("nowhere", frames=4, image_size=16)
