"""Folders of random images, and shards of them."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, n: int = 12, *, classes: int = 2, grey: bool = False, seed: int = 0) -> list[Path]:
    """Images of several sizes and formats, in a subfolder for each class."""
    random = np.random.default_rng(seed)
    files = []
    for index in range(n):
        size = (*random.integers(16, 40, 2), *([] if grey or index % 5 == 3 else [3]))
        below = folder / f"class{index % classes}"
        below.mkdir(parents=True, exist_ok=True)
        files.append(below / f"{index:03}.{'jpg' if index % 2 else 'png'}")
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(files[-1])
    return sorted(files)


def write_shards(folder: Path, files: list[Path], shards: int = 2, *, labels: str = "cls") -> list[Path]:
    """Files as samples, with their classes, in tar files in the form of WebDataset."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, some in enumerate(np.array_split(np.array(files, dtype=object), shards)):
        made.append(folder / f"shard{number}.tar")
        with tarfile.open(made[-1], "w") as tar:
            for file in some:
                label = file.parent.name.removeprefix("class")
                content = {"cls": label, "json": f'{{"label": {label}, "text": "x"}}'}.get(labels)
                add(tar, f"{file.stem}{file.suffix}", file.read_bytes())
                if content is not None:
                    add(tar, f"{file.stem}.{labels}", content.encode())
    return made


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
