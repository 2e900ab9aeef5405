"""A VAE of this package as a LightningModule.

python examples/lightning_vae.py --steps 200
"""

import argparse

import lightning
import torch
from torch.utils.data import DataLoader

import genimg_fast as gf


class LightningVAE(lightning.LightningModule):
    """The model, its loss and its optimiser; everything else is Lightning's."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.model = gf.models.VAE(z_dim=10, c_dim=1, channels=16)
        self.lr = lr

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, _ = batch
        output = self.model(images)
        elbo = gf.losses.negative_elbo(self.model.log_likelihood(images, output.reconstruction), output.kl)
        self.log_dict({"loss": elbo.loss, "kl": output.kl.mean()}, prog_bar=True)
        return elbo.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="lightning-vae.png", help="picture of samples to write")
    args = parser.parse_args()

    lightning.seed_everything(0)
    data = gf.data.load_dataset("digits", image_size=32)
    vae = LightningVAE()
    trainer = lightning.Trainer(max_steps=args.steps, logger=False, enable_checkpointing=False)
    trainer.fit(vae, DataLoader(data, batch_size=64, shuffle=True, drop_last=True))
    loss, kl = (float(trainer.callback_metrics[name]) for name in ("loss", "kl"))
    print(f"step {trainer.global_step}: loss={loss:.1f}, kl={kl:.1f}")
    gf.training.save_grid(vae.model.sample(64), args.out)


if __name__ == "__main__":
    main()
