"""Training losses."""

from genimg_fast.losses.elbo import (
    NegativeELBO,
    active_units,
    bernoulli_log_likelihood,
    gaussian_log_likelihood,
    importance_weighted_bound,
    logistic_log_likelihood,
    negative_elbo,
    warmup_beta,
)
from genimg_fast.losses.gan import GAN_LOSSES, GANLoss

__all__ = [
    "GAN_LOSSES",
    "GANLoss",
    "NegativeELBO",
    "active_units",
    "bernoulli_log_likelihood",
    "gaussian_log_likelihood",
    "importance_weighted_bound",
    "logistic_log_likelihood",
    "negative_elbo",
    "warmup_beta",
]
