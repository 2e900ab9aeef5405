"""What the frame predictor learns of moving digits in ten minutes: figures, pictures, and if they are good enough.

    python benchmarks/eval_frames.py --out FOLDER

Two of scikit-learn's real digits bounce in frames of 32x32 pixels (the protocol of Moving MNIST: 20 frames, of
which 10 are given). Every figure is about sequences of digits that the training has not seen, behind those 10
frames; the error is the mean squared one of pixels in [0, 1]. The next frame is predicted from the true frames
before it, a frame of a rollout from the model's own. The training is that of ``genimg-fast train frame-predictor``
by default.

Exit status 1 if a figure misses what the project asks for.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast.training import find_trainable, fit
from genimg_fast.training.sequence import predictions

CONTEXT, ROLLOUT = 10, 5


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a frame predictor; print how good it is; draw pictures.")
    parser.add_argument("--out", type=Path, default=Path("eval-frames"), help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sequences and of the training")
    parser.add_argument("--steps", type=int, help="steps of the training instead of the default")
    parser.add_argument("--batch-size", type=int, help="sequences in a batch instead of the default")
    parser.add_argument("--held-out", type=int, default=200, help="sequences to judge by")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    training = gf.data.MovingDigits(100_000, image_size=32, seed=args.seed)
    held_out, _ = gf.data.MovingDigits(args.held_out, image_size=32, seed=args.seed, train=False)[:]
    print(
        f"moving digits at 32x32, {training.frames} frames: {len(training)} sequences of {len(training.images)} "
        f"digits to train on, {len(held_out)} of others held out (seed {args.seed}); "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {gf.info().backend} backend"
    )
    predictor = find_trainable("frame-predictor")
    asked = {} if args.steps is None else {"steps": args.steps}
    # channels_last is a sixth faster on the CPU.
    options = predictor.resolve(context=CONTEXT, seed=args.seed, channels_last=True, **asked)
    trainer = predictor.make_trainer(training, options)
    steps, batch_size = options["steps"], args.batch_size or predictor.batch_size
    started = time.perf_counter()
    fit(trainer, training, steps=steps, batch_size=batch_size, seed=args.seed, progress=True)
    seconds = time.perf_counter() - started
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"FramePredictor, {size:,} parameters: {steps} steps of {batch_size} in {seconds:.0f} s")

    model = trainer.sampler
    true = held_out[:, CONTEXT:]
    predicted_frames = torch.cat([model.predict(part) for part in held_out[:, :-1].split(20)])
    repeated = error(held_out[:, CONTEXT - 1 : -1], true).mean().item()
    predicted = error(predicted_frames[:, CONTEXT - 1 :], true).mean().item()
    times = repeated / predicted
    print(
        f"next frame, MSE: {predicted:.5f}; of repeating the last frame: {repeated:.5f}, {times:.2f} times as much"
    )
    rollouts = error(model.rollout(held_out[:, :CONTEXT], ROLLOUT), true[:, :ROLLOUT])
    still = error(held_out[:, CONTEXT - 1 : CONTEXT], true[:, :ROLLOUT])
    print("frames ahead      " + "".join(f"{ahead:9d}" for ahead in range(1, ROLLOUT + 1)))
    print("rollout, MSE      " + "".join(f"{mse:9.5f}" for mse in rollouts))
    print("last frame, MSE   " + "".join(f"{mse:9.5f}" for mse in still))

    picture = predictions(model, held_out[:8, : CONTEXT + ROLLOUT], CONTEXT)
    for name in ("rollouts.gif", "rollouts.png"):
        picture.save(args.out / name)
    print(f"pictures in {args.out}")

    checks = {
        "next-frame MSE at least 3 times lower than of the last frame": repeated >= 3 * predicted,
        f"each of {ROLLOUT} frames of a rollout closer than the last frame": bool((rollouts < still).all()),
    }
    for check, passed in checks.items():
        print(f"{'pass' if passed else 'FAIL'}: {check}")
    return 0 if all(checks.values()) else 1


def error(frames: Tensor, true: Tensor) -> Tensor:
    """Get the mean squared error at every step, of pixels in [0, 1]."""
    return (frames - true).square().mean((0, 2, 3, 4)) / 4


if __name__ == "__main__":
    sys.exit(main())
