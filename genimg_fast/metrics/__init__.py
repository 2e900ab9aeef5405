"""Metrics of generated images."""

from genimg_fast.metrics.discriminator import DiscriminatorReport, judge_discriminator, plot_roc
from genimg_fast.metrics.distribution import GaussianStatistics, InceptionScore, frechet_distance
from genimg_fast.metrics.features import (
    DigitsNetwork,
    FeatureNetwork,
    InceptionNetwork,
    RandomNetwork,
    feature_statistics,
    real_statistics,
)
from genimg_fast.metrics.pairs import PerceptualSimilarity, psnr, ssim

__all__ = [
    "DigitsNetwork",
    "DiscriminatorReport",
    "FeatureNetwork",
    "GaussianStatistics",
    "InceptionNetwork",
    "InceptionScore",
    "PerceptualSimilarity",
    "RandomNetwork",
    "feature_statistics",
    "frechet_distance",
    "judge_discriminator",
    "plot_roc",
    "psnr",
    "real_statistics",
    "ssim",
]
