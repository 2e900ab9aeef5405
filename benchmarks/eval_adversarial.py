"""Adversarial samples of handwritten digits: accuracy before and after, and what adversarial training restores.

    python benchmarks/eval_adversarial.py --out FOLDER

Of scikit-learn's 1,797 digits of 8x8 pixels, a fifth is held out; every figure is about those. The classifier is a
convolutional network; it is trained as usual, and again on samples that PGD (L-infinity) makes of each batch
(Madry et al. 2018). What an attack takes is the accuracy on clean images less that on its samples; what the
training restores is the rise of the latter, as a share of what the attack took. Where torchattacks is installed,
its samples are judged, too.

Exit status 1 if a figure misses what the project asks for.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import genimg_fast as gf
from genimg_fast.editing import Normalised, attack

EPSILON = {"linf": 0.15, "l2": 0.5}  # of pixels from 0 to 1
ATTACKS: dict[str, dict[str, Any]] = {
    "FGSM": {"method": "fgsm"},
    "MI-FGSM": {"method": "mi-fgsm"},
    "PGD": {"method": "pgd"},
    "PGD, 5 restarts": {"method": "pgd", "restarts": 5},
    "APGD": {"method": "apgd", "steps": 50},
    "APGD, DLR loss": {"method": "apgd", "steps": 50, "loss": "dlr"},
    "PGD, L2": {"method": "pgd", "norm": "l2"},
    "APGD, L2": {"method": "apgd", "norm": "l2", "steps": 50},
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Attack classifiers of digits; train one to withstand.")
    parser.add_argument("--out", type=Path, default=Path("eval-adversarial"), help="folder for the picture")
    parser.add_argument("--epochs", type=int, default=30, help="of each training")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float()[:, None]
    labels = torch.from_numpy(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
    x, y = images[held_out], labels[held_out]

    plain = train(images[rest], labels[rest], args.epochs, adversarial=False)
    robust = train(images[rest], labels[rest], args.epochs, adversarial=True)
    clean = accuracy(plain, x, y)
    print(f"accuracy of {len(x)} held-out digits: {clean:.1%}; of the robust network {accuracy(robust, x, y):.1%}")
    print(f"{'attack':<18}{'epsilon':>8}{'plain':>9}{'robust':>9}{'restored':>10}{'seconds':>9}")
    after, restored = {}, {}
    for name, options in ATTACKS.items():
        epsilon = EPSILON[options.get("norm", "linf")]
        started = time.perf_counter()
        results = [
            accuracy(model, attack(model, x, y, epsilon=epsilon, generator=seeded(), **options), y)
            for model in (plain, robust)
        ]
        seconds = (time.perf_counter() - started) / 2
        after[name] = results[0]
        restored[name] = (results[1] - results[0]) / max(clean - results[0], 1e-9)
        print(f"{name:<18}{epsilon:>8}{results[0]:>9.1%}{results[1]:>9.1%}{restored[name]:>10.0%}{seconds:>9.2f}")
    checks = [
        ("PGD takes at least half of the accuracy", after["PGD"] <= clean / 2),
        ("APGD takes as much as PGD, within a percent", after["APGD"] <= after["PGD"] + 0.01),
        ("training restores at least half of what PGD took", restored["PGD"] >= 0.5),
        ("training restores at least half of what APGD took", restored["APGD"] >= 0.5),
    ]
    if importlib.util.find_spec("torchattacks") is not None:
        checks += peer(plain, x, y, after)
    wrong = attack(plain, x[:8], y[:8], epsilon=EPSILON["linf"], generator=seeded())
    rows = nn.functional.pad(torch.stack([x[:8], wrong]).squeeze(2), (1, 1, 1, 1), value=1)
    picture = torch.cat([torch.cat([*row], 1) for row in rows], 0)[None]
    gf.editing.save_picture(picture.repeat_interleave(12, 1).repeat_interleave(12, 2), args.out / "digits.png")
    print("picture: digits, and below their samples, taken for", plain(wrong).argmax(1).tolist())
    missed = [words for words, met in checks if not met]
    for words in missed:
        print(f"FAIL: {words}")
    return 1 if missed else 0


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).double().mean().item()


def train(images: Tensor, labels: Tensor, epochs: int, *, adversarial: bool) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    model = Normalised(net, mean=(0.3,), std=(0.37,))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            x, y = images[batch], labels[batch]
            if adversarial:
                x = attack(model.eval(), x, y, epsilon=EPSILON["linf"], steps=7)
            loss = cross_entropy(model.train()(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def peer(model: nn.Module, x: Tensor, y: Tensor, after: dict[str, float]) -> list[tuple[str, bool]]:
    """Judge the samples of torchattacks, with the same budgets."""
    import torchattacks

    torch.manual_seed(0)
    linf, l2 = EPSILON["linf"], EPSILON["l2"]
    attacks = {
        "FGSM": torchattacks.FGSM(model, eps=linf),
        "MI-FGSM": torchattacks.MIFGSM(model, eps=linf, alpha=linf / 20, steps=20),
        "PGD": torchattacks.PGD(model, eps=linf, alpha=2.5 * linf / 20, steps=20),
        "APGD": torchattacks.APGD(model, eps=linf, steps=50),
        "APGD, DLR loss": torchattacks.APGD(model, eps=linf, steps=50, loss="dlr"),
        "PGD, L2": torchattacks.PGDL2(model, eps=l2, alpha=2.5 * l2 / 20, steps=20),
        "APGD, L2": torchattacks.APGD(model, norm="L2", eps=l2, steps=50),
    }
    left = {name: accuracy(model, theirs(x, y), y) for name, theirs in attacks.items()}
    print("torchattacks leaves", ", ".join(f"{name} {share:.1%}" for name, share in left.items()))
    return [
        (f"{name} takes as much as that of torchattacks, within two percent", after[name] <= share + 0.02)
        for name, share in left.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
