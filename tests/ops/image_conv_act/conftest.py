import pytest

import genimg_fast as gf


@pytest.fixture(autouse=True)
def _native_backend():
    with gf.backend("native"):
        yield
