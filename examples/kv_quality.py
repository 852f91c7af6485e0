#!/usr/bin/env python3
"""What each cache type costs: bytes per token, and answers and probabilities of the bundled model against an fp32 cache.

    python3 examples/kv_quality.py                 # the table of docs/serving.md, in Markdown; a quarter of an hour
    python3 examples/kv_quality.py --every 10      # a quick look
    python3 examples/kv_quality.py --svg needle.svg

Every held-out case is read and answered by a session of each type, all in the same steps; the answer's own tokens are fed, so each of its
positions gives a distribution to compare, and the answer counts if each token is the most likely one.  Only the cache differs.
Needs the Python package (PYTHONPATH=bindings/python, DSV2_LIBRARY=build/lib).

SPDX-License-Identifier: MIT
"""
from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import defaultdict
from pathlib import Path

import numpy

import dsv2
import needle

HERE = Path(__file__).resolve().parent
SETS = ("english", "addition", "chat", "retrieval")
SHAPES = {"V2": 60, "V2-Lite": 27}  # layers; 512 + 64 as the bundled model
REFERENCE = "f32"


def cases(model, name: str, every: int):
    """(row, prompt, answer) as ids; an answer ends with what must follow it."""
    eos = [model.info.eos_token_id]
    for line in (HERE / "train" / "heldout" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[::every]:
        row = json.loads(line)
        if name == "english":
            yield row, model.tokenize(row["prefix"], bos=True), model.tokenize(row["text"]) + eos
        elif name == "addition":
            yield row, model.tokenize(row["prompt"], bos=True), model.tokenize(row["answer"] + "\n")
        elif name == "retrieval":
            yield row, model.tokenize(row["prompt"], bos=True), model.tokenize(row["answer"] + ".")
        else:
            yield row, model.chat_tokens(row["messages"], markers=True), model.tokenize(row["answer"]) + eos


def log_softmax(logits):
    x = logits.astype(numpy.float64)
    x -= x.max()
    return x - math.log(numpy.exp(x).sum())


def step(members) -> None:
    for result in dsv2.step(members):
        if result.error:
            raise result.error


def answer(model, prompt, goal):
    """Of each type: (whether greedy decoding gives goal, its log-probability, sum of the KL from the reference)."""
    sessions = {kv: model.session(n_ctx=len(prompt) + len(goal), kv=kv) for kv in dsv2.KV_TYPES}
    right, logprob, kl = dict.fromkeys(sessions, True), dict.fromkeys(sessions, 0.0), dict.fromkeys(sessions, 0.0)
    step(dsv2.StepMember(s, prompt) for s in sessions.values())
    for i, token in enumerate(goal):
        p = {kv: log_softmax(s.logits) for kv, s in sessions.items()}
        for kv, q in p.items():
            right[kv] &= int(q.argmax()) == token
            logprob[kv] += q[token]
            kl[kv] += float((numpy.exp(p[REFERENCE]) * (p[REFERENCE] - q)).sum())
        if i + 1 < len(goal):
            step(dsv2.StepMember(s, [token], decoded=True) for s in sessions.values())
    for s in sessions.values():
        s.close()
    return right, logprob, kl


def bootstrap(sums, counts, draws: int = 1000):
    """95% interval of sum(sums)/sum(counts) when other cases had been drawn."""
    rng, n = random.Random(1), len(sums)
    means = []
    for _ in range(draws):
        drawn = [rng.randrange(n) for _ in range(n)]
        means.append(sum(sums[i] for i in drawn) / sum(counts[i] for i in drawn))
    means.sort()
    return means[round(0.025 * draws)], means[round(0.975 * draws) - 1]


def wilson(hits: int, n: int):
    """95% interval of a share."""
    z, p = 1.96, hits / n
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def report(model, results) -> None:
    """results: set -> list of (row, tokens of the answer, right, logprob, kl)."""
    print("| cache | bits per element | bundled | " + " | ".join(SHAPES) + " |\n| --- " + "| ---: " * (2 + len(SHAPES)) + "|")
    layers, elements = model.info.num_hidden_layers, model.info.kv_elements_per_token
    for kv in dsv2.KV_TYPES:
        size = dsv2.inspect(HERE / "model", kv=kv)[1].kv_per_token
        print(f"| {kv} | {8 * size / elements:.2f} | {size:,} | " + " | ".join(f"{size // layers * n:,}" for n in SHAPES.values()) + " |")

    print("\n| cache | " + " | ".join(f"KL, {name}" for name in results) + " | perplexity, english |\n| --- " + "| ---: " * (len(results) + 1) + "|")
    for kv in dsv2.KV_TYPES:
        cells = []
        for rows in results.values():
            sums, counts = [r[4][kv] for r in rows], [r[1] for r in rows]
            low, high = bootstrap(sums, counts)
            cells.append("0" if kv == REFERENCE else f"{sum(sums) / sum(counts):.2e} ({low:.1e} to {high:.1e})")
        rows = results["english"]
        loss, counts = [-r[3][kv] for r in rows], [r[1] for r in rows]
        low, high = (math.exp(x) for x in bootstrap(loss, counts))
        print(f"| {kv} | " + " | ".join(cells) + f" | {math.exp(sum(loss) / sum(counts)):.4f} ({low:.3f} to {high:.3f}) |")

    answered = [name for name in results if name != "english"]
    print("\n| cache | " + " | ".join(answered) + " |\n| --- " + "| ---: " * len(answered) + "|")
    for kv in dsv2.KV_TYPES:
        cells = []
        for name in answered:
            rows = results[name]
            hits, n = sum(r[2][kv] for r in rows), len(rows)
            low, high = wilson(hits, n)
            lost = sum(r[2][REFERENCE] and not r[2][kv] for r in rows)
            won = sum(r[2][kv] and not r[2][REFERENCE] for r in rows)
            cells.append(f"{100 * hits / n:.1f}% ({100 * low:.1f} to {100 * high:.1f}), -{lost} +{won}")
        print(f"| {kv} | " + " | ".join(cells) + " |")

    lengths = sorted({r[0]["length"] for r in results["retrieval"]})
    print("\n| retrieval, right | " + " | ".join(f"{n:,} tokens" for n in lengths) + " | depth 0-30% | 30-70% | 70-100% |\n| --- "
          + "| ---: " * (len(lengths) + 3) + "|")
    for kv in dsv2.KV_TYPES:
        groups = [[r[2][kv] for r in results["retrieval"] if r[0]["length"] == n] for n in lengths]
        groups += [[r[2][kv] for r in results["retrieval"] if a <= r[0]["bin"] < b] for a, b in ((0, 3), (3, 7), (7, 10))]
        print(f"| {kv} | " + " | ".join(f"{sum(g)} of {len(g)}" for g in groups) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, metavar="N", default=1, help="only every Nth case")
    parser.add_argument("--svg", type=Path, help="draw retrieval with a bf16 and a 6-bit cache, as needle.py")
    args = parser.parse_args()
    results, grids = {}, {kv: defaultdict(list) for kv in ("bf16", "6bit")}
    with dsv2.Model(HERE / "model") as model:
        for name in SETS:
            results[name] = []
            for row, prompt, goal in cases(model, name, args.every):
                right, logprob, kl = answer(model, prompt, goal)
                results[name].append((row, len(goal), right, logprob, kl))
            print(name, len(results[name]), file=sys.stderr, flush=True)
        report(model, results)
    if args.svg:
        for row, _, right, _, _ in results["retrieval"]:
            for kv, grid in grids.items():
                grid[row["length"], row["bin"]].append(right[kv])
        args.svg.write_text(needle.draw(grids), encoding="utf-8")


if __name__ == "__main__":
    main()
