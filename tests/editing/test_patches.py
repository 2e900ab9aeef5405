import pytest
import torch
from torch import Tensor

from genimg_fast.editing import patches as patches_file
from genimg_fast.editing.patches import Patches, match, resized, take_patches, transport


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed))


def taken(*exemplars: Tensor, size: int = 8, shares: tuple[float, ...] = (1, 1), most: int = 10**6) -> Patches:
    return take_patches(exemplars, size, shares=shares[: len(exemplars)], most=most, generator=seeded())


def test_patches_are_the_exemplars_each_once_and_in_proportion() -> None:
    one, two = noise(3, 12, 14), noise(3, 20, 20, seed=1)
    patches = taken(one)
    expected = torch.nn.functional.unfold(one[None], 8)[0].T
    assert sorted(map(tuple, patches.values.tolist())) == sorted(map(tuple, expected.tolist()))
    both = taken(one, two, shares=(1, 3), most=40)
    assert both.sources.bincount().tolist() == [10, 30]


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("evenness", [None, 0.01])
@pytest.mark.parametrize("stride", [None, 1])
def test_a_picture_of_its_own_patches_stays(
    wrap: bool, evenness: float | None, stride: int | None, device: str
) -> None:
    tile = noise(3, 16, 20, seed=2)
    exemplar = tile.repeat(1, 2, 2) if wrap else tile
    patches = taken(exemplar.to(device), size=12)
    moved = transport(tile.to(device), patches, wrap=wrap, evenness=evenness, stride=stride, generator=seeded())
    torch.testing.assert_close(moved.cpu(), tile, rtol=0, atol=0.02 if evenness else 1e-5)


def test_every_exemplar_is_used_when_it_has_to_be() -> None:
    # Half of the patches are white; of a grey picture, a little nearer to black, all would be black.
    black, white = torch.zeros(1, 16, 16), torch.ones(1, 16, 16)
    patches, grey = taken(black, white), 0.45 + 0.02 * noise(1, 32, 32)
    assert transport(grey, patches, evenness=None, generator=seeded()).max() < 1e-5
    assert transport(grey, patches, evenness=0.01, generator=seeded()).mean() > 0.05


def test_regions_are_built_from_their_exemplar() -> None:
    regions = torch.zeros(32, 40, dtype=torch.long)
    regions[:, 20:] = 1
    patches = taken(torch.zeros(1, 16, 16), torch.ones(1, 16, 16))
    built = transport(noise(1, 32, 40), patches, evenness=0.1, regions=regions, generator=seeded())
    assert built[:, :, :16].max() < 1e-5
    assert built[:, :, 24:].min() > 1 - 1e-5


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, patches = noise(3, 40, 24), taken(noise(3, 20, 20, seed=1))
    whole = transport(picture, patches, generator=seeded())
    monkeypatch.setattr("genimg_fast.editing.patches._bands", lambda rows, columns, values: rows.split(3))
    torch.testing.assert_close(transport(picture, patches, generator=seeded()), whole)


@pytest.mark.parametrize("options", [{}, {"evenness": 0.01}, {"evenness": 0.01, "wrap": True}, {"stride": 1}])
@pytest.mark.parametrize("masked", [False, True])
def test_tiles_choose_as_the_whole_picture(options: dict, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The left half looks like one exemplar, the right half like the other: prices of a tile would be others.
    one, two = noise(3, 20, 20).double(), 0.5 * noise(3, 24, 20, seed=1).double()
    picture = torch.cat([noise(3, 44, 30, seed=2).double(), 0.5 * noise(3, 44, 30, seed=3).double()], 2)
    regions = (torch.arange(60) > 25).long().expand(44, 60) if masked else None
    patches = taken(one, two)
    whole = transport(picture, patches, regions=regions, generator=seeded(), **options)
    sizes, choose = [], patches_file._Choice.choose

    def counted(self: object, queries: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(queries))
        return choose(self, queries)

    monkeypatch.setattr(patches_file._Choice, "choose", counted)
    monkeypatch.setattr(patches_file, "_TILE", 7)
    tiled = transport(picture, patches, regions=regions, generator=seeded(), **options)
    assert max(sizes) == 7 * 7
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-9)


def test_matching_brings_the_distribution_nearer_under_no_grad() -> None:
    exemplar = (torch.arange(24) // 3 % 2).float().expand(1, 24, 24)
    with torch.no_grad():
        moved = match(0.5 + 0.1 * noise(1, 24, 24), exemplar, steps=40, wrap=True, generator=seeded())
    assert not moved.requires_grad
    assert moved.std() > 0.2  # of 0.03 and 0.5


def test_resizing_keeps_a_flat_picture() -> None:
    for size in ((5, 9), (10, 18), (20, 31)):
        torch.testing.assert_close(resized(torch.full((3, 10, 18), 0.3), size), torch.full((3, *size), 0.3))
