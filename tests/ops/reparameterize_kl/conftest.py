import pytest

import genimg_fast as gf


@pytest.fixture(autouse=True, params=["native", "reference"])
def backend(request):
    with gf.backend(request.param):
        yield request.param
