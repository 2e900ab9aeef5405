"""Metrics of generated images."""

from genimg_fast.metrics.classifier import ClassifierNetwork, ClassReport, judge_classes
from genimg_fast.metrics.discriminator import DiscriminatorReport, judge_discriminator, plot_roc
from genimg_fast.metrics.distribution import GaussianStatistics, InceptionScore, frechet_distance
from genimg_fast.metrics.estimates import Estimate, compare_features, inception_score
from genimg_fast.metrics.features import Features, extract_features, real_features
from genimg_fast.metrics.kernel import KernelDistance, kernel_distance
from genimg_fast.metrics.neighbours import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from genimg_fast.metrics.networks import FeatureNetwork, FidelityNetwork, InceptionNetwork, RandomNetwork
from genimg_fast.metrics.pairs import PerceptualSimilarity, psnr, ssim

__all__ = [
    "ClassReport",
    "ClassifierNetwork",
    "DensityCoverage",
    "DiscriminatorReport",
    "Estimate",
    "FeatureNetwork",
    "Features",
    "FidelityNetwork",
    "GaussianStatistics",
    "InceptionNetwork",
    "InceptionScore",
    "KernelDistance",
    "PerceptualSimilarity",
    "PrecisionRecall",
    "RandomNetwork",
    "compare_features",
    "density_coverage",
    "extract_features",
    "frechet_distance",
    "inception_score",
    "judge_classes",
    "judge_discriminator",
    "kernel_distance",
    "plot_roc",
    "precision_recall",
    "psnr",
    "real_features",
    "ssim",
]
