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
from genimg_fast.losses.gan import GAN_LOSSES, GANLoss, gradient_penalty, r1_penalty
from genimg_fast.losses.patches import SlicedWassersteinLoss
from genimg_fast.losses.perceptual import (
    ContentLoss,
    PerceptualLoss,
    StyleLoss,
    TotalVariationLoss,
    gram_matrix,
    load_features,
)

__all__ = [
    "GAN_LOSSES",
    "ContentLoss",
    "GANLoss",
    "NegativeELBO",
    "PerceptualLoss",
    "SlicedWassersteinLoss",
    "StyleLoss",
    "TotalVariationLoss",
    "active_units",
    "bernoulli_log_likelihood",
    "gaussian_log_likelihood",
    "gradient_penalty",
    "gram_matrix",
    "importance_weighted_bound",
    "load_features",
    "logistic_log_likelihood",
    "negative_elbo",
    "r1_penalty",
    "warmup_beta",
]
