"""Training losses."""

from genimg_fast.losses.gan import GAN_LOSSES, GANLoss

__all__ = ["GAN_LOSSES", "GANLoss"]
