"""Adversarial samples: against closed forms on linear models, and another program."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from genimg_fast.editing import Normalised, adversarial, attack

METHODS = ("fgsm", "pgd", "mi-fgsm", "apgd")


def linear(classes: int = 2, pixels: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).double()


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)
    ).eval()  # fmt: skip


def images(n: int = 4, *, size: int = 2) -> Tensor:
    """Far enough from 0 and 1 to have room."""
    generator = torch.Generator().manual_seed(2)
    return 0.4 + 0.2 * torch.rand(n, 3, size, size, generator=generator, dtype=torch.float64)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_linear_model_the_best_change_is_found(method: str, norm: str, targeted: bool) -> None:
    model, x, labels = linear(), images(), torch.tensor([0, 1, 1, 0])
    weight = (model[1].weight[1] - model[1].weight[0]).detach()
    sign = (1 - 2 * labels) * (-1 if targeted else 1)
    best = weight.sign() if norm == "linf" else weight / weight.norm()
    expected = x + 0.2 * (sign[:, None] * best).view_as(x)
    options = {"fgsm": {}, "pgd": {"steps": 60, "step_size": 0.2}}.get(method, {"steps": 60})
    found = attack(
        model, x, labels, method=method, norm=norm, epsilon=0.2, targeted=targeted, generator=seeded(), **options
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 if (method, norm) == ("apgd", "l2") else 1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.3), ("l2", 1.0)])
def test_samples_stay_in_the_ball_and_in_the_range(method: str, norm: str, epsilon: float) -> None:
    x = torch.rand(6, 3, 9, 9, generator=seeded())
    before = x.clone()
    found = attack(network(), x, method=method, norm=norm, epsilon=epsilon, generator=seeded())
    change = (found - x).flatten(1)
    distance = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (distance <= epsilon + 1e-6).all()
    assert distance.min() > 0.5 * epsilon
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(x, before)
    again = attack(network(), x, method=method, norm=norm, epsilon=epsilon, generator=seeded())
    assert torch.equal(found, again)


def test_searches_find_more_than_one_step() -> None:
    model, x = network(), torch.rand(32, 3, 9, 9, generator=seeded())
    labels = model(x).argmax(1)
    gained = {}
    for name, options in {
        "fgsm": {"method": "fgsm"},
        "pgd": {"method": "pgd"},
        "restarts": {"method": "pgd", "restarts": 4},
        "apgd": {"method": "apgd"},
    }.items():
        found = attack(model, x, labels, epsilon=0.1, generator=seeded(), **options)
        fooled = (model(found).argmax(1) != labels).double().mean()
        loss = nn.functional.cross_entropy(model(found), labels)
        gained[name] = (fooled.item(), loss.item())
    assert gained["fgsm"] < gained["pgd"] <= gained["restarts"]
    assert gained["apgd"][1] >= 0.98 * gained["pgd"][1]


def test_a_targeted_attack_reaches_its_class() -> None:
    model, x = network(), torch.rand(8, 3, 9, 9, generator=seeded())
    wanted = (model(x).argmax(1) + 1) % 5
    for method in ("pgd", "mi-fgsm", "apgd"):
        found = attack(model, x, wanted, method=method, targeted=True, epsilon=0.4, steps=40, generator=seeded())
        assert (model(found).argmax(1) == wanted).double().mean() >= 0.75, method


def test_the_dlr_loss_sees_where_the_cross_entropy_does_not() -> None:
    model = linear(3).float()
    with torch.no_grad():
        model[1].weight.mul_(1e4)  # so sure that the softmax is 1
    x = images().float()
    for method in METHODS:
        with pytest.warns(UserWarning, match="the gradient is zero for [1-4] of 4 images") as warned:
            blind = attack(model, x, epsilon=0.3, method=method, generator=seeded())
        assert warned[0].filename == __file__
        assert method != "fgsm" or torch.equal(blind, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = attack(model, x, epsilon=0.3, method="apgd", loss="dlr", generator=seeded())
    assert (model(found).argmax(1) != model(x).argmax(1)).all()


def test_the_targeted_dlr_loss_reaches_its_class() -> None:
    model, x = network(), torch.rand(8, 3, 9, 9, generator=seeded())
    wanted = (model(x).argmax(1) + 1) % 5
    found = attack(
        model, x, wanted, method="apgd", loss="dlr", targeted=True, epsilon=0.4, steps=40, generator=seeded()
    )
    assert (model(found).argmax(1) == wanted).double().mean() >= 0.75


def test_the_dlr_losses_by_hand() -> None:
    logits = torch.tensor([[5.0, 2.0, 1.0, 7.0, 3.0]])  # ordered: 7, 5, 3, 2, 1
    for label, other in ((0, 7), (3, 5)):
        gain = adversarial._gain(torch.tensor([label]), "dlr", targeted=False)
        assert gain(logits).item() == pytest.approx((other - logits[0, label].item()) / (7 - 3))
        gain = adversarial._gain(torch.tensor([label]), "dlr", targeted=True)
        assert gain(logits).item() == pytest.approx((logits[0, label].item() - other) / (7 - (3 + 2) / 2))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_tiny_gradients_are_followed(norm: str) -> None:
    model, x = linear().float(), images().float()
    expected = attack(model, x, norm=norm, epsilon=0.2, method="fgsm")
    with torch.no_grad():
        model[1].weight.mul_(1e-25)
        model[1].bias.mul_(0)
    labels = linear().float()(x).argmax(1)
    found = attack(model, x, labels, norm=norm, epsilon=0.2, method="fgsm")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_no_distance_is_no_change(method: str) -> None:
    x = images().requires_grad_()
    found = attack(linear(), x, method=method, epsilon=0)
    assert torch.equal(found, x)
    assert found is not x
    assert not found.requires_grad
    assert attack(linear(), x[:0], method=method).shape == (0, 3, 2, 2)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3))
    model[0].eval()
    model[4].weight.requires_grad_(False)
    x = images().float()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad(), pytest.warns(UserWarning, match="batch norm was in training mode") as warned:
        found = attack(model, x, generator=seeded())
    assert warned[0].filename == __file__
    assert [m.training for m in model] == [False, True, True, True, True]
    assert model.training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[1].weight.grad is None
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, True, False, True]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    model.eval()
    torch.testing.assert_close(found, attack(model, x, generator=seeded()))


def test_a_model_that_fails_is_left_as_it_was() -> None:
    calls = []

    def fail(module: nn.Module, args: tuple, output: Tensor) -> None:
        calls.append(module.training)
        if len(calls) == 3:
            raise RuntimeError("out of luck")

    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3)).train()
    model[1].register_forward_hook(fail)
    model[2].eval()
    with pytest.raises(RuntimeError, match="out of luck"):
        attack(model, images().float())
    assert calls == [False] * 3
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_model_gets_its_own_dtype(dtype: torch.dtype) -> None:
    model, x = network(), torch.rand(4, 3, 9, 9, generator=seeded()).to(dtype)
    found = attack(model, x, epsilon=0.1, generator=seeded())
    assert found.dtype == dtype
    wanted = attack(model, x.float(), epsilon=0.1, generator=seeded())
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=torch.finfo(dtype).eps + 1e-6)
    assert torch.equal(attack(model, x, epsilon=0), x)
    found = attack(network().to(dtype), x.float(), epsilon=0.1, method="apgd", generator=seeded())
    assert found.dtype == torch.float32
    assert 0.05 < (found - x.float()).abs().max() <= 0.1 + 1e-6


def test_within_inference_mode() -> None:
    model, wanted = network(), attack(network(), images(size=9).float(), generator=seeded())
    with torch.inference_mode():
        found = attack(model, images(size=9).float(), generator=seeded())
    assert torch.equal(found, wanted)


def test_normalised() -> None:
    x = images().float()
    net = Normalised(nn.Identity(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    torch.testing.assert_close(net(x)[:, 1], (x[:, 1] - 0.2) / 0.25)
    assert net(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 1.5}, "epsilon must be from 0 to 1, got 1.5"),
        ({"epsilon": -0.1}, "epsilon must be from 0 to 1"),
        ({"epsilon": 4.0, "norm": "l2"}, "epsilon must be from 0 to 3.4641"),
        ({"images": 255 * images()}, "images must be in"),
        ({"images": images() * float("nan")}, "images must be in"),
        ({"images": images().int()}, "images must be a tensor of floating-point numbers in"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, "labels must be from 0 to 1"),
        ({"labels": torch.tensor([0, 1])}, r"labels must be int64 of shape \(4,\)"),
        ({"loss": "dlr"}, "loss must be cross-entropy: dlr needs 3 classes, and the model has 2"),
        ({"targeted": True}, "labels must be the classes to reach"),
        (
            {"model": linear(3), "labels": torch.zeros(4).long(), "targeted": True, "loss": "dlr"},
            "loss must be cross-entropy: dlr needs 4 classes, and the model has 3",
        ),
        ({"method": "fgsm", "steps": 20}, "steps must be left out: fgsm takes one step"),
        ({"method": "fgsm", "restarts": 1}, "restarts must be left out: fgsm"),
        ({"method": "fgsm", "step_size": 0.1}, "step_size must be left out: fgsm"),
        (
            {"method": "mi-fgsm", "step_size": 0.1},
            "step_size must be left out: mi-fgsm takes steps of epsilon / steps",
        ),
        ({"method": "mi-fgsm", "restarts": 2}, "restarts must be left out: mi-fgsm"),
        ({"method": "apgd", "step_size": 0.1}, "step_size must be left out: apgd finds it out"),
        ({"step_size": float("inf")}, "step_size must be above 0, got inf"),
        ({"model": nn.Identity()}, r"model must return logits of shape \(batch, classes\)"),
        (
            {"images": images().numpy()},
            "images must be a tensor of floating-point numbers in \\[0, 1\\], got ndarray",
        ),
        ({"images": images().to("meta")}, "images must have numbers, got a tensor of the device meta"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, message: str) -> None:
    given = {"model": linear(), "images": images(), **options}
    with pytest.raises(ValueError, match=message):
        attack(given.pop("model"), given.pop("images"), given.pop("labels", None), **given)


@pytest.mark.parametrize("targeted", [False, True])
def test_steps_agree_with_torchattacks(targeted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    monkeypatch.setattr(adversarial._Ball, "random", lambda ball, generator: ball.images)  # the start is the image
    model, x = network(), torch.rand(6, 3, 9, 9, generator=seeded())
    labels = (model(x).argmax(1) + targeted) % 5
    for norm, options, peer in (
        ("linf", {"eps": 0.1, "alpha": 0.03}, torchattacks.PGD),
        ("l2", {"eps": 1.0, "alpha": 0.3}, torchattacks.PGDL2),
    ):
        theirs = peer(model, steps=6, random_start=False, **options)
        if targeted:
            theirs.set_mode_targeted_by_label(quiet=True)
        ours = attack(
            model, x, labels, norm=norm, epsilon=options["eps"], step_size=options["alpha"], steps=6,
            targeted=targeted,
        )  # fmt: skip
        torch.testing.assert_close(ours, theirs(x, labels), rtol=0, atol=1e-5)


def test_agrees_with_torchattacks() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, x = network(), torch.rand(6, 3, 9, 9, generator=seeded())
    labels = model(x).argmax(1)
    ours = attack(model, x, labels, method="fgsm", epsilon=0.1)
    torch.testing.assert_close(ours, torchattacks.FGSM(model, eps=0.1)(x, labels))
    ours = attack(model, x, labels, method="mi-fgsm", epsilon=0.1, steps=5)
    theirs = torchattacks.MIFGSM(model, eps=0.1, alpha=0.1 / 5, steps=5, decay=1.0)(x, labels)
    torch.testing.assert_close(ours, theirs)
    for norm, epsilon, peer in (("linf", 0.1, torchattacks.APGD), ("l2", 0.5, torchattacks.APGD)):
        options = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": epsilon, "steps": 40, "n_restarts": 1}
        theirs = peer(model, loss="ce", **options)(x, labels)
        ours = attack(model, x, labels, method="apgd", norm=norm, epsilon=epsilon, steps=40, generator=seeded())
        fooled = [(model(found).argmax(1) != labels).sum().item() for found in (ours, theirs)]
        assert fooled[0] >= fooled[1]
        losses = [nn.functional.cross_entropy(model(found), labels).item() for found in (ours, theirs)]
        assert losses[0] >= 0.99 * losses[1]  # theirs stops where a sample fools
    theirs = torchattacks.APGDT(model, eps=0.1, steps=40, n_restarts=1, n_classes=5)(
        x, labels
    )  # to each other class
    found = torch.zeros(6, dtype=torch.bool)
    for further in range(1, 5):
        sample = attack(
            model, x, (labels + further) % 5, method="apgd", loss="dlr", targeted=True, epsilon=0.1, steps=40,
            generator=seeded(),
        )  # fmt: skip
        found |= model(sample).argmax(1) != labels
    assert found.sum() >= (model(theirs).argmax(1) != labels).sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rounding_to_16_bits_does_not_leave_the_ball(dtype: torch.dtype, norm: str) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).to(dtype)
    images = torch.rand(8, 3, 2, 2).to(dtype)
    for epsilon in (0.001, 8 / 255):
        change = (attack(net, images, norm=norm, epsilon=epsilon).double() - images.double()).flatten(1)
        lengths = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
        assert bool((lengths <= epsilon + 1e-7).all())


def test_labels_of_inference_mode_and_batches_of_none() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    images = torch.rand(2, 3, 2, 2)
    with torch.inference_mode():
        assert attack(net, images, net(images).argmax(1)).shape == images.shape
    for norm in ("linf", "l2"):
        assert attack(net, images[:0], norm=norm).shape == (0, 3, 2, 2)
