import genimg_fast as gf
from genimg_fast import nn
from genimg_fast.options import PositiveInt


class Generator(gf.models.BaseGenerator):
    def __init__(self, z_dim, c_dim, image_size, hidden):
        super().__init__(z_dim=z_dim, c_dim=c_dim, image_size=image_size)
        self.main = nn.Sequential(
            nn.Linear(z_dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, c_dim * image_size**2)
        )

    def _images(self, z, labels):
        return self.main(z).tanh().view(-1, self.c_dim, self.image_size, self.image_size)


class Discriminator(gf.models.BaseDiscriminator):
    def __init__(self, c_dim, image_size, hidden):
        super().__init__(c_dim=c_dim, image_size=image_size)
        inputs = c_dim * image_size**2
        self.main = nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def _logits(self, images, labels):
        return self.main(images)


@gf.training.trainable("tiny-gan", trainer=gf.training.GANTrainer, defaults={"lr": 1e-3, "steps": 2000})
class TinyGAN(gf.models.BaseGAN):
    """A GAN of two small networks.

    Args:
        z_dim: Length of a noise vector.
        hidden: Width of the hidden layers.
    """

    def __init__(self, z_dim: PositiveInt = 16, hidden: PositiveInt = 128, c_dim: int = 1, image_size: int = 16):
        super().__init__(Generator(z_dim, c_dim, image_size, hidden), Discriminator(c_dim, image_size, hidden))
