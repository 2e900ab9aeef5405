"""Image-generation models, and a registry to build them by name."""

from genimg_fast.models.dcgan import DCGAN, DCGANDiscriminator, DCGANGenerator
from genimg_fast.models.registry import create_model, list_models, register_model
from genimg_fast.models.rnn import OUTPUT_ACTIVATIONS, RNN, RNNOutput
from genimg_fast.models.sequence import (
    CORES,
    BaseFrameModel,
    FrameFiller,
    FrameFilling,
    FramePrediction,
    FramePredictor,
    RowPrediction,
    RowRNN,
)
from genimg_fast.models.vae import (
    LIKELIHOODS,
    MLPVAE,
    VAE,
    BaseVAE,
    ConditionalVAE,
    VAEOutput,
    interpolate_latents,
)

__all__ = [
    "CORES",
    "DCGAN",
    "LIKELIHOODS",
    "MLPVAE",
    "OUTPUT_ACTIVATIONS",
    "RNN",
    "VAE",
    "BaseFrameModel",
    "BaseVAE",
    "ConditionalVAE",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "FrameFiller",
    "FrameFilling",
    "FramePrediction",
    "FramePredictor",
    "RNNOutput",
    "RowPrediction",
    "RowRNN",
    "VAEOutput",
    "create_model",
    "interpolate_latents",
    "list_models",
    "register_model",
]
