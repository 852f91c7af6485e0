#!/usr/bin/env python3
"""The plots and the arithmetic of docs/serving.md.

    dsv2-bench --kv bf16,6bit --repeats 8 --json > docs/bench.json      # on the machine that the document names
    python3 docs/make_serving.py                            # writes throughput.svg and prints the tables

SPDX-License-Identifier: MIT
"""
import json
import math
from pathlib import Path

# Medians: the machine did nothing else.
DOCS = Path(__file__).resolve().parent
COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44")

# ---- A line plot -------------------------------------------------------------------------------------------------------


def plot(title, x_label, y_label, xs, series):
    """SVG of lines over xs (log 2) and values (log 2); series: (name, colour, dashed, values)."""
    w, h, left, top, right, bottom = 440, 270, 66, 40, 190, 52
    values = [v for s in series for v in s[3]]
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))

    def at(x, y):
        return (left + w * math.log2(x / xs[0]) / math.log2(xs[-1] / xs[0]), top + h - h * (math.log2(y) - low) / (high - low))

    text = '<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%d">%s</text>'
    width, height = left + w + right, top + h + bottom
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'font-family="sans-serif">', f'<rect width="{width}" height="{height}" fill="#fff"/>',
           text % (left + w / 2, 22, "middle", 14, title), text % (left + w / 2, height - 12, "middle", 12, x_label),
           f'<text transform="translate(16 {top + h / 2}) rotate(-90)" text-anchor="middle" font-size="12">{y_label}</text>']
    for x in xs:
        px = at(x, 2 ** low)[0]
        out += [f'<line x1="{px:.1f}" y1="{top}" x2="{px:.1f}" y2="{top + h}" stroke="#eee"/>', text % (px, top + h + 17, "middle", 11, x)]
    for e in range(low, high + 1):
        py = at(xs[0], 2 ** e)[1]
        out += [f'<line x1="{left}" y1="{py:.1f}" x2="{left + w}" y2="{py:.1f}" stroke="#eee"/>',
                text % (left - 7, py + 4, "end", 11, f"{2 ** e:,g}")]
    for i, (name, colour, dashed, ys) in enumerate(series):
        points = " ".join("%.1f,%.1f" % at(x, y) for x, y in zip(xs, ys))
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        y = top + 12 + 20 * i
        out += [f'<line x1="{left + w + 14}" y1="{y}" x2="{left + w + 42}" y2="{y}" stroke="{colour}" stroke-width="2"{dash}/>',
                text % (left + w + 48, y + 4, "start", 12, name)]
    return "\n".join(out + ["</svg>"]) + "\n"


def throughput(bench):
    xs = [int(n) for n in bench["speed"][0]["decode"]]
    contexts = list(dict.fromkeys(row["context"] for row in bench["speed"]))
    series = [(f"{row['context']:,} tokens, {row['kv']}", COLOURS[contexts.index(row["context"]) % 3], row["kv"] != "bf16",
               list(row["decode"].values())) for row in bench["speed"]]
    return plot("Decoding together, bundled model, 2 CPU cores", "sessions in a step", "tokens per second, all together", xs, series)


def fit(bench, kv):
    """Seconds of a step = a + b sessions + c sessions context, least relative squares; (a, b, c, largest relative error)."""
    rows = [(1.0, n, n * row["context"], n / rate) for row in bench["speed"] if row["kv"] == kv
            for n, rate in ((int(k), v) for k, v in row["decode"].items())]
    m = [[sum(r[i] * r[j] / r[3] ** 2 for r in rows) for j in range(3)] + [sum(r[i] / r[3] for r in rows)] for i in range(3)]
    for i in range(3):  # Gauss-Jordan on the 3 by 4 matrix
        m[i] = [x / m[i][i] for x in m[i]]
        for j in range(3):
            if j != i:
                m[j] = [x - m[j][i] * y for x, y in zip(m[j], m[i])]
    a, b, c = (row[3] for row in m)
    return a, b, c, max(abs((a + b * n + c * nl) / t - 1) for _, n, nl, t in rows)


# ---- A node on paper ---------------------------------------------------------------------------------------------------

NODE_BYTES = 0.9 * 8 * 80e9     # a tenth for activations, buffers, the framework
BANDWIDTH = 8 * 3.35e12         # bytes/s of 8 H800
BF16, FP8 = 8 * 0.99e15, 8 * 1.98e15  # dense multiply-adds, counted twice, per second

# name: bytes of weights, bytes of cache per token, linear FLOP per token, attention FLOP per token and token of context, linear FLOP/s
GQA = 4 * 64 * 128 * 95         # 64 query heads of 128: scores and values
MLA = 2 * 128 * (576 + 512) * 60
MODELS = {
    "67B, bf16; cache bf16": (2 * 67.4e9, 389120, 2 * 67.4e9, GQA, BF16),
    "V2, bf16; cache bf16": (471.5e9, 69120, 2 * 20.85e9, MLA, BF16),
    "V2, fp8; cache bf16": (235.7e9, 69120, 2 * 20.85e9, MLA, FP8),
    "V2, fp8; cache 6 bits (paper: 25,920 B)": (235.7e9, 25920, 2 * 20.85e9, MLA, FP8),
    "V2, fp8; cache 6bit (this library: 24,000 B)": (235.7e9, 24000, 2 * 20.85e9, MLA, FP8),
}
CONTEXTS = (500, 1000, 2000, 4000, 8000)


def bounds(model, context):
    """(sessions that fit, tokens/s if reading memory is all, tokens/s if arithmetic is all)."""
    weights, per_token, linear, attention, linear_rate = model
    sessions = (NODE_BYTES - weights) / (per_token * context)
    seconds = (weights + sessions * per_token * context) / BANDWIDTH  # V2 with so many sessions uses every expert
    return sessions, sessions / seconds, 1 / (linear / linear_rate + attention * context / BF16)


def print_node():
    base = [min(bounds(MODELS["67B, bf16; cache bf16"], n)[1:]) for n in CONTEXTS]
    print("| | tokens of cache, millions |", " | ".join(f"{n:,}" for n in CONTEXTS), "|\n| --- | ---: |", "---: | " * len(CONTEXTS))
    for name, model in MODELS.items():
        cells = []
        for n, reference in zip(CONTEXTS, base):
            sessions, memory, compute = bounds(model, n)
            rate = min(memory, compute)
            cells.append(f"{sessions:,.0f}; {rate / 1e3:.1f}K {'m' if memory < compute else 'a'}; {rate / reference:.1f}")
        print(f"| {name} | {(NODE_BYTES - model[0]) / model[1] / 1e6:.2f} | " + " | ".join(cells) + " |")


def main():
    print_node()
    bench = json.loads((DOCS / "bench.json").read_text())
    (DOCS / "throughput.svg").write_text(throughput(bench))
    for kv in dict.fromkeys(row["kv"] for row in bench["speed"]):
        a, b, c, worst = fit(bench, kv)
        print(f"{kv}: step = {1e6 * a:.0f} us + {1e6 * b:.0f} us per session + {1e9 * c:.0f} ns per session and token; "
              f"worst {100 * worst:.0f}%")
    for row in bench["speed"]:
        print(f"| {row['kv']} | {row['context']:,} | {row['prefill']:,.0f} | " + " | ".join(f"{v:,.0f}" for v in row["decode"].values()) + " |")
    for row in bench["prefix"]:
        print(f"| {row['kv']} | {row['prompt']:,} | {row['reused']:,} | {1e3 * row['fresh_s']:.1f} | {1e3 * row['stored_s']:.1f} | "
              f"{row['fresh_s'] / row['stored_s']:.1f} |")
    for row in bench["memory"]:
        print({k: v if isinstance(v, str) or v < 1e5 else f"{v / 2 ** 20:.2f} MiB" for k, v in row.items()})


if __name__ == "__main__":
    main()
