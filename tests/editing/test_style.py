from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genimg_fast import models
from genimg_fast.cli import main
from genimg_fast.editing import colours, load_picture, save_picture, style_features, style_network, stylise
from genimg_fast.editing.colours import moved, recoloured
from genimg_fast.editing.patches import resized
from genimg_fast.editing.pictures import to_grey


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.fixture
def content() -> Tensor:
    """A dark disc on light ground, grey-blue."""
    rows, columns = torch.arange(40)[:, None], torch.arange(48)
    disc = ((rows - 20) ** 2 + (columns - 24) ** 2 < 144).float()
    return torch.tensor([0.8, 0.8, 0.9]).view(3, 1, 1) * (1 - 0.7 * disc)


def stripes(*colour: float) -> Tensor:
    """Upright stripes, dark above and light below."""
    light = (torch.arange(40) // 3 % 2) * 0.3 + torch.linspace(0.1, 0.7, 40)[:, None]
    return light * torch.tensor(colour).view(3, 1, 1)


RED, GREEN = (1.0, 0.3, 0.2), (0.2, 1.0, 0.3)


def steps(picture: Tensor) -> Tensor:
    return picture.diff(dim=2).abs().mean()


def test_a_picture_gets_the_texture_and_colours_and_keeps_what_it_shows(content: Tensor) -> None:
    made = stylise(content, style=[stripes(*RED)], generator=seeded())
    assert made.shape == content.shape
    assert 0 <= made.min() <= made.max() <= 1
    torch.testing.assert_close(made.mean((1, 2)), stripes(*RED).mean((1, 2)), rtol=0, atol=0.12)
    assert steps(made) > 2 * steps(content)  # stripes
    faithful = stylise(content, style=[stripes(*RED)], content_weight=5.0, generator=seeded())
    assert steps(faithful) < steps(made)
    ground, disc = to_grey(faithful)[0, :6].mean(), to_grey(faithful)[0, 14:26, 18:30].mean()
    assert disc < ground - 0.05


def test_colours_can_be_preserved(content: Tensor) -> None:
    made = stylise(content, style=[stripes(*RED)], preserve_colours=True, generator=seeded())
    inside = ((made > 0.01) & (made < 0.99)).all(0)
    assert inside.float().mean() > 0.5
    # Only the brightness has changed: channels differ as they did.
    for pair in ((0, 1), (1, 2)):
        difference = (made[pair[0]] - made[pair[1]]) - (content[pair[0]] - content[pair[1]])
        assert difference[inside].abs().max() < 1e-5
    assert steps(made) > 2 * steps(content)


def test_styles_have_weights(content: Tensor) -> None:
    both = [stripes(*RED), stripes(*GREEN)]
    redness = [
        float((made[0] - made[1]).mean())
        for weights in ([9.0, 1.0], [1.0, 9.0])
        for made in [stylise(content, style=both, style_weights=weights, generator=seeded())]
    ]
    assert redness[0] > redness[1] + 0.2


def test_styles_have_regions_and_the_rest_stays(content: Tensor) -> None:
    left, middle = torch.zeros(2, 1, 40, 48)
    left[..., :16], middle[..., 16:32] = 1, 1
    made = stylise(content, style=[stripes(*RED), stripes(*GREEN)], masks=[left, middle], generator=seeded())
    assert torch.equal(made[..., 32:], content[..., 32:])
    assert (made[0] > made[1])[:, :12].float().mean() > 0.9
    assert (made[1] > made[0])[:, 20:28].float().mean() > 0.9


def test_grey_and_colour(content: Tensor) -> None:
    assert stylise(content[:1], style=[stripes(*RED)], generator=seeded()).shape == (3, 40, 48)
    assert stylise(content[:1], style=[stripes(*RED)], preserve_colours=True).shape == (1, 40, 48)
    made = stylise(content.double(), style=[stripes(*RED)[:1]], style_scale=0.6, generator=seeded())
    assert made.dtype == torch.float64
    assert made.shape == (3, 40, 48)
    assert torch.equal(
        made, stylise(content.double(), style=[stripes(*RED)[:1]], style_scale=0.6, generator=seeded())
    )


def test_moved_colours_have_the_mean_and_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = torch.rand(2, 3, 5000, generator=seeded(), dtype=torch.float64) * 0.2 + 0.3
    theirs[1] = 0.5 * theirs[0] + 0.2 * theirs[1] + 0.1
    result = moved(ours, theirs, torch.ones(5000))
    torch.testing.assert_close(result.mean(1), theirs.mean(1), rtol=0, atol=1e-3)
    torch.testing.assert_close(result.cov(), theirs.cov(), rtol=0.02, atol=1e-4)
    torch.testing.assert_close(moved(ours, ours, torch.ones(5000)), ours)
    monkeypatch.setattr(colours, "_PIECE", 1200)
    weights = torch.rand(5000, generator=seeded())
    in_pieces = moved(ours, theirs, weights)
    monkeypatch.undo()
    torch.testing.assert_close(in_pieces, moved(ours, theirs, weights))


def test_features_paint_from_coarse_to_fine(content: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style_features, "_STEPS", 60)
    options = {"style": [stripes(*RED)], "method": "features", "content_weight": 3.0}
    made = stylise(content, **options, generator=seeded())
    assert made.shape == content.shape
    torch.testing.assert_close(made.mean((1, 2)), stripes(*RED).mean((1, 2)), rtol=0, atol=0.12)
    assert steps(made) > 1.5 * steps(content)
    both = torch.stack([to_grey(made).flatten(), to_grey(content).flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.5
    assert torch.equal(made, stylise(content, **options, generator=seeded()))


def test_features_of_large_pictures_are_compared_in_part(content: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style_features, "_STEPS", 60)
    whole = stylise(content, style=[stripes(*RED)], method="features", generator=seeded())
    monkeypatch.setattr(style_features, "_COMPARED", 2**8)
    part = stylise(content, style=[stripes(*RED)], method="features", generator=seeded())
    assert (part - whole).abs().mean() < 0.15
    assert steps(part) > 1.5 * steps(content)


def gradient(descend: Callable[[Tensor], None], picture: Tensor) -> Tensor:
    picture = picture.clone().requires_grad_()
    descend(picture)
    assert picture.grad is not None
    return picture.grad


def test_a_loss_in_parts_has_the_gradient_of_the_whole(content: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = torch.rand(3, 40, 48, generator=seeded())

    def found() -> Tensor:
        generator = seeded()
        descend = style_features._patch_loss(content, [stripes(*RED), stripes(*GREEN)], [1, 2], 0.5, generator)
        return gradient(descend, picture)

    whole = found()
    monkeypatch.setattr(style_features, "_WHOLE", 40 * 48 - 1)
    torch.testing.assert_close(found(), whole, rtol=1e-4, atol=1e-7)


def test_tiles_have_the_gradient_of_the_whole_picture_style(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Gram matrices are those of the picture: tiles that lack the style's colours do not get all of them."""
    torch.manual_seed(0)
    # It sees single pixels, so that borders of tiles are nothing to it.
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 1), torch.nn.ReLU(), torch.nn.Conv2d(6, 4, 1)).double()
    network.requires_grad_(False)
    monkeypatch.setattr(style_features, "_SMOOTHNESS", 0.0)
    picture, target, style = torch.rand(3, 3, 40, 48, generator=seeded(), dtype=torch.float64)
    picture[:, :20] *= 0.3

    def found() -> Tensor:
        return gradient(style_features._feature_loss(network, target, [style], [1], 0.7, seeded()), picture)

    whole = found()
    monkeypatch.setattr(style_features, "_TILE", 10)
    torch.testing.assert_close(found(), whole, rtol=0, atol=3e-4 * float(whole.abs().max()))


def test_features_of_a_network_in_tiles(content: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "squeezenet.pth")
    monkeypatch.setattr(style_features, "_TILE", 96)
    monkeypatch.setattr(style_features, "_STEPS", 4)
    content = resized(content, (100, 160)).clamp(0, 1)
    style = [stripes(*RED), stripes(*GREEN)]
    made = stylise(
        content, style=style, method="features", style_weights=[1.0, 2.0], network=tmp_path / "squeezenet.pth",
        generator=seeded(),
    )  # fmt: skip
    start = recoloured(content, style, [1.0, 2.0]).clamp(0, 1)
    changed = (made - start).abs().amax(0) > 0
    assert changed.float().mean() > 0.9  # every step moves all pixels
    save_picture(content, tmp_path / "cat.png")
    with pytest.raises(ValueError, match="network must be a file of vgg16"):
        stylise(content, style=style, method="features", network=tmp_path / "cat.png")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    models.StyleNet(channels=4, n_residual=1).save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def test_tiles_of_a_network_are_the_whole_picture(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = torch.rand(3, 118, 101, generator=seeded())
    model = models.load(network)
    monkeypatch.setattr(style_network, "_TILE", 16)
    for most, size in (2**20, (118, 101)), (3000, (59, 51)):
        monkeypatch.setattr(style_network, "_THUMBNAIL", most)
        small = style_network.thumbnail(picture)[None] * 2 - 1
        assert small.shape[2:] == size
        fixed = model.with_statistics_of(small)
        with torch.no_grad():
            whole = fixed(picture[None] * 2 - 1)[0] / 2 + 0.5
        tiled = stylise(picture, model=network)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_a_network_keeps_colours_and_grey(network: Path, content: Tensor, tmp_path: Path) -> None:
    assert stylise(content[:1], model=network).shape == (3, 40, 48)
    made = stylise(content * 0.5 + 0.2, model=network, preserve_colours=True) - (content * 0.5 + 0.2)
    inside = (made.abs() < 0.2).all(0)
    assert (made[0] - made[1])[inside].abs().max() < 1e-5
    models.StyleNet(c_dim=1, channels=4, n_residual=1).save_pretrained(tmp_path / "grey")
    assert stylise(content[:1], model=tmp_path / "grey").shape == (1, 40, 48)
    assert stylise(content, model=tmp_path / "grey", preserve_colours=True).shape == (3, 40, 48)
    models.Restorer(channels=4, depth=4).save_pretrained(tmp_path / "other")
    for wrong, message in (
        ("grey", "model must be for colours"),
        ("other", "model must be a run of style-net, got one of Restorer"),
        ("none", "model must be a run of style-net: "),
    ):
        with pytest.raises(ValueError, match=message):
            stylise(content, model=tmp_path / wrong)


def test_bad_arguments(content: Tensor) -> None:
    style, mask = [stripes(*RED)], torch.ones(1, 40, 48)
    for wrong, message in (
        ({"style": None}, "style must be given, or else a model"),
        ({"model": "run"}, "style must be left out: the model is the style"),
        ({"model": "run", "style": None, "method": "transport"}, "method must be left out: the model"),
        ({"model": "run", "style": None, "content_weight": 1.0}, "content_weight must be left out: the model"),
        ({"method": "magic"}, "method must be one of transport, features"),
        ({"method": "features", "masks": [mask]}, "masks must be left out: only transport has regions"),
        ({"network": "vgg.pth"}, "network must be left out: only the method features takes one"),
        ({"content_weight": -1.0}, "content_weight must be at least 0, got -1"),
        ({"style": []}, "style must be one picture or more, got none"),
        ({"style": [style[0][:, :9]]}, "style must have at least 16 pixels a side, two patches, got 40x9"),
        ({"style": [style[0][0]]}, "style must be of shape"),
        ({"style_weights": [1.0, 2.0]}, "style_weights must be 1, one for each style, got 2"),
        ({"style_weights": [0.0]}, "style_weights must be above 0"),
        ({"style_scale": 0.0}, "style_scale must be above 0, got 0"),
        ({"masks": [mask, mask]}, "masks must be 1, one for each style, got 2"),
        ({"masks": [mask[:, 1:]]}, "masks must have the picture's size, 48x40 pixels, got 48x39"),
    ):
        with pytest.raises(ValueError, match=message):
            stylise(content, **{"style": style, **wrong})


def test_the_command(content: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    save_picture(content, "cat.png")
    save_picture(stripes(*RED), "stripes.png")
    assert main(["edit", "style", "cat.png", "--style", "stripes.png", "--seed", "3"]) == 0
    assert capsys.readouterr().out == "cat-style.png\n"
    expected = stylise(load_picture("cat.png"), style=[load_picture("stripes.png")], generator=seeded(3))
    torch.testing.assert_close(load_picture("cat-style.png"), expected, rtol=0, atol=0.6 / 255)
    with pytest.raises(SystemExit):
        main(["edit", "style", "cat.png", "--style", "stripes.png", "--masks", "stripes.png"])
    assert "argument --masks: must have the picture's size" in capsys.readouterr().err
