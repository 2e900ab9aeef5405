"""A VAE of this package in a loop of accelerate's.

torchrun --nproc-per-node 2 examples/accelerate_vae.py --steps 200
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

import genimg_fast as gf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16", "fp16"])
    parser.add_argument("--out", default="accelerate-vae.png", help="picture of samples to write")
    args = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=not torch.cuda.is_available())
    data = gf.data.load_dataset("digits", image_size=32)
    model = gf.models.VAE(z_dim=10, c_dim=1, channels=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    vae = accelerator.unwrap_model(model)  # has the methods, where processes have wrapped the model

    step = 0
    while step < args.steps:
        for images, _ in loader:
            output = model(images)
            elbo = gf.losses.negative_elbo(vae.log_likelihood(images, output.reconstruction), output.kl)
            optimizer.zero_grad()
            accelerator.backward(elbo.loss)
            optimizer.step()
            step += 1
            if step == args.steps or step % 50 == 0:
                accelerator.print(f"step {step}: loss={elbo.loss.item():.1f}, kl={output.kl.mean().item():.1f}")
            if step == args.steps:
                break
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        gf.training.save_grid(vae.sample(64), args.out)


if __name__ == "__main__":
    main()
