import re
from pathlib import Path

import pytest

from genimg_fast.cli import main


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"data": "digits", "image_size": 8, "z_dim": 4, "batch_size": 8, "channels": 2}
    monkeypatch.setattr("genimg_fast.cli.demo.DEMO", tiny)
    monkeypatch.setattr(
        "genimg_fast.cli.demo.OPERATORS", {"a small one": "group_norm_act 2x8/2 silu float32 NCHW"}
    )
    out = tmp_path / "my runs"
    assert main(["demo", "--out", str(out), "--steps", "2"]) == 0
    text = capsys.readouterr().out
    assert f" --channels 2 --out '{out}' --seed 0" in text
    assert f"generated digits: {out / '00000-dcgan-digits' / 'samples-000002.png'}" in text
    assert " images/s with fused kernels, " in text
    assert re.search(r"where torch.nn's time goes, .*:\n +.* [0-9]+% \([0-9.]+x\)", text)
    assert re.search(r"what bounds it now: .*, [0-9]+% of a step", text)
    assert re.search(r"a small one +[0-9.]+ ms +[0-9.]+ ms +[0-9.]+ \[", text)
    assert f"genimg-fast interpolate '{out / '00000-dcgan-digits'}'  # from digit to digit" in text
