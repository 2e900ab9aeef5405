"""The loop of PyTorch's DCGAN tutorial with one import changed.

    python examples/plain_loop.py --steps 200

Networks, optimisers and loop are those of https://docs.pytorch.org/tutorials/beginner/dcgan_faces_tutorial.html at
32x32, with logits in place of a sigmoid. Batch norms and the activations behind them run as one operator.
"""

import argparse

import torch
from torch.utils.data import DataLoader

import genimg_fast as gf
import genimg_fast.nn as nn  # was: import torch.nn as nn

NOISE = 64


class Generator(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(NOISE, width * 4, 4, 1, 0, bias=False),
            nn.BatchNorm2d(width * 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(width * 4, width * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(width * 2, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            nn.ConvTranspose2d(width, 1, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.main(noise)


class Discriminator(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width * 2, width * 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width * 4, 1, 4, 1, 0, bias=False),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.main(images).flatten()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="plain-loop.png", help="picture of samples to write")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = gf.data.load_dataset("digits", image_size=32)
    loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    generator, discriminator = Generator().to(device), Discriminator().to(device)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()

    step = 0
    while step < args.steps:
        for real, _ in loader:
            real = real.to(device)
            ones, zeros = torch.ones(len(real), device=device), torch.zeros(len(real), device=device)
            optimizer_d.zero_grad()
            loss_real = criterion(discriminator(real), ones)
            loss_real.backward()
            fake = generator(torch.randn(len(real), NOISE, 1, 1, device=device))
            loss_fake = criterion(discriminator(fake.detach()), zeros)
            loss_fake.backward()
            optimizer_d.step()

            optimizer_g.zero_grad()
            loss_g = criterion(discriminator(fake), ones)
            loss_g.backward()
            optimizer_g.step()
            step += 1
            if step == args.steps or step % 50 == 0:
                print(f"step {step}: loss_d={(loss_real + loss_fake).item():.3f}, loss_g={loss_g.item():.3f}")
            if step == args.steps:
                break
    with torch.no_grad():
        samples = generator.eval()(torch.randn(64, NOISE, 1, 1, device=device))
    gf.training.save_grid(samples, args.out)


if __name__ == "__main__":
    main()
