"""README's tables and the pictures are those of the files of results."""

from pathlib import Path

import pytest

from genimg_fast.bench import Result, Row, load
from genimg_fast.bench.catalog import all_entries
from genimg_fast.bench.entries import choose
from genimg_fast.bench.machine import Ceilings

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks").exists():
    pytest.skip("tests run without the benchmarks", allow_module_level=True)

import tables  # noqa: E402

KINDS = {"convolutions and products": 8.0, "norms and activations": 1.0, "recurrent layers": 0.0, "other": 1.0}


def result_of(device: str = "some CPU", rounds: int = 5) -> Result:
    name = tables.OPERATORS["batch norm + LeakyReLU, 128x64x32x32"]
    ours, eager = [[1e-3] * rounds] * 3, [[5e-3] * rounds] * 3
    rows = [
        Row(
            name, direction, "genimg_fast", "float32", moved=1 << 20, operations=1 << 20,
            seconds={"warm": {"genimg_fast": ours, "eager": eager}},
        )
        for direction in ("forward", "both")
    ]  # fmt: skip
    rows.append(Row(
        "DCGAN-64 step bf16", "step", "genimg_fast", "bfloat16", images=64,
        memory={"genimg_fast": [7_000_000, 0], "eager": [9_000_000, 0]},
        kinds={"genimg_fast": KINDS, "eager": KINDS},
        seconds={"warm": {"genimg_fast": ours, "compile": [[2e-3] * rounds] * 3, "eager": eager}},
    ))  # fmt: skip
    machine = {
        "device": device,
        "threads": "2",
        "cores": "2",
        "SIMD": "avx512",
        "torch": "3",
        "last cache": "1 MiB",
    }
    limits = Ceilings({1 << 20: 4e10}, {1 << 20: 5e10}, 1e11, 2e11)
    quiet = {"others": 0.0, "stolen": 0.0, "load": 0.1, "megahertz": 0.0, "degrees": 0.0}
    when = "2026-01-02T03:04:05"
    return Result(rows, machine, limits, quiet, [1e-3], [], "abc1234", "genimg-fast bench all", when)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of texts with places for the tables."""
    for file, parts in tables.TEXTS.items():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            "Before.\n" + "".join(f"<!-- bench: {p} -->\nold\n<!-- bench: end -->\nAfter.\n" for p in parts)
        )
    return tmp_path


def saved(result: Result, path: Path) -> str:
    result.save(path)
    return str(path)


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="tests run without the documentation")
def test_the_texts_of_this_repository_are_those_of_its_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_tables_come_from_a_file_and_what_differs_is_found(root: Path, tmp_path: Path) -> None:
    assert tables.main([saved(result_of(), tmp_path / "x.json")], root) == 0
    readme = (root / "README.md").read_text()
    assert "| batch norm + LeakyReLU, 128x64x32x32 | 1 / 1 | 5.0 / 5.0 | - |" in readme
    assert "| DCGAN-64, bf16 | 64000 | 5.0 | 2.0 | 2.0 | 7, 9 | 80% |" in readme
    assert "some CPU, 2 cores, 2 threads, avx512, last cache 1 MiB, torch 3, commit abc1234, 2026-01-02" in readme
    assert "old" not in readme
    assert readme.count("Before.") + readme.count("After.") == 4
    docs = (root / "docs" / "benchmarks.md").read_text()
    assert "norms and activations 10%" in docs
    assert "(bench-some-cpu-2-cores-avx512.png)" in docs
    assert tables.main(["--check"], root) == 0

    (root / "README.md").write_text(readme.replace("5.0 / 5.0", "5.1 / 5.0"))
    assert tables.main(["--check"], root) == 1
    assert tables.main([], root) == 0
    assert (root / "README.md").read_text() == readme

    other = result_of()
    other.commit = "1234567"
    other.save(root / "benchmarks" / "results" / "bench-some-cpu-2-cores-avx512.json")
    assert tables.main(["--check"], root) == 1


def test_a_picture_of_another_result_is_found(root: Path, tmp_path: Path) -> None:
    assert tables.main([saved(result_of(), tmp_path / "x.json")], root) == 0
    (picture,) = (root / "docs").glob("*.png")
    later = result_of()
    later.when = "2026-01-03T03:04:05"
    tables.report.draw(later, picture)
    assert tables.main(["--check"], root) == 1
    assert tables.main([], root) == tables.main(["--check"], root) == 0


def test_two_machines_are_both_named_and_another_run_of_one_takes_the_place_of_the_first(
    root: Path, tmp_path: Path
) -> None:
    files = [saved(result_of(device), tmp_path / f"{device}.json") for device in ("one", "two", "one")]
    assert tables.main(files, root) == 0
    assert len(list((root / "benchmarks" / "results").iterdir())) == 2
    readme = (root / "README.md").read_text()
    assert "| A: ms | x eager | x compile | B: ms | x eager | x compile |" in readme
    assert "A: one, 2 cores" in readme
    assert "B: two, 2 cores" in readme


def test_a_file_has_the_first_rounds(root: Path, tmp_path: Path) -> None:
    result = result_of(rounds=30)
    tables.main([saved(result, tmp_path / "x.json")], root)
    (path,) = (root / "benchmarks" / "results").iterdir()
    kept = load(path).rows[0].seconds["warm"]["eager"]
    assert kept == [rounds[:20] for rounds in result.rows[0].seconds["warm"]["eager"]]


def test_a_text_without_a_place_is_an_error(root: Path, tmp_path: Path) -> None:
    (root / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match="one place for operators"):
        tables.main([saved(result_of(), tmp_path / "x.json")], root)


def test_the_short_list_has_what_readme_shows() -> None:
    short = {entry.name for entry in choose(all_entries(), "ops")}
    assert set(tables.OPERATORS.values()) <= short
