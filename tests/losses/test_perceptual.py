import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from genimg_fast.losses import (
    ContentLoss,
    PerceptualLoss,
    StyleLoss,
    TotalVariationLoss,
    gram_matrix,
    load_features,
)


@pytest.fixture
def network() -> nn.Sequential:
    """With what a copy has to keep quiet: batch norm in training, in-place layers, a part for one size only."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5, 2),
    ).double()  # fmt: skip


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def test_features_are_the_networks_on_normalised_images(network: nn.Sequential, device: str) -> None:
    loss = PerceptualLoss(network, ["0", "2"]).to(device)
    given = images(2, 3, 9, 12).to(device)
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(3, 1, 1)
    network.eval().to(device)
    first = network[0]((given - mean) / std)
    torch.testing.assert_close(loss.features(given)[0], first)  # not written over by the layers behind
    torch.testing.assert_close(loss.features(given)[1], network[1](first).relu())
    wide = PerceptualLoss(network, ["0"], value_range=(-1, 1)).to(device)
    torch.testing.assert_close(wide.features(2 * given - 1)[0], first)
    grey = given[:, :1]
    torch.testing.assert_close(loss.features(grey), loss.features(grey.expand(-1, 3, -1, -1)))


class Parallel(nn.Module):
    """No chain of layers; one layer is run by another name, and one behind all that can be wanted fails."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)) for _ in range(2))
        self.head = nn.Linear(5, 2)

    def forward(self, given: Tensor) -> Tensor:
        return self.head(self.left(given) + self.right(given))


def test_any_network_with_named_layers() -> None:
    network, given = Parallel(), images(2, 3, 8, 9).float()
    loss = PerceptualLoss(network, ["left.0", "right"], **PLAIN)
    torch.testing.assert_close(loss.features(given), [network.left[0](given), network.right(given)])
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        loss.network(given)  # outside of a call, what the layers make is not kept
    with pytest.raises(ValueError, match="images must have 1 or 3 channels"):
        loss(given[:, :2], given)
    torch.testing.assert_close(loss.features(given)[0], network.left[0](given))


def losses_of_two_kinds() -> list[PerceptualLoss]:
    chain = Parallel().left.append(nn.Conv2d(4, 4, 3))
    return [PerceptualLoss(Parallel(), ["left.0", "left.1", "right"]), StyleLoss(chain, ["0", "2"])]


@pytest.mark.parametrize("which", [0, 1])
def test_a_loss_in_several_threads(which: int) -> None:
    loss = losses_of_two_kinds()[which]
    pairs = [(images(1, 3, 8, size).float(), images(2, 3, 8, size)[1:].float()) for size in range(8, 16)]
    wanted = [loss(*pair).item() for pair in pairs]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda pair: loss(*pair).item(), pairs * 25))
    assert found == wanted * 25


@pytest.mark.parametrize("which", [0, 1])
def test_copies_and_compiled_losses_are_the_loss(which: int) -> None:
    loss = losses_of_two_kinds()[which]
    output, target = images(1, 3, 8, 8).float().requires_grad_(), images(2, 3, 8, 8)[1:].float()
    wanted = loss(output, target)
    (slope,) = torch.autograd.grad(wanted, output)
    compiled = torch.compile(loss, backend="eager", fullgraph=which == 1)  # what has hooks is called as it is
    for same in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), compiled):
        found = same(output, target)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found, output)[0], slope)


def test_losses_by_hand() -> None:
    pool = nn.Sequential(nn.AvgPool2d(2), nn.Identity())
    output, target = images(2, 3, 4, 6), images(4, 3, 4, 6)[2:]
    pooled = [torch.nn.functional.avg_pool2d(x, 2) for x in (output, target)]
    expected = (pooled[0] - pooled[1]).square().mean()
    torch.testing.assert_close(
        PerceptualLoss(pool, ["0", "1"], weights=[2, 0.5], **PLAIN)(output, target), 2.5 * expected
    )
    torch.testing.assert_close(ContentLoss(pool, ["0"], **PLAIN)(output, target), expected)
    grams = [torch.einsum("nchw,ndhw->ncd", x, x) / (3 * 2 * 3) for x in pooled]
    expected = (grams[0] - grams[1]).square().sum() / 2
    torch.testing.assert_close(StyleLoss(pool, ["0"], **PLAIN)(output, target), expected)


def test_gram_matrix_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])
    assert gram_matrix(features).tolist() == [[[5 / 4, 1 / 4], [1 / 4, 10 / 4]]]


def test_a_target_is_described_once_and_of_another_size_for_styles(network: nn.Sequential) -> None:
    output, target = images(3, 3, 16, 8), images(1, 3, 16, 8)
    for loss in (ContentLoss(network, ["5"]), StyleLoss(network, ["2", "5"])):
        torch.testing.assert_close(loss(output, loss.describe(target)), loss(output, target))
        torch.testing.assert_close(loss(output, target), loss(output, target.expand(3, -1, -1, -1)))
    assert math.isfinite(StyleLoss(network, ["5"])(output, images(1, 3, 20, 31)))


@pytest.mark.parametrize("kind", [PerceptualLoss, StyleLoss])
def test_gradients(kind: type[PerceptualLoss], network: nn.Sequential) -> None:
    loss = kind(network, ["1", "4"], weights=[1, 2])
    given = images(2, 3, 6, 6).requires_grad_()
    torch.autograd.gradcheck(lambda x: loss(x, images(1, 3, 6, 6)), given)


def test_the_users_network_stays_as_it_is(network: nn.Sequential) -> None:
    network[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    loss = PerceptualLoss(network)
    loss.train()
    loss(images(2, 3, 8, 8).requires_grad_(), images(2, 3, 8, 8)).backward()
    assert network.training
    assert network[1].training
    assert not network[0].weight.requires_grad
    assert network[4].weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not any(module._forward_hooks for module in (*network.modules(), *loss.modules()))
    assert not any(p.requires_grad for p in loss.parameters())
    assert not loss.network[1].training
    with pytest.raises(RuntimeError):  # too small; the hooks are gone all the same
        PerceptualLoss(network, ["5"]).features(images(1, 3, 1, 1))


def test_the_network_of_the_tutorials() -> None:
    vgg16 = torchvision.models.vgg16(init_weights=False)
    loss = PerceptualLoss(vgg16)
    assert loss.layers == ["3", "8", "15", "22"]  # relu1_2, relu2_2, relu3_3, relu4_3
    assert PerceptualLoss(vgg16.features).layers == loss.layers
    assert ContentLoss(vgg16).layers == ["15"]
    output, target = images(1, 3, 32, 40).float(), images(2, 3, 32, 40)[1:].float()
    torch.testing.assert_close(PerceptualLoss(vgg16.features)(output, target), loss(output, target))
    assert loss(target, target) == 0
    squeezenet = torchvision.models.squeezenet1_1()
    assert PerceptualLoss(squeezenet).layers == ["1", "4", "7"]
    # As people cut it, with or without numbers of layers, and as an extractor of torchvision.
    assert PerceptualLoss(vgg16.features[:16].eval()).layers == ["3", "8", "15"]
    assert PerceptualLoss(nn.Sequential(*list(vgg16.features)[:4])).layers == ["3"]
    assert ContentLoss(vgg16.features[:9]).layers == ["8"]
    vgg16.features = vgg16.features[:9]  # the rest takes time
    expected = PerceptualLoss(vgg16, ["features.3", "features.8"])(output, target)
    for network in (vgg16, vgg16.features):
        torch.testing.assert_close(PerceptualLoss(network, [3, 8])(output, target), expected)
    extractor = create_feature_extractor(vgg16, ["features.3", "features.8"])
    torch.testing.assert_close(PerceptualLoss(extractor, ["features.3", "features.8"])(output, target), expected)


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "squeezenet1_1"])
def test_weights_of_a_file(name: str, tmp_path: Path) -> None:
    if name == "squeezenet1_1":
        theirs = torchvision.models.squeezenet1_1().features.eval()
    else:  # without the classifier, which is large
        vgg = torchvision.models.vgg
        theirs = vgg.make_layers(vgg.cfgs[{"vgg16": "D", "vgg19": "E"}[name]])
    state = {f"features.{key}": value for key, value in theirs.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(2)}, tmp_path / "w.pth")
    network = load_features(name, tmp_path / "w.pth")
    given = images(1, 3, 32, 33).float()
    torch.testing.assert_close(network(given), theirs(given))
    names = dict(network.named_children())
    assert {"vgg16": "relu5_3", "vgg19": "relu5_4", "squeezenet1_1": "fire9"}[name] in names
    torch.save({"something": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for file in ("other.pth", "text.pth"):
        with pytest.raises(ValueError, match=rf"weights must be a file of {name} of torchvision, .*{file} is not"):
            load_features(name, tmp_path / file)
    torch.save(state | {"features.99.weight": torch.zeros(1)}, tmp_path / "deeper.pth")
    with pytest.raises(ValueError, match=r"is not: it has a layer 99\.weight"):
        load_features(name, tmp_path / "deeper.pth")


def test_half_precision_neither_overflows_nor_underflows(network: nn.Sequential) -> None:
    output, target = 300 * images(1, 3, 64, 64).float(), 300 * images(2, 3, 64, 64)[1:].float()
    network = network[:1].float()
    wanted = StyleLoss(network, ["0"])(output, target)
    with torch.autocast("cpu", torch.float16):
        loss = StyleLoss(network, ["0"])(output, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted, rtol=0.05, atol=0)


def test_total_variation_by_hand() -> None:
    given = torch.tensor([[[[0.0, 1.0, 3.0], [1.0, 1.0, 1.0]]]])
    assert TotalVariationLoss()(given).item() == pytest.approx((3 + 0 + 1 + 0 + 2) / 6)
    assert TotalVariationLoss()(torch.zeros(1, 3, 1, 1)) == 0
    torch.autograd.gradcheck(TotalVariationLoss(), images(2, 1, 3, 4).requires_grad_())


def test_bad_arguments(network: nn.Sequential) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.used = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, given: Tensor) -> Tensor:
            return self.used(given)

    with pytest.raises(ValueError, match=r"layers must be given for Other: .* such as unused, used"):
        PerceptualLoss(Other())
    with pytest.raises(
        ValueError, match="layers must be names of the network's modules, got 'relu9'; they are: 0, 1"
    ):
        PerceptualLoss(network, ["relu9"])
    for layers in ("0", {"0": 1.0}, []):
        with pytest.raises(ValueError, match="layers must be a list of names, got "):
            PerceptualLoss(network, layers)
    with pytest.raises(ValueError, match="weights must be 2 numbers"):
        PerceptualLoss(network, weights=[1])
    with pytest.raises(ValueError, match="value_range must be two numbers"):
        PerceptualLoss(network, value_range=(1, 0))
    with pytest.raises(ValueError, match="std must be 3 numbers above 0"):
        PerceptualLoss(network, std=(0, 1, 1))
    with pytest.raises(ValueError, match=r"network must be a torch\.nn.Module, such as .*, got str"):
        PerceptualLoss("vgg16")
    with pytest.raises(ValueError, match="layers must be run by the network, unused was not"):
        PerceptualLoss(Other(), ["used", "unused"]).features(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="layers must make tensors of shape"):
        PerceptualLoss(network, ["8"]).features(images(1, 3, 4, 4))
    loss = PerceptualLoss(network)
    with pytest.raises(
        ValueError, match="images must be a tensor of floating-point numbers from 0 to 1, got torch"
    ):
        loss.features(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="images must be where the loss is, on cpu, got meta"):
        loss.features(torch.zeros(1, 3, 8, 8, device="meta"))
    with pytest.raises(ValueError, match="images must have 1 or 3 channels, got 4"):
        loss.features(images(1, 4, 8, 8))
    with pytest.raises(ValueError, match="target must have the size of output"):
        loss(images(1, 3, 8, 8), images(1, 3, 8, 12))
    with pytest.raises(ValueError, match="features must be of shape"):
        gram_matrix(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="name must be one of vgg16, vgg19, squeezenet1_1, got 'resnet'"):
        load_features("resnet", "w.pth")


def test_a_network_runs_as_its_own_forward_says() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.features(images * 10 - 3)

    network = Scaled()
    loss = PerceptualLoss(network, ["features.1"], mean=(0, 0, 0), std=(1, 1, 1))
    x, y = torch.rand(2, 1, 3, 8, 8)
    torch.testing.assert_close(loss(x, y), (network(x) - network(y)).square().mean())
