from pathlib import Path

import numpy
import pytest

from genimg_fast.cli import main


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": numpy.zeros(3)}, "holds no pictures: bytes of shape"),
        ({"arr_0": numpy.zeros((4, 5, 6, 7), "uint8")}, "pictures must have 1 or 3 channels"),
        (None, "cannot read"),
    ],
)
def test_arrays_that_are_no_pictures(
    arrays: dict | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "samples.npz"
    if arrays is None:
        file.write_bytes(b"PK\x03\x04 and no more")
    else:
        numpy.savez(file, **arrays)
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "--samples", str(file), "--real", "digits"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "argument --samples: " in line
    assert message in line
