"""Training: the loop, what it trains, and the run folder it writes."""

from genimg_fast.models.checkpoint import load_checkpoint
from genimg_fast.models.pretrained import load_run
from genimg_fast.training import catalog  # noqa: F401 - it registers what can be trained
from genimg_fast.training.callbacks import Callback, MLflowLogger, TensorBoardLogger, WandbLogger
from genimg_fast.training.cyclegan import CycleGANTrainer
from genimg_fast.training.gan import GANTrainer
from genimg_fast.training.loop import NonFiniteLossError, Terminated, Trainer, fit
from genimg_fast.training.outputs import save_output
from genimg_fast.training.pictures import Picture, plot_latents, save_animation, save_grid
from genimg_fast.training.restoration import RestorationTrainer
from genimg_fast.training.run import RunFolder
from genimg_fast.training.sequence import (
    FrameFillerTrainer,
    FramePredictorTrainer,
    RowRNNTrainer,
    draw_known_frames,
    teacher_forcing_probability,
)
from genimg_fast.training.style import StyleTrainer
from genimg_fast.training.trainables import Trainable, find_trainable, list_trainables, trainable
from genimg_fast.training.trainer import BaseTrainer, Recipe
from genimg_fast.training.translation import AutoencoderTrainer, GLOTrainer, Pix2PixTrainer
from genimg_fast.training.vae import VAETrainer
from genimg_fast.training.vqvae import VQVAETrainer

__all__ = [
    "AutoencoderTrainer",
    "BaseTrainer",
    "Callback",
    "CycleGANTrainer",
    "FrameFillerTrainer",
    "FramePredictorTrainer",
    "GANTrainer",
    "GLOTrainer",
    "MLflowLogger",
    "NonFiniteLossError",
    "Picture",
    "Pix2PixTrainer",
    "Recipe",
    "RestorationTrainer",
    "RowRNNTrainer",
    "RunFolder",
    "StyleTrainer",
    "TensorBoardLogger",
    "Terminated",
    "Trainable",
    "Trainer",
    "VAETrainer",
    "VQVAETrainer",
    "WandbLogger",
    "draw_known_frames",
    "find_trainable",
    "fit",
    "list_trainables",
    "load_checkpoint",
    "load_run",
    "plot_latents",
    "save_animation",
    "save_grid",
    "save_output",
    "teacher_forcing_probability",
    "trainable",
]
