"""Training: the loop, what it trains, and the run folder it writes."""

from genimg_fast.training.gan import GANTrainer
from genimg_fast.training.loop import NonFiniteLossError, Trainer, fit
from genimg_fast.training.pictures import plot_latents, save_animation, save_grid
from genimg_fast.training.run import RunFolder, load_checkpoint, load_model, load_run
from genimg_fast.training.vae import VAETrainer

__all__ = [
    "GANTrainer",
    "NonFiniteLossError",
    "RunFolder",
    "Trainer",
    "VAETrainer",
    "fit",
    "load_checkpoint",
    "load_model",
    "load_run",
    "plot_latents",
    "save_animation",
    "save_grid",
]
