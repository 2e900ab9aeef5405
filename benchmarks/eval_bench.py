"""Whether ``genimg-fast bench compare`` finds what was planted, and nothing else.

    python benchmarks/eval_bench.py [--times 10] [--time-limit 0.5]

Of the last commit three versions are made in a folder of their own: as it is, with another comment, and one whose
batch_norm_act takes 10% longer. Each is measured, forward, on one case, and the others are compared with the
first. Exit status 1 if a slowdown is not found, or found where there is none.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from genimg_fast.bench import load
from genimg_fast.bench.results import changes
from genimg_fast.bench.runs import built

CASE = ["batch_norm_act", "64x128x16x16", "leaky_relu", "float32", "NCHW"]
SLOWER = """

import time as _time

_plain = batch_norm_act


def batch_norm_act(*args, **options):
    started = _time.perf_counter()
    output = _plain(*args, **options)
    ends = started + 1.1 * (_time.perf_counter() - started)
    while _time.perf_counter() < ends:
        pass
    return output
"""
PLANTED = {"nothing": "", "a comment": "\n# Nothing.\n", "10% more time": SLOWER}


def measure(place: Path, limit: float, out: Path) -> None:
    command = [sys.executable, "-m", "genimg_fast", "bench", "ops", "--filter", *CASE, "--passes", "forward"]
    command += ["--peers", "none", "--time-limit", str(limit), "--json", str(out)]
    subprocess.run(command, cwd=place, env={"PYTHONPATH": str(place)}, check=True, capture_output=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="how often")
    parser.add_argument("--time-limit", type=float, default=0.5, help="minutes for a measurement")
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, built("HEAD") as place:
        file = place / "genimg_fast" / "ops" / "__init__.py"
        plain = file.read_text()
        for time in range(args.times):
            results = {}
            for name, text in PLANTED.items():
                file.write_text(plain + text)
                out = Path(folder, "result.json")
                measure(place, args.time_limit, out)
                results[name] = load(out)
            for name in ("a comment", "10% more time"):
                (change,), _ = changes(results["nothing"], results[name])
                right = (change.ratio.verdict == "slower") == (name == "10% more time")
                wrong += not right
                sound = "" if not results[name].unsound else "; unsound"
                print(
                    f"{time}: {name}: {change.ratio.verdict}, {change.ratio}{sound}{'' if right else '  WRONG'}",
                    flush=True,
                )
    print(f"{2 * args.times - wrong} of {2 * args.times} right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
