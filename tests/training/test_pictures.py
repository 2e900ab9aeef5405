from pathlib import Path

import pytest
import torch
from PIL import Image

from genimg_fast.training import plot_latents, save_animation, save_grid


@pytest.mark.parametrize(("n", "columns", "size"), [(9, None, (3, 3)), (5, None, (3, 2)), (6, 6, (6, 1))])
def test_grid(n: int, columns: int | None, size: tuple[int, int], tmp_path: Path) -> None:
    save_grid(torch.zeros(n, 1, 8, 6), tmp_path / "grid.png", columns=columns)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (size[0] * (6 + 2) + 2, size[1] * (8 + 2) + 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_animation_plays_forth_and_back(channels: int, tmp_path: Path, device: str) -> None:
    levels = torch.tensor([-1.0, 0.0, 0.6, 1.0], device=device)
    save_animation(levels.view(1, 4, 1, 1, 1).expand(2, 4, channels, 8, 8), tmp_path / "fade.gif", milliseconds=50)
    with Image.open(tmp_path / "fade.gif") as animation:
        assert animation.size == (2 * (8 + 2) + 2, 8 + 2 + 2)
        assert (animation.info["loop"], animation.info["duration"]) == (0, 50)
        shown = []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            shown.append(animation.convert("L").getpixel((5, 5)))
    assert shown == [0, 128, 204, 255, 204, 128]


@pytest.mark.parametrize("z_dim", [2, 5])
@pytest.mark.parametrize("classes", [3, 25])
def test_latents(z_dim: int, classes: int, tmp_path: Path, device: str) -> None:
    mu, labels = torch.randn(50, z_dim, device=device), torch.arange(50, device=device) % classes
    before = mu.clone()
    plot_latents(mu, labels, [f"class {label}" for label in range(classes)], tmp_path / "latent.png")
    assert torch.equal(mu, before)
    with Image.open(tmp_path / "latent.png") as plot:
        assert plot.size == (700, 600)
        assert len(plot.convert("RGB").getcolors(1 << 20)) > classes


@pytest.mark.parametrize("shape", [(50, 1), (50,), (0, 2)])
def test_latents_of_another_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mu must have shape \(n, z_dim\) with z_dim of at least 2, got \("):
        plot_latents(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64), ["0"], tmp_path / "latent.png")
