"""Image-generation models, and a registry to build them by name."""

from genimg_fast.models.cyclegan import CycleGAN
from genimg_fast.models.dcgan import DCGAN, WGAN, ConditionalDCGAN, DCGANDiscriminator, DCGANGenerator
from genimg_fast.models.exporting import export
from genimg_fast.models.frame_filler import FrameFiller, FrameFilling
from genimg_fast.models.frame_model import CORES, BaseFrameModel
from genimg_fast.models.frame_predictor import FramePrediction, FramePredictor
from genimg_fast.models.gan import BaseDiscriminator, BaseGAN, BaseGenerator, PlainGAN
from genimg_fast.models.mlp_gan import MLPGAN, MLPDiscriminator, MLPGenerator
from genimg_fast.models.pix2pix import PatchDiscriminator, Pix2Pix, ResNetGenerator, UNetGenerator
from genimg_fast.models.pretrained import BaseModel, load
from genimg_fast.models.reconstruction import GLO, Autoencoder, DeepImagePrior
from genimg_fast.models.registry import create_model, list_models, register_model
from genimg_fast.models.residual_gan import ResidualDiscriminator, ResidualGAN, ResidualGenerator
from genimg_fast.models.residual_vae import ResidualVAE
from genimg_fast.models.restorer import Restorer
from genimg_fast.models.rnn import OUTPUT_ACTIVATIONS, RNN, RNNOutput
from genimg_fast.models.row_rnn import RowPrediction, RowRNN
from genimg_fast.models.style_net import StyleNet
from genimg_fast.models.vae import (
    LIKELIHOODS,
    MLPVAE,
    VAE,
    BaseVAE,
    ConditionalVAE,
    VAEOutput,
    interpolate_latents,
)
from genimg_fast.models.vqvae import VQVAE, Codebook, Tally, VQVAEOutput

__all__ = [
    "CORES",
    "DCGAN",
    "GLO",
    "LIKELIHOODS",
    "MLPGAN",
    "MLPVAE",
    "OUTPUT_ACTIVATIONS",
    "RNN",
    "VAE",
    "VQVAE",
    "WGAN",
    "Autoencoder",
    "BaseDiscriminator",
    "BaseFrameModel",
    "BaseGAN",
    "BaseGenerator",
    "BaseModel",
    "BaseVAE",
    "Codebook",
    "ConditionalDCGAN",
    "ConditionalVAE",
    "CycleGAN",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DeepImagePrior",
    "FrameFiller",
    "FrameFilling",
    "FramePrediction",
    "FramePredictor",
    "MLPDiscriminator",
    "MLPGenerator",
    "PatchDiscriminator",
    "Pix2Pix",
    "PlainGAN",
    "RNNOutput",
    "ResNetGenerator",
    "ResidualDiscriminator",
    "ResidualGAN",
    "ResidualGenerator",
    "ResidualVAE",
    "Restorer",
    "RowPrediction",
    "RowRNN",
    "StyleNet",
    "Tally",
    "UNetGenerator",
    "VAEOutput",
    "VQVAEOutput",
    "create_model",
    "export",
    "interpolate_latents",
    "list_models",
    "load",
    "register_model",
]
