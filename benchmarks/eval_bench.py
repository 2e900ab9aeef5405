"""Whether ``genimg-fast bench --base`` and ``bench compare`` find what was planted, and nothing else.

    python benchmarks/eval_bench.py [--times 5] [--threads 1]

Of the last commit two versions are made in a folder of their own: one with another comment, and one whose
batch_norm_act takes 10% longer. Each is measured, forward, on one case, in turns with the commit itself. Then
results of different times are compared, as of two days: there "cannot tell" is no mistake, but another verdict
than the right one is. Exit status 1 if a slowdown is not found in turns, or anything is found that is not there.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from genimg_fast.bench import Result, load
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
PLANTED = {"nothing": "\n# Nothing.\n", "10% more time": SLOWER}


def measure(place: Path, threads: int, folder: Path) -> tuple[Result, Result]:
    """Measure the version in a folder in turns with the last commit; the commit's result first."""
    command = [sys.executable, "-m", "genimg_fast", "bench", "ops", "--filter", *CASE, "--passes", "forward"]
    command += ["--threads", str(threads), "--base", "HEAD"]
    command += ["--out", str(folder / "base"), "--json", str(folder / "this.json")]
    done = subprocess.run(command, cwd=place, env={"PYTHONPATH": str(place)}, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: it is slower
        sys.exit(done.stderr)
    (base,) = (folder / "base").iterdir()
    return load(base), load(folder / "this.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="how often each is measured")
    parser.add_argument("--threads", type=int, default=1, help="of each process; several need an idle machine")
    args = parser.parse_args()
    right, false, apart = 0, 0, 0

    def judge(what: str, first: Result, second: Result, planted: bool) -> str:
        nonlocal false
        (change,), _ = changes(first, second)
        verdict = change.ratio.verdict
        false += verdict == "faster" or (verdict == "slower" and not planted) or (verdict == "same" and planted)
        unsound = "; unsound" if first.unsound or second.unsound else ""
        print(f"{what}: {verdict}, {change.ratio}, {change.beside}{unsound}", flush=True)
        return verdict

    with tempfile.TemporaryDirectory() as folder, built("HEAD") as place:
        file = place / "genimg_fast" / "ops" / "__init__.py"
        plain = file.read_text()
        for number in range(args.times):
            results = {}
            for name, text in PLANTED.items():
                file.write_text(plain + text)
                started = time.monotonic()
                results[name] = measure(place, args.threads, Path(tempfile.mkdtemp(dir=folder)))
                planted = name != "nothing"
                verdict = judge(f"{number}: {name}, {time.monotonic() - started:.0f} s", *results[name], planted)
                right += (verdict == "slower") == planted
            (before, same), (_, slower) = results.values()
            apart += judge(f"{number}: 10% more time, later", same, slower, planted=True) == "slower"
            judge(f"{number}: nothing, later", results["10% more time"][0], before, planted=False)
    print(f"in turns {right} of {2 * args.times} right; later, {apart} of {args.times} slowdowns found")
    print(f"{false} verdicts of {4 * args.times} false")
    return 1 if false or right < 2 * args.times else 0


if __name__ == "__main__":
    sys.exit(main())
