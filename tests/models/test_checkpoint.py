from pathlib import Path

import pytest
import torch

import genimg_fast as gf
from genimg_fast.training import RunFolder, load_checkpoint


def test_a_mistyped_run_is_suggested(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")  # a run draws its curves
    RunFolder.create(tmp_path, "dcgan-digits", {}).save_checkpoint({"model": {}, "config": {}, "step": 1})
    (tmp_path / "notes.txt").write_text("not a run")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*; did you mean 00000-dcgan-digits\?"):
        load_checkpoint(tmp_path / "00000-dcgan-digts")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*notes$"):
        load_checkpoint(tmp_path / "notes")


def test_bad_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(tmp_path)
    file = tmp_path / "checkpoint.pt"
    torch.save({"weights": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match="is not a checkpoint of genimg_fast"):
        load_checkpoint(file)
    torch.save({"model": {}, "config": None, "step": 1}, file)
    with pytest.raises(ValueError, match="is not a checkpoint of genimg_fast"):
        load_checkpoint(file)
    torch.save({"weights": torch.zeros(9000)}, file)
    whole = file.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 200):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
            load_checkpoint(file)


def test_weights_of_another_model(tmp_path: Path) -> None:
    model = gf.models.DCGAN(z_dim=4, channels=2, n_blocks=1)
    for name, arguments in (("dcgan", {"z_dim": 5}), ("dcgan", {"depth": 3}), ("vae", {})):
        config = {"model": name, "model_args": arguments}
        torch.save({"model": model.state_dict(), "config": config, "step": 1}, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match=f"does not fit its model, {name}: "):
            gf.models.load(tmp_path)
