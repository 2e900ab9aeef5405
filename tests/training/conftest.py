import pytest

import genimg_fast as gf


@pytest.fixture(scope="session")
def digits() -> gf.data.ImageDataset:
    return gf.data.load_dataset("digits", image_size=16)
