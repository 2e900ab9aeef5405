"""Whether every model trains as at another commit: its losses, bit for bit.

    python benchmarks/same_losses.py --base main

Checks that commit out in a temporary folder, with the compiled library of this one, and runs `genimg-fast train`
for a few small steps of each model in both, with flags that both know. Exit status 1 if a loss differs, or a run
fails.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import genimg_fast
from genimg_fast.training import find_trainable, list_trainables, save_grid

ROOT = Path(__file__).parents[1]
# For those of the options that a model has.
SMALL = {
    "image_size": "16", "z_dim": "8", "channels": "4", "hidden": "24 16", "hidden_size": "8", "components": "4",
    "frames": "6", "batch_size": "8", "seed": "0", "log_every": "1", "val_every": "0", "sample_every": "0",
    "checkpoint_every": "0",
}  # fmt: skip
# More of what trainers can do, for some of the models.
ALSO = {
    "dcgan": "--label-smoothing 0.1 --grad-clip 1 --accumulate 2 --flip --shift 1 --val-split 0.1",
    "cdcgan": "--condition projection --norm spectral --loss hinge --r1 0.1 --lr 4e-4 --lr-d 4e-4 --betas 0.5 0.9",
    "wgan": "--n-critic 2",
    "mlp-gan": "--precision bf16 --clip-weights 0.1",
    "vae": "--warmup 10 --free-bits 0.1 --channels-last",
    "frame-predictor": "--context 3 --teacher-forcing 0.5 --core gru",
    "vqvae": "--num-codes 32 --code-dim 4 --accumulate 2",
    "autoencoder": "--schedule linear --ema 0",
    "pix2pix": "--direction b2a --network resnet",
    "style-net": f"--style {ROOT / 'docs/demo-samples.png'}",
    "cyclegan": "--flip --buffer-size 20 --n-residual 1",
}
# What an older commit does not know, and this one does by default.
OFF = {"cdcgan": "--no-minibatch-std"}
LOSSES = (
    "loss",
    "loss_d",
    "loss_g",
    "real_logit",
    "fake_logit",
    "reconstruction",
    "kl",
    "commitment",
    "mse",
    "l1",
    "cycle",
    "identity",
)
# What they train on, but for images with classes, and sequences.
DATA = {"pix2pix": "pairs", "cyclegan": "digits digits", "restorer": "photos", "style-net": "photos"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list_trainables(), help="to train; default: all")
    parser.add_argument("--base", required=True, metavar="REVISION", help="the commit to compare with")
    parser.add_argument("--steps", type=int, default=20, help="steps of each training")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work, base = Path(folder), Path(folder, "base")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(base), args.base], check=True)
        try:
            for library in Path(genimg_fast.__file__).parent.glob("_C*"):
                shutil.copy(library, base / "genimg_fast")
            make_pairs(work / "pairs")
            found = [compare(name, args.steps, work, base) for name in args.models]
        finally:
            subprocess.run([*git, "remove", "--force", str(base)], check=True)
    compared = [same for same in found if same is not None]
    print(f"{sum(compared)} of {len(compared)} models train as at {args.base}")
    return 0 if all(compared) else 1


def compare(name: str, steps: int, work: Path, base: Path) -> bool | None:
    """Train in both; print a row of the table; tell if all is the same, or None if the model is new."""
    options = {option for group in find_trainable(name).options().values() for option in group}
    data = DATA.get(name, "moving-digits" if "frames" in options else "digits").split()
    flags = [
        "--data",
        *(str(work / "pairs") if each == "pairs" else each for each in data),
        "--steps",
        str(steps),
        "--device",
        "cpu",
        *ALSO.get(name, "").split(),
    ]
    for option, value in SMALL.items():
        flags += [f"--{option.replace('_', '-')}", *value.split()] if option in options else []
    rows = []
    for tree, out in ((base, work / "before"), (ROOT, work / "after")):
        off = OFF.get(name, "").split() if tree == ROOT else []
        command = [sys.executable, "-m", "genimg_fast", "train", name, *flags, *off, "--out", str(out)]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        if tree == base and f"invalid choice: '{name}'" in done.stderr:
            print(f"{name:<16} is new", flush=True)
            return None
        if done.returncode != 0:
            print(f"{name:<16} FAILS {out.name}: {done.stderr.splitlines()[-1]}", flush=True)
            return False
        (stats,) = out.glob(f"*-{name}-*/stats.jsonl")
        lines = map(json.loads, stats.read_text().splitlines())
        rows.append([{key: row[key] for key in LOSSES if key in row} for row in lines])
    before, after = rows
    same = before == after and len(after) == steps
    last = ", ".join(f"{key} {value!r}" for key, value in after[-1].items())
    print(f"{name:<16} {'same' if same else 'DIFFERENT'} in {len(after)} steps; the last: {last}", flush=True)
    return same


def make_pairs(folder: Path) -> None:
    """Draw pairs of images, side by side, for Pix2Pix."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(16):
        image = torch.rand(1, 3, 16, 32, generator=generator) * 2 - 1
        save_grid(image, folder / f"{number:02}.png", scale=1, plain=True)


if __name__ == "__main__":
    sys.exit(main())
