import numpy as np
import pytest
import torch
from PIL import Image

from genimg_fast.editing import upscale


@pytest.mark.parametrize("method", ["lanczos", "bicubic"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_a_ramp_goes_on_between_pixels(method, factor: int) -> None:
    ramp = torch.linspace(0.2, 0.8, 24).expand(3, 20, 24).clone()
    large = upscale(ramp, factor=factor, method=method)
    assert large.shape == (3, 20 * factor, 24 * factor)
    places = (torch.arange(24 * factor) + 0.5) / factor - 0.5
    expected = 0.2 + 0.6 * places / 23
    inside = slice(4 * factor, -4 * factor)
    torch.testing.assert_close(large[1, 5, inside], expected[inside], rtol=0, atol=5e-3)
    torch.testing.assert_close(large, large[:, :1].expand_as(large))


@pytest.mark.parametrize("method", ["lanczos", "bicubic"])
def test_is_what_pillow_does(method) -> None:
    image = torch.rand(1, 9, 7, generator=torch.Generator().manual_seed(0))
    bytes_ = (image[0] * 128).round().byte() + 64  # it clips bytes between its two passes
    kernel = Image.Resampling[method.upper()]
    expected = torch.from_numpy(np.array(Image.fromarray(bytes_.numpy()).resize((21, 27), kernel)))
    large = upscale(bytes_[None].float() / 255, factor=3, method=method)
    torch.testing.assert_close(large[0] * 255, expected.float(), rtol=0, atol=1.1)


def test_lanczos_keeps_more_of_fine_lines() -> None:
    waves = (0.5 + 0.4 * torch.sin(torch.arange(64.0) * 2)).expand(1, 64, 64)
    assert upscale(waves).std() > upscale(waves, method="bicubic").std()
    assert upscale(waves.half()).dtype == torch.float16


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="factor must be from 1 to 16"):
        upscale(torch.zeros(1, 4, 4), factor=0)
    with pytest.raises(ValueError, match="method must be lanczos or bicubic"):
        upscale(torch.zeros(1, 4, 4), method="nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image must be of shape"):
        upscale(torch.zeros(2, 4, 4))
