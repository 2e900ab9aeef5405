from collections.abc import Iterator

import pytest
import torch

from genimg_fast import _native


@pytest.fixture(autouse=True)
def _new_memory_is_nan() -> Iterator[None]:
    """An element that no kernel writes is NaN in the results."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    _native.fill_new_tensors(True)
    assert torch.empty(3).isnan().all()
    yield
    _native.fill_new_tensors(False)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["avx512", "avx2", "sse2"])
def simd_level(request: pytest.FixtureRequest) -> Iterator[None]:
    """The CPU kernels on one level; bfloat16 data on avx512 uses the products of bfloat16, if there are any."""
    before = _native.simd_level()
    try:
        _native.set_simd_level(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield
    _native.set_simd_level(before)
