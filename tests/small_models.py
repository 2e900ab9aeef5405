"""Arguments that make a small model of every registered name. A new model needs a line."""

CONVOLUTIONAL = {"z_dim": 8, "c_dim": 2, "channels": 4, "n_blocks": 2}
SMALL_MODELS = {
    "dcgan": CONVOLUTIONAL,
    "vae": {**CONVOLUTIONAL, "likelihood": "gaussian"},
    "cvae": {"num_classes": 3, **CONVOLUTIONAL, "likelihood": "gaussian"},
    "resvae": {**CONVOLUTIONAL, "likelihood": "gaussian"},
    "mlp-vae": {"z_dim": 8, "c_dim": 2, "image_size": 16, "hidden": (12,), "likelihood": "gaussian"},
    "wgan": CONVOLUTIONAL,
    "cdcgan": {"num_classes": 3, **CONVOLUTIONAL},
    "resgan": CONVOLUTIONAL,
    "mlp-gan": {"z_dim": 8, "c_dim": 2, "image_size": 16, "hidden": (12, 10)},
    "cyclegan": {"c_dim": 2, "channels": 4, "image_size": 16, "n_residual": 1},
    "pix2pix": {"in_channels": 1, "out_channels": 2, "channels": 4, "image_size": 16},
    "autoencoder": CONVOLUTIONAL,
    "vqvae": {"c_dim": 2, "image_size": 16, "channels": 4, "num_codes": 8, "code_dim": 3},
    "glo": {"num_images": 4, **CONVOLUTIONAL},
    "deep-image-prior": {"c_dim": 2, "channels": 6, "n_blocks": 2, "image_size": 16},
    "rnn": {"hidden_size": 8},
    "frame-predictor": {"c_dim": 2, "channels": 4, "n_blocks": 2, "hidden_size": 8},
    "frame-filler": {"c_dim": 2, "channels": 4, "n_blocks": 2, "hidden_size": 8},
    "restorer": {"c_dim": 2, "channels": 4, "depth": 1},
    "style-net": {"c_dim": 2, "channels": 4, "n_residual": 1},
    "row-rnn": {"c_dim": 2, "image_size": 16, "hidden_size": 8},
}
