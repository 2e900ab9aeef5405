from pathlib import Path

import pytest
import torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast.metrics import (
    FeatureNetwork,
    FidelityNetwork,
    GaussianStatistics,
    InceptionNetwork,
    PerceptualSimilarity,
    RandomNetwork,
    extract_features,
    frechet_distance,
    judge_discriminator,
    plot_roc,
    psnr,
    real_features,
    ssim,
)


class Pixels(FeatureNetwork):
    dim, num_classes, identity = 4, 2, "pixels"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.calls = 0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        features = images.flatten(1)[:, :4] * self.weight
        return features, features[:, :2]


def dataset(seed: int = 0) -> gf.data.ImageDataset:
    generator = torch.Generator().manual_seed(seed)
    return gf.data.ImageDataset(torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8, generator=generator))


def test_features_are_kept_for_the_same_images_and_network(tmp_path: Path) -> None:
    network = Pixels()
    first = real_features(dataset(), network, cache=tmp_path)
    assert network.calls == 1
    again = real_features(dataset(), network, cache=tmp_path)
    assert network.calls == 1
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.logits, again.logits)
    real_features(dataset(1), network, cache=tmp_path)  # other images
    with torch.no_grad():
        network.weight.mul_(2)
    real_features(dataset(), network, cache=tmp_path)  # another network
    assert network.calls == 3
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("size", [0, 10, 700, -1])
def test_damaged_features_are_computed_again(size: int, tmp_path: Path) -> None:
    network = Pixels()
    first = real_features(dataset(), network, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:size])
    for _ in range(2):
        assert torch.equal(real_features(dataset(), network, cache=tmp_path).features, first.features)
    assert network.calls == 2  # the file was replaced
    assert list(tmp_path.iterdir()) == [file]


def test_a_network_without_parameters(tmp_path: Path) -> None:
    class Corner(FeatureNetwork):
        dim, num_classes, identity = 4, 2, "corner"

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images[:, 0, 0], images[:, 0, 0, :2]

    for _ in range(2):
        assert real_features(dataset(), Corner(), cache=tmp_path).features.shape == (20, 4)
    assert extract_features([], Corner()).features.shape == (0, 4)


def test_inception_network(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    weights = tmp_path / "inception.pt"
    torch.save(torchvision.models.inception_v3(weights=None, init_weights=False).state_dict(), weights)
    network = InceptionNetwork(weights)
    features, logits = network(torch.rand(2, 1, 32, 32) * 2 - 1)
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1000)
    torch.save({"a": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="does not hold the weights of inception_v3"):
        InceptionNetwork(weights)
    with pytest.raises(
        FileNotFoundError, match="needs a file of weights, or leave to download them: --weights or --download"
    ):
        InceptionNetwork()


def save_untrained_fidelity_weights(file: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    """Write a file like torch-fidelity's, of random weights; return the class of the network."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    extractor = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(extractor, "load_state_dict", lambda self, state: None)
        torch.save(extractor("inception-v3-compat", ["2048"]).state_dict(), file)
    return extractor


def test_fidelity_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights.pth"
    extractor = save_untrained_fidelity_weights(weights, monkeypatch)
    theirs = extractor("inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights)
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    network = FidelityNetwork(weights)
    found = network(pixels / 127.5 - 1)
    torch.testing.assert_close(found, theirs(pixels.expand(-1, 3, -1, -1)), rtol=0, atol=0)
    assert not network.published
    assert "other weights than published" in network.identity


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")

    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "it ran",))

    torch.save({"weights": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(
        ValueError, match=r"weights\.pth does not hold the weights of torch-fidelity's inception-v3"
    ):
        FidelityNetwork(tmp_path / "weights.pth")
    assert not (tmp_path / "it ran").exists()


def test_psnr_and_ssim_equal_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 2, 24, 24) * 2 - 1
    each = [functional.peak_signal_noise_ratio(x, y, data_range=2.0) for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(psnr(a, b), torch.stack(each))
    assert psnr(a, a).isinf().all()
    torch.testing.assert_close(ssim(a, a), torch.ones(3))
    expected = functional.structural_similarity_index_measure(a / 2 + 0.5, b / 2 + 0.5, data_range=1.0)
    torch.testing.assert_close(ssim(a, b).mean(), expected)
    constant = torch.zeros(1, 1, 16, 16)
    assert ssim(constant, constant + 0.1).item() > 0.99
    with pytest.raises(ValueError, match="must have the same shape"):
        psnr(a, b[:1])
    with pytest.raises(ValueError, match="at least 11 pixels a side, the size of the window, got 24x10"):
        ssim(a[..., :10], b[..., :10])


def test_perceptual_similarity_with_a_network_of_ones_own() -> None:
    distance = PerceptualSimilarity(lambda a, b: (a - b).abs().mean((1, 2, 3), keepdim=True))
    assert distance(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)).tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore:.*deprecated since 0.13:UserWarning")  # lpips asks torchvision the old way
def test_backbones_of_perceptual_similarity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backbone must be one of alex, vgg, squeeze, or a module, got 'foo'"):
        PerceptualSimilarity("foo")
    models = pytest.importorskip("torchvision.models")
    pytest.importorskip("lpips")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for backbone in ("alex", "vgg", "squeeze"):
        with pytest.raises(FileNotFoundError, match=r"\.pth: put https://.* there or pass download=True"):
            PerceptualSimilarity(backbone)
    weights = tmp_path / "hub" / "checkpoints" / Path(models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url).name
    weights.parent.mkdir(parents=True)
    torch.save(models.squeezenet1_1().state_dict(), weights)
    images = torch.rand(2, 3, 32, 32)
    assert PerceptualSimilarity("squeeze")(images, images).tolist() == [0, 0]


def test_discriminators_that_know_all_nothing_or_the_opposite(tmp_path: Path) -> None:
    high, low = torch.linspace(1, 2, 10), torch.linspace(-2, -1, 10)
    assert judge_discriminator(high, low)[:2] == (1, 1)
    assert judge_discriminator(low, high)[:2] == (0, 0)
    same = judge_discriminator(high, high)
    assert same[:2] == (0.5, 0.5)
    plot_roc(same, tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 1000
    plot_roc(same, tmp_path / "titled.png", title="10 held-out images of $digits")
    assert (tmp_path / "titled.png").read_bytes() != (tmp_path / "roc.png").read_bytes()
    with pytest.raises(ValueError, match="must not be empty"):
        judge_discriminator(high, torch.zeros(0))
    with pytest.raises(ValueError, match="must be finite"):
        judge_discriminator(high, torch.tensor([torch.nan]))


def test_random_network_is_always_the_same_and_tells_sets_apart() -> None:
    torch.manual_seed(1)
    network = RandomNetwork()
    torch.manual_seed(2)
    torch.testing.assert_close(network.state_dict(), RandomNetwork().state_dict(), rtol=0, atol=0)
    data = gf.data.load_dataset("digits", image_size=16)

    def statistics(images: Tensor) -> GaussianStatistics:
        found = GaussianStatistics(network.dim)
        found.update(network(images)[0])
        return found

    halves = [statistics(data[start::2][0]) for start in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(900, 1, 16, 16, generator=generator) * 2 - 1
    shuffled = data[:900][0].flatten(1)[:, torch.randperm(256, generator=generator)].view(-1, 1, 16, 16)
    floor = frechet_distance(*halves)
    for others in (noise, shuffled):
        assert frechet_distance(halves[0], statistics(others)) > 10 * floor
    assert network(torch.zeros(3, 3, 40, 40))[1].shape == (3, 0)
