"""What this package can train: each model with its trainer, its kind of data, and defaults that were tried.

The defaults of the DCGANs are those of narrow networks with little noise to organise, which stand a high learning
rate and make good digits on two cores in a minute or two. The demo and the evaluations train with these, too.
"""

from typing import Any

from genimg_fast.models import (
    DCGAN,
    GLO,
    MLPGAN,
    MLPVAE,
    VAE,
    VQVAE,
    WGAN,
    Autoencoder,
    ConditionalDCGAN,
    ConditionalVAE,
    CycleGAN,
    FrameFiller,
    FramePredictor,
    Pix2Pix,
    ResidualGAN,
    ResidualVAE,
    Restorer,
    RowRNN,
    StyleNet,
)
from genimg_fast.training.cyclegan import CycleGANTrainer
from genimg_fast.training.data_kinds import Follows, pairs, sequences, unpaired
from genimg_fast.training.gan import GANTrainer
from genimg_fast.training.restoration import RestorationTrainer
from genimg_fast.training.sequence import FrameFillerTrainer, FramePredictorTrainer, RowRNNTrainer
from genimg_fast.training.style import StyleTrainer
from genimg_fast.training.trainables import trainable
from genimg_fast.training.translation import AutoencoderTrainer, GLOTrainer, Pix2PixTrainer
from genimg_fast.training.vae import VAETrainer
from genimg_fast.training.vqvae import VQVAETrainer


def _gan_examples(name: str, wide: str = "") -> tuple[str, ...]:
    return (
        f"genimg-fast train {name} --data digits",
        f"genimg-fast train {name} --data faces/ --image-size 64{wide} --precision bf16 --channels-last",
        f"genimg-fast train {name} --data digits --schedule constant --steps 5000 --resume auto",
    )


_WIDE = " --channels 64 --z-dim 100 --lr 2e-4"
_CRITIC: dict[str, Any] = {
    "z_dim": 100, "channels": 64, "steps": 2000, "loss": "wasserstein", "n_critic": 5, "betas": (0.0, 0.9),
    "gp": Follows("10, or 0 with clipped weights", lambda options: 0.0 if options["clip_weights"] > 0 else 10.0),
}  # fmt: skip
# With momentum, or a discriminator as fast as the generator, the samples of a class become a few pictures. To see
# their deviation in its last layer keeps those classes wide that vary least, such as trousers.
_CLASSES: dict[str, Any] = {
    "z_dim": 32, "channels": 32, "minibatch_std": True, "lr": 1e-3, "betas": (0.0, 0.999), "steps": 6000,
    "schedule": "linear", "lr_d": Follows("half of --lr", lambda options: options["lr"] / 2),
}  # fmt: skip
# A few thousand images teach so small a variance that every latent becomes a detailed code, and few samples of
# the prior hit one. A heavier KL term keeps the codes together.
_VAE: dict[str, Any] = {
    "z_dim": 10, "likelihood": "gaussian", "steps": 1000, "schedule": "cosine",
    "beta": Follows(
        "10 with a gaussian likelihood, else 1",
        lambda options: 10.0 if options["likelihood"] == "gaussian" else 1.0,
    ),
}  # fmt: skip
_FRAMES: dict[str, Any] = {"steps": 1000, "batch_size": 16, "schedule": "cosine"}
_CODES: dict[str, Any] = {"channels": 32, "steps": 1500, "schedule": "cosine"}

trainable(
    "dcgan",
    trainer=GANTrainer,
    text="Train a DCGAN.",
    examples=_gan_examples("dcgan", _WIDE),
    defaults={"z_dim": 20, "channels": 32, "lr": 5e-4, "steps": 1500},
)(DCGAN)
trainable(
    "cdcgan",
    trainer=GANTrainer,
    text="Train a class-conditional DCGAN.",
    examples=_gan_examples("cdcgan", _WIDE),
    defaults=_CLASSES,
)(ConditionalDCGAN)
trainable(
    "wgan",
    trainer=GANTrainer,
    text="Train a DCGAN whose critic has no batch norm, with a Wasserstein loss and gradient penalty.",
    examples=_gan_examples("wgan"),
    defaults=_CRITIC,
)(WGAN)
trainable(
    "resgan",
    trainer=GANTrainer,
    text="Train a GAN of residual blocks, with a Wasserstein loss and gradient penalty.",
    examples=_gan_examples("resgan"),
    defaults=_CRITIC,
)(ResidualGAN)
trainable(
    "mlp-gan",
    trainer=GANTrainer,
    text="Train a GAN of fully connected layers.",
    examples=_gan_examples("mlp-gan"),
    defaults={"z_dim": 20, "steps": 6000, "schedule": "linear"},
)(MLPGAN)
for _name, _model, _text in (
    ("vae", VAE, "Train a convolutional VAE."),
    ("cvae", ConditionalVAE, "Train a convolutional VAE whose encoder and decoder know the class of an image."),
):
    trainable(
        _name,
        trainer=VAETrainer,
        text=_text,
        examples=(
            f"genimg-fast train {_name} --data digits",
            f"genimg-fast train {_name} --data digits --likelihood bernoulli --z-dim 20",
            f"genimg-fast train {_name} --data faces/ --image-size 64 --warmup 500 --free-bits 0.1",
        ),
        defaults={**_VAE, "channels": 32},
    )(_model)
trainable(
    "resvae",
    trainer=VAETrainer,
    text="Train a VAE of residual blocks with group norm.",
    examples=(
        "genimg-fast train resvae --data digits --image-size 32",
        "genimg-fast train resvae --data faces/ --z-dim 128 --channels 64 --precision bf16 --channels-last",
        "genimg-fast train resvae --data photos --crops 2000 --flip",
    ),
    defaults={**_VAE, "channels": 32},
)(ResidualVAE)
trainable(
    "mlp-vae",
    trainer=VAETrainer,
    text="Train a VAE of fully connected layers.",
    examples=(
        "genimg-fast train mlp-vae --data mnist --download --likelihood bernoulli --z-dim 20",
        "genimg-fast train mlp-vae --data digits --image-size 8 --hidden 256 128 --z-dim 10",
    ),
    defaults=_VAE,
)(MLPVAE)
trainable(
    "row-rnn",
    trainer=RowRNNTrainer,
    text="Train an RNN that makes images row by row.",
    examples=(
        "genimg-fast train row-rnn --data digits",
        "genimg-fast train row-rnn --data mnist --download --image-size 28 --cell gru --components 40",
    ),
    defaults={"image_size": 16, "steps": 1500, "schedule": "cosine"},
)(RowRNN)
trainable(
    "frame-predictor",
    trainer=FramePredictorTrainer,
    data=sequences,
    text="Train a predictor of the next frame.",
    examples=(
        "genimg-fast train frame-predictor --data moving-digits",
        "genimg-fast train frame-predictor --data clips/ --frames 16 --core lstm --hidden-size 256",
        "genimg-fast train frame-predictor --data film.mp4 --image-size 64 --reach 4 --batch-size 8",
    ),
    defaults={
        **_FRAMES,
        "teacher_forcing": 0.0,
        "forcing_steps": Follows("all steps", lambda options: options["steps"]),
    },
    picture="predictions",
)(FramePredictor)
trainable(
    "frame-filler",
    trainer=FrameFillerTrainer,
    data=sequences,
    text="Train a model that fills in missing frames.",
    examples=(
        "genimg-fast train frame-filler --data moving-digits --speed 0.03 0.12",
        "genimg-fast train frame-filler --data clips/ --c-dim 1",
    ),
    defaults=_FRAMES,
    picture="fillings",
)(FrameFiller)
trainable(
    "autoencoder",
    trainer=AutoencoderTrainer,
    text="Train an autoencoder.",
    examples=("genimg-fast train autoencoder --data digits --z-dim 20",),
    defaults=_CODES,
    picture="reconstructions",
)(Autoencoder)
trainable(
    "vqvae",
    trainer=VQVAETrainer,
    text="Train an autoencoder whose codes are numbers of vectors in a codebook.",
    examples=(
        "genimg-fast train vqvae --data digits",
        "genimg-fast train vqvae --data faces/ --image-size 64 --channels 128 --num-codes 512 --code-dim 64",
    ),
    defaults={**_CODES, "n_halvings": 3, "num_codes": 64, "code_dim": 16},
    picture="reconstructions",
)(VQVAE)
trainable(
    "glo",
    trainer=GLOTrainer,
    text="Train a generator together with a code for each image.",
    examples=("genimg-fast train glo --data digits --z-dim 20",),
    defaults=_CODES,
    refuses={
        **dict.fromkeys(("flip", "shift"), "learns a code for each image as it is"),
        **dict.fromkeys(
            ("val_split", "val_data"), "has codes for the images that it trains on, and for no others"
        ),
    },
    picture="reconstructions",
)(GLO)
trainable(
    "pix2pix",
    trainer=Pix2PixTrainer,
    data=pairs,
    text="Train a translator of images, on pairs.",
    examples=(
        "genimg-fast train pix2pix --data pairs/ --image-size 256",
        "genimg-fast train pix2pix --data maps/ --direction b2a --network resnet --channels 32",
    ),
    defaults={"steps": 20000, "batch_size": 8},
    picture="translations",
)(Pix2Pix)
trainable(
    "cyclegan",
    trainer=CycleGANTrainer,
    data=unpaired,
    text="Train a translator between two kinds of images, without pairs.",
    examples=(
        "genimg-fast train cyclegan --data horses/ zebras/ --image-size 256 --flip",
        "genimg-fast train cyclegan --data summer2winter/ --image-size 64 --channels 32 --batch-size 4",
    ),
    defaults={"steps": 20000, "batch_size": 1, "schedule": "linear"},
    picture="translations",
)(CycleGAN)
trainable(
    "restorer",
    trainer=RestorationTrainer,
    text="Train a network that repairs images: noise, blur, JPEG, holes, or too few pixels.",
    examples=(
        "genimg-fast train restorer --task denoise --data photos",
        "genimg-fast train restorer --task sr2 --data holiday/ --val-data garden/ --crops 5000",
        "genimg-fast train restorer --task neighbor2neighbor --data microscope/ --c-dim 1",
    ),
    defaults={
        "data": "photos",
        "image_size": 64,
        "crops": 2000,
        "flip": True,
        "steps": 5000,
        "batch_size": 8,
        "schedule": "cosine",
        "ema": 0.999,
    },
    picture="restorations",
)(Restorer)
trainable(
    "style-net",
    trainer=StyleTrainer,
    text="Train a network that paints pictures in a style.",
    examples=(
        "genimg-fast train style-net --style painting.jpg",
        "genimg-fast train style-net --style painting.jpg --data holiday/ --crops 5000 --content-weight 0.5",
        "genimg-fast train style-net --style painting.jpg --data holiday/ --network vgg16-397923af.pth",
    ),
    defaults={
        "data": "photos",
        "image_size": 128,
        "crops": 1000,
        "flip": True,
        "steps": 800,
        "batch_size": 4,
        "schedule": "cosine",
        "ema": 0.99,
    },
    picture="paintings",
)(StyleNet)
