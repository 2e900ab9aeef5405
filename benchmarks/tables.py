"""Writes the tables of README and docs/benchmarks.md, and their pictures, from the results in benchmarks/results/.

    genimg-fast bench all --time-limit 10 --json quiet.json
    python benchmarks/tables.py quiet.json      # keeps it, in place of that machine's last one, and writes all
    python benchmarks/tables.py                 # from the files that are there
    python benchmarks/tables.py --check         # exit status 1 if texts or pictures are not those of the files

A file that is kept has the first rounds of each process, `KEPT` in all, whatever they say. What stands between
`<!-- bench: NAME -->` and `<!-- bench: end -->` is this script's.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from genimg_fast.bench import Result, Row, load, report
from genimg_fast.bench.case import REFERENCE
from genimg_fast.bench.statistics import Ratio

ROOT = Path(__file__).resolve().parents[1]
KEPT = {"warm": 60, "cold": 15, "fresh": 15}  # rounds of all processes of a row: a file of some 300 kB

# What README has of the operators: what a row is called there, and the case.
OPERATORS = {
    "batch norm + LeakyReLU, 128x64x32x32": "batch_norm_act 128x64x32x32 leaky_relu float32 NCHW",
    "batch norm, channels_last": "batch_norm_act 128x64x32x32 leaky_relu float32 channels_last",
    "batch norm, channels_last, bf16": "batch_norm_act 128x64x32x32 leaky_relu bfloat16 channels_last",
    "batch norm, 128x256x8x8": "batch_norm_act 128x256x8x8 leaky_relu float32 NCHW",
    "group norm + SiLU, 8x128x64x64": "group_norm_act 8x128x64x64/32 silu float32 NCHW",
    "group norm, channels_last": "group_norm_act 8x128x64x64/32 silu float32 channels_last",
    "group norm, channels_last, bf16": "group_norm_act 8x128x64x64/32 silu bfloat16 channels_last",
    "instance norm + LeakyReLU, 4x64x128x128": "group_norm_act 4x64x128x128/64 instance leaky_relu float32 NCHW",
    "first layer of a discriminator": "image_conv_act from 64x3x64x64 64 4x4 stride 2 leaky_relu float32 NCHW",
    "last layer of a generator": "image_conv_act to 64x3x64x64 64 4x4 stride 2 tanh float32 NCHW",
    "4x4 convolution, stride 2, 64 to 128 at 32x32": "winograd_conv2d 64x64x32x32-128 k4 float32 channels_last",
    "its transpose": "winograd_conv_transpose2d 128-64x64x32x32 k4 float32 channels_last",
    "a VAE's latent and its KL, 4096x1024": "reparameterize_kl 4096x1024 float32",
    "a VAE's latent and its KL, 128x128": "reparameterize_kl 128x128 float32",
    "RNN, 28 steps of 64x28, H = 64": "RNN T28 B64 I28 H64 float32",
    "GRU, 28 steps of 64x28, H = 64": "GRU T28 B64 I28 H64 float32",
    "LSTM, 28 steps of 64x28, H = 64": "LSTM T28 B64 I28 H64 float32",
    "LSTM, 64 steps of 64x128, H = 128": "LSTM T64 B64 I128 H128 float32",
}


def results(folder: Path) -> dict[str, Result]:
    """The machines' files by name; those of gpu_check lie beside them."""
    return {path.stem: load(path) for path in sorted(folder.glob("bench-*.json"))}


def keep(path: Path, folder: Path) -> Path:
    """Put a result among those that texts are made of."""
    result = load(path)
    for row in result.rows:
        for state, contenders in (*row.seconds.items(), ("warm", row.yardsticks)):
            for name, processes in contenders.items():
                contenders[name] = [rounds[: KEPT[state] // len(processes)] for rounds in processes]
    facts = result.machine
    words = f"{facts['device']} {facts['cores']} cores {facts['SIMD']}"
    kept = folder / f"bench-{re.sub(r'[^a-z0-9]+', '-', words.lower()).strip('-')}.json"
    folder.mkdir(parents=True, exist_ok=True)
    result.save(kept)
    return kept


def row_of(result: Result, name: str, direction: str) -> Row | None:
    found = [row for row in result.rows if (row.name, row.pass_) == (name, direction) and row.seconds.get("warm")]
    return found[0] if found else None


def times(ratio: Ratio | None) -> str:
    """A ratio for a table: with a tilde where its interval does not tell."""
    if ratio is None:
        return "-"
    return f"{ratio.value:.{1 if ratio.value >= 2 else 2}f}" + "~" * (ratio.verdict == "cannot tell")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def letters(found: dict[str, Result]) -> list[str]:
    """What to call machines in the head of a column: nothing if there is one."""
    return [""] if len(found) == 1 else [f"{chr(ord('A') + i)}: " for i in range(len(found))]


def operators(found: dict[str, Result]) -> str:
    """README's table of operators: forward, and forward and backward."""
    header = ["forward / forward + backward"]
    for letter in letters(found):
        header += [f"{letter}ms", "x eager", "x compile"]
    lines = []
    for label, name in OPERATORS.items():
        if not any(
            row_of(result, name, direction) for result in found.values() for direction in ("forward", "both")
        ):
            continue
        cells = [label]
        for result in found.values():
            pair = [row_of(result, name, direction) for direction in ("forward", "both")]
            taken = [f"{(row.median() or 0) * 1e3:.3g}" if row else "-" for row in pair]
            cells += [" / ".join(taken)]
            for peer in (REFERENCE, "compile"):
                ratios = [times(row.ratio(peer)) if row else "-" for row in pair]
                cells += ["-" if set(ratios) == {"-"} else " / ".join(ratios)]
        lines.append(cells)
    return markdown_table(header, lines)


def steps(found: dict[str, Result]) -> str:
    """README's table of training steps."""
    names = dict.fromkeys(row.name for result in found.values() for row in result.rows if row.pass_ == "step")
    header = ["training step"]
    for letter in letters(found):
        header += [
            f"{letter}images/s",
            "x loop",
            "x compiled",
            "x compiled, same recipe",
            "MB ours, loop's",
            "convolutions",
        ]
    lines = []
    for name in names:
        cells = [name.replace(" step", ",")]
        for result in found.values():
            row = row_of(result, name, "step")
            if row is None:
                cells += ["-"] * 6
                continue
            ratios = {peer: times(row.ratio(peer)) for peer in row.peers()}
            same = ratios.get("compile", "-")
            memory = [
                f"{row.memory[who][0] / 1e6:.0f}" if who in row.memory else "-" for who in (row.judged, REFERENCE)
            ]
            ours = row.kinds.get(row.judged, {})
            share = f"{ours['convolutions and products'] / sum(ours.values()):.0%}" if ours else "-"
            cells += [
                f"{row.images / (row.median() or 1):.0f}", ratios.get(REFERENCE, "-"),
                ratios.get("compile-float32", same), same, ", ".join(memory), share,
            ]  # fmt: skip
        lines.append(cells)
    return markdown_table(header, lines)


def machines(found: dict[str, Result]) -> str:
    """What the tables were measured on."""
    lines = []
    for letter, result in zip(letters(found), found.values(), strict=True):
        facts = result.machine
        lines.append(
            f"{letter}{facts['device']}, {facts['cores']} cores, {facts['threads']} thread"
            f"{'s' * (facts['threads'] != '1')}, {facts['SIMD']}, "
            f"last cache {facts['last cache']}, torch {facts['torch']}, commit {result.commit}, "
            f"{result.when[:10]}: `{result.command}`."
            + "".join(f" **Unsound: {words}.**" for words in result.unsound)
        )
    return "  \n".join(lines)


def all_rows(found: dict[str, Result]) -> str:
    """The part of docs/benchmarks.md that has a picture and every row of every file."""
    parts = []
    for name, result in found.items():
        title = f"{result.machine['device']}, {result.machine['cores']} cores"
        picture = f"![Times as fast as others, and the roofline, on {title}]({name}.png)"
        parts.append(f"### {title}\n\n{picture}\n\n{report.markdown(result)}")
    return "\n\n".join(parts)


TEXTS: dict[str, dict[str, Callable[[dict[str, Result]], str]]] = {
    "README.md": {"operators": operators, "steps": steps, "machines": machines},
    "docs/benchmarks.md": {"rows": all_rows},
}


def written(text: str, parts: dict[str, Callable[[dict[str, Result]], str]], found: dict[str, Result]) -> str:
    """A text with its parts written anew.

    Raises:
        ValueError: If a part has no place in it.
    """
    for name, write in parts.items():
        place = re.compile(rf"(<!-- bench: {name} -->\n).*?(<!-- bench: end -->)", re.S)
        if len(place.findall(text)) != 1:
            raise ValueError(f"must have one place for {name}")
        inner = write(found)
        text = place.sub(lambda match, inner=inner: f"{match[1]}\n{inner}\n\n{match[2]}", text)
    return text


def drawn(result: Result, path: Path) -> bool:
    """Whether a picture is of a result."""
    return path.exists() and report.title_of(result).encode() in path.read_bytes()


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="results to keep")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something differs")
    options = parser.parse_args(arguments)
    folder = root / "benchmarks" / "results"
    for path in options.results:
        print(keep(path, folder))
    found = results(folder)
    if not found:
        parser.error(f"{folder} has no bench-*.json")
    stale = []
    for name, result in found.items():
        picture = root / "docs" / f"{name}.png"
        if not drawn(result, picture):
            stale.append(picture)
        if not options.check:
            shown = [row for row in result.rows if row.name in OPERATORS.values() or row.images]
            report.draw(result, picture, shown)
    for name, parts in TEXTS.items():
        path = root / name
        text = path.read_text()
        new = written(text, parts, found)
        if new != text:
            stale.append(path)
            if not options.check:
                path.write_text(new)
    for path in stale:
        print(f"{path.relative_to(root)}: {'is not what the results say' if options.check else 'written'}")
    if options.check and stale:
        print("python benchmarks/tables.py writes them anew", file=sys.stderr)
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
