#!/usr/bin/env python3
"""A needle in a haystack: does the model find one fact in a long text, by the length of the text and the depth of the fact?

    python3 examples/needle.py                                     # a table for the bundled model
    python3 examples/needle.py --kv bf16,6bit --svg needle.svg     # a picture, a panel for each cache type
    python3 examples/needle.py FOLDER --set FILE.jsonl

The set has a JSON object per line: prompt, answer, length, bin (the tenth of the text that the fact lies in).  An answer counts if greedy
decoding gives exactly it and the full stop after it.  Needs the Python package (PYTHONPATH=bindings/python, DSV2_LIBRARY=build/lib).

SPDX-License-Identifier: MIT
"""
from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Tuple

HERE = Path(__file__).resolve().parent
SET = HERE / "train" / "heldout" / "retrieval.jsonl"
BINS = 10
Grid = Dict[Tuple[int, int], List[bool]]  # (length, bin) -> whether each answer was right


def measure(model, kv: str, rows) -> Grid:
    grid: Grid = defaultdict(list)
    for row in rows:
        prompt, answer = model.tokenize(row["prompt"], bos=True), model.tokenize(row["answer"] + ".")
        with model.session(n_ctx=len(prompt) + len(answer), kv=kv) as session:
            session.prefill(prompt)
            grid[row["length"], row["bin"]].append(all(t.rank == 1 for t in session.score(answer)))
    return grid


def table(kv: str, grid: Grid) -> str:
    lengths = sorted({length for length, _ in grid})
    lines = [f"{kv}: found, % of the answers, by length and by depth from the beginning (0) to the end (9) of the text",
             "  tokens " + " ".join(f"{b:>4}" for b in range(BINS)) + "   all"]
    for length in lengths:
        cells = [grid[length, b] for b in range(BINS)]
        every = [x for cell in cells for x in cell]
        lines.append(f"  {length:6} " + " ".join(f"{100 * sum(c) / len(c):4.0f}" if c else "   -" for c in cells)
                     + f"  {100 * sum(every) / len(every):4.0f} ({sum(every)}/{len(every)})")
    return "\n".join(lines)


def colour(share: float) -> str:
    """Red over yellow to green, as such pictures have it."""
    low, middle, high = (215, 48, 39), (254, 224, 139), (26, 152, 80)
    a, b, t = (low, middle, 2 * share) if share < 0.5 else (middle, high, 2 * share - 1)
    return "#%02x%02x%02x" % tuple(round(x + (y - x) * t) for x, y in zip(a, b))


def draw(grids: Dict[str, Grid]) -> str:
    """The SVG: a panel for each cache type; length from left to right, depth downwards, accuracy as colour."""
    lengths = sorted({length for grid in grids.values() for length, _ in grid})
    w, h, left, top, gap = 52, 24, 62, 46, 26
    panel = len(lengths) * w
    width, height = left + len(grids) * (panel + gap) + 66, top + BINS * h + 56
    text = '<text x="%g" y="%g" text-anchor="%s" font-size="%d">%s</text>'
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           f'font-family="sans-serif">', f'<rect width="{width}" height="{height}" fill="#fff"/>']
    bottom = top + BINS * h
    for p, (kv, grid) in enumerate(grids.items()):
        x0 = left + p * (panel + gap)
        out.append(text % (x0 + panel / 2, top - 14, "middle", 14, f"cache: {kv}"))
        for i, length in enumerate(lengths):
            out.append(text % (x0 + (i + 0.5) * w, bottom + 17, "middle", 11, f"{length:,}"))
            for b in range(BINS):
                cell = grid.get((length, b), [])
                fill = colour(sum(cell) / len(cell)) if cell else "#ddd"
                label = f"{length} tokens, depth {10 * b}-{10 * b + 10}%: {sum(cell)} of {len(cell)}"
                out.append(f'<rect x="{x0 + i * w}" y="{top + b * h}" width="{w}" height="{h}" fill="{fill}" stroke="#fff">'
                           f'<title>{label}</title></rect>')
        out.append(text % (x0 + panel / 2, bottom + 40, "middle", 12, "length of the text, tokens"))
    for b in range(BINS):
        out.append(text % (left - 7, top + (b + 0.68) * h, "end", 11, f"{10 * b + 5}%"))
    middle = top + BINS * h / 2
    out.append(f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle" font-size="12">depth of the fact</text>')
    x0 = width - 60
    for i in range(50):
        out.append(f'<rect x="{x0}" y="{top + i * BINS * h / 50:.1f}" width="14" height="{BINS * h / 50 + 0.5:.1f}" '
                   f'fill="{colour(1 - i / 49)}"/>')
    for share in (0, 50, 100):
        out.append(text % (x0 + 19, top + (1 - share / 100) * BINS * h + 4, "start", 11, f"{share}%"))
    return "\n".join(out + ["</svg>"]) + "\n"


def main() -> None:
    import dsv2

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=str(HERE / "model"))
    parser.add_argument("--kv", default="bf16", help="cache types, separated by commas: " + ", ".join(dsv2.KV_TYPES))
    parser.add_argument("--set", type=Path, default=SET)
    parser.add_argument("--every", type=int, metavar="N", default=1, help="only every Nth case")
    parser.add_argument("--svg", type=Path, help="where to draw the picture")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.set.read_text(encoding="utf-8").splitlines()][::args.every]
    grids: Dict[str, Grid] = {}
    with dsv2.Model(args.folder) as model:
        for kv in args.kv.split(","):
            grids[kv] = measure(model, kv, rows)
            print(table(kv, grids[kv]), flush=True)
    if args.svg:
        args.svg.write_text(draw(grids), encoding="utf-8")


if __name__ == "__main__":
    main()
