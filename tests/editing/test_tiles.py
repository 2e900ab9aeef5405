import pytest
import torch

import genimg_fast as gf
from genimg_fast.editing.tiles import in_tiles, random_tiles


@pytest.mark.parametrize("size", [(40, 50), (33, 97), (16, 16), (7, 64)])
@pytest.mark.parametrize("tile", [16, 20])
def test_tiles_are_as_the_whole_picture(size: tuple[int, int], tile: int) -> None:
    image = torch.rand(3, *size, dtype=torch.float64)
    smooth = torch.nn.AvgPool2d(7, stride=1, padding=3)
    sizes = []

    def function(part: torch.Tensor) -> torch.Tensor:
        sizes.append(max(part.shape[1:]))
        return smooth(part)[:2].repeat_interleave(2, 1).repeat_interleave(2, 2)

    tiled = in_tiles(function, image, margin=3, size=tile, scale=2)
    assert max(sizes) <= tile + 2 * 3 + 1 or len(sizes) == 1
    torch.testing.assert_close(tiled, function(image), rtol=0, atol=1e-12)


@pytest.mark.parametrize("task", ["jpeg", "sr3"])
def test_a_network_in_tiles_is_as_on_the_whole_picture(task) -> None:
    torch.manual_seed(0)
    model = gf.models.Restorer(task, c_dim=3, channels=4).eval().double()  # bicubic places are rounded in float32
    image = torch.rand(3, 75, 181, dtype=torch.float64)
    with torch.no_grad():
        whole = model(image[None])[0]
        options = {"size": 24, "scale": model.scale, "multiple": model.multiple}
        tiled = in_tiles(lambda part: model(part[None])[0], image, margin=model.reach, **options)
        narrow = in_tiles(lambda part: model(part[None])[0], image, margin=0, **options)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    assert (narrow - whole).abs().max() > 1e-4  # the margin is needed


def test_seams_are_where_the_network_begins_anew_without_multiples() -> None:
    image = torch.rand(1, 40, 40)
    pairs = torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.Upsample(scale_factor=2))

    def function(part):
        return pairs(part[None])[0]

    assert not torch.allclose(in_tiles(function, image, margin=1, size=9), function(image))
    assert torch.allclose(in_tiles(function, image, margin=1, size=9, multiple=2), function(image))


@pytest.mark.parametrize("size", [(40, 50), (33, 97), (16, 25), (200, 7)])
def test_random_tiles_are_the_picture_and_lie_elsewhere_each_time(size: tuple[int, int]) -> None:
    generator, borders = torch.Generator().manual_seed(0), set()
    for _ in range(100):
        times = torch.zeros(size)
        for rows, columns in random_tiles(*size, 16, generator):
            times[rows, columns] += 1
            for place, side in ((rows, size[0]), (columns, size[1])):
                assert min(side, 4) <= place.stop - place.start <= 24
            borders |= {("row", rows.start), ("column", columns.start)}
        assert torch.equal(times, torch.ones(size))
    expected = [
        (what, start) for what, side in zip(("row", "column"), size, strict=True)
        for start in (0, *(range(4, side - 3) if side > 24 else ()))
    ]  # fmt: skip
    assert sorted(borders) == sorted(expected)
