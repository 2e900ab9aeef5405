"""Image-generation models, and a registry to build them by name."""

from genimg_fast.models.dcgan import DCGAN, DCGANDiscriminator, DCGANGenerator
from genimg_fast.models.registry import create_model, list_models, register_model
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
    "DCGAN",
    "LIKELIHOODS",
    "MLPVAE",
    "VAE",
    "BaseVAE",
    "ConditionalVAE",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "VAEOutput",
    "create_model",
    "interpolate_latents",
    "list_models",
    "register_model",
]
