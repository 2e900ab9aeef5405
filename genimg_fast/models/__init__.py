"""Image-generation models, and a registry to build them by name."""

from genimg_fast.models.dcgan import DCGAN, DCGANDiscriminator, DCGANGenerator
from genimg_fast.models.registry import create_model, list_models, register_model

__all__ = [
    "DCGAN",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "create_model",
    "list_models",
    "register_model",
]
