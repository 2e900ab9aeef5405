"""The maths of csrc/math/gaussian.h on the device: noise against its definition, exponentials against float64."""

from __future__ import annotations

import itertools
from types import ModuleType

import numpy as np
import pytest
import torch

from genimg_fast.ops import normal_from_seed

SEED = -0x123456789ABCDEF  # both halves of the key matter, and the sign does not


def numpy_philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of Salmon et al. 2011; counters and words in the last dimension."""
    c = counter.astype(np.uint64)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[..., 0], 0xCD9E8D57 * c[..., 2]
        low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
        c = np.stack([(p1 >> high) ^ c[..., 1] ^ k0, p1 & low, (p0 >> high) ^ c[..., 3] ^ k1, p0 & low], axis=-1)
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def numpy_normals(radial: np.ndarray, angular: np.ndarray) -> np.ndarray:
    """Box and Muller's transform in float64; only u is rounded to float32, as the definition says."""
    u = radial.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)
    radius, angle = np.sqrt(-2 * np.log(u.astype(np.float64))), angular * (2 * np.pi / 2**32)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the published vectors of Random123
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(emulator: ModuleType, counter: list[int], key: list[int], words: list[int]) -> None:
    assert list(emulator.reparameterize_kl.philox(counter, key)) == words
    assert numpy_philox(np.array(counter), (key[0], key[1])).tolist() == words


@pytest.mark.parametrize(("sample", "first"), [(0, 0), (3, 5), (2**40 + 9, 0), (1, 2**33 + 1)], ids=str)
def test_noise_is_that_of_the_definition(emulator: ModuleType, sample: int, first: int) -> None:
    groups, seed = 2000, SEED % 2**64
    counter = np.zeros((groups, 4), dtype=np.uint64)
    group = first + np.arange(groups)
    counter[:, 0], counter[:, 1] = group % 2**32, group // 2**32
    counter[:, 2], counter[:, 3] = sample % 2**32, sample // 2**32
    words = numpy_philox(counter, (seed % 2**32, seed // 2**32))
    expected = np.concatenate([numpy_normals(*words[:, :2].T), numpy_normals(*words[:, 2:].T)], axis=1).ravel()
    noise = emulator.reparameterize_kl.noise(seed, sample, first, groups)
    np.testing.assert_allclose(noise, expected, rtol=6e-7, atol=0)


def test_noise_is_that_of_the_reference(emulator: ModuleType) -> None:
    rows = [emulator.reparameterize_kl.noise(SEED % 2**64, sample, 0, 27)[:105] for sample in range(3)]
    noise = torch.from_numpy(np.stack(rows)).view(3, 5, 21)
    torch.testing.assert_close(noise, normal_from_seed(SEED, (3, 5, 21)), rtol=2e-6, atol=1e-12)


def test_box_muller_at_the_ends_of_its_range(emulator: ModuleType) -> None:
    edges = [0, 1, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 2**29, 2**32 - 1]
    radial, angular = np.array(list(itertools.product(edges, edges)), dtype=np.int64).T
    normals = [emulator.reparameterize_kl.box_muller(r, a) for r, a in zip(radial, angular, strict=True)]
    # Where cos or sin is zero, float64 has rounding errors only.
    np.testing.assert_allclose(normals, numpy_normals(radial, angular), rtol=6e-7, atol=1e-14)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 6e-7), ("float64", 2e-15)])
def test_exp_without_its_first_terms(emulator: ModuleType, dtype: str, rtol: float) -> None:
    less = getattr(emulator.reparameterize_kl, f"exp_less_{dtype}")
    for x in [*np.linspace(-30, 30, 301), *np.geomspace(1e-18, 0.6, 100), *-np.geomspace(1e-18, 0.6, 100)]:
        x = float(np.dtype(dtype).type(x))
        terms, k = [x], 1
        while abs(x) < 1 and abs(terms[-1]) > 1e-20 * abs(x):  # by the series: the difference has no digits left
            k += 1
            terms.append(terms[-1] * x / k)
        linear = sum(reversed(terms[1:])) if abs(x) < 1 else np.expm1(x) - x
        np.testing.assert_allclose(less(x), [np.expm1(x), linear], rtol=rtol, atol=0)
