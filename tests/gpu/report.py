"""What was measured, as a page to read.

SPDX-License-Identifier: MIT
"""
from __future__ import annotations

from typing import Any


def limits(report: dict) -> dict[str, float]:
    """Bytes and FLOPs in a second, as measured; none on an emulated card."""
    out: dict[str, float] = {}
    if report["emulated"]:
        return out
    for r in report["limits"]:
        if "ms" not in r or r["ms"] <= 0:
            continue
        if r["kernel"] in ("copy", "read"):
            out[r["kernel"]] = r["bytes"] / r["ms"] * 1e3
        elif r["kernel"] == "gemm":
            out["matrix"] = r["flops"] / r["ms"] * 1e3
    return out


def least(r: dict, known: dict[str, float]) -> dict[str, float]:
    """The ms that each limit alone asks for."""
    out = {}
    if "copy" in known:
        out["copy"] = r["bytes"] / known["copy"] * 1e3
    if "matrix" in known and r["flops"]:
        out["matrix"] = r["flops"] / known["matrix"] * 1e3
    return out


def share(r: dict, known: dict[str, float], by_line: dict[str, dict]) -> tuple[float, str]:
    """Of the bound that its target names, or of the one that asks for more; and that bound, or ""."""
    if not known or r["ms"] <= 0:
        return 0, ""
    if r.get("like"):
        parts = [by_line[line]["ms"] for line in r["like"] if line in by_line and "ms" in by_line[line]]
        if len(parts) == len(r["like"]):
            return sum(parts) / r["ms"], "cuBLASLt"
        return 0, ""
    bounds = least(r, known)
    if not any(bounds.values()):
        return 0, ""
    name = r["against"] if r.get("against") in bounds else max(bounds, key=lambda k: bounds[k])
    return bounds[name] / r["ms"], name


def rate(r: dict) -> str:
    words = []
    if r["bytes"]:
        words.append(f"{r['bytes'] / r['ms'] / 1e6:,.0f} GB/s")
    if r["flops"]:
        words.append(f"{r['flops'] / r['ms'] / 1e9:,.1f} TFLOP/s")
    return ", ".join(words)


def time(ms: float) -> str:
    return f"{ms * 1e3:.2f} µs" if ms < 1 else f"{ms:.3f} ms"


def verdict(r: dict, part: float, name: str) -> str:
    if not r["target"] or not name:
        return ""
    return f"{r['target']:.0%} of {name}: {'met' if part >= r['target'] else 'MISSED'}"


def table(rows: list[list[Any]], head: list[str]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def markdown(report: dict) -> str:
    card, known = report["card"] or {}, limits(report)
    by_line = {r["case"]: r for r in report["limits"] + report["kernels"]}
    lines = [f"# {card.get('card', 'No card')}", ""]
    if report["emulated"]:
        lines += ["**Emulated: shapes are tiny, and times say nothing.**", ""]
    lines += [f"{report['date']}; {report.get('architecture', 'built elsewhere')}; {card.get('sms', '?')} multiprocessors, "
              f"{card.get('l2', 0) / 2**20:.0f} MiB of cache, {card.get('memory', 0) / 2**30:.0f} GiB. Seconds: "
              + ", ".join(f"{k} {v}" for k, v in report["seconds"].items()) + ".", ""]
    if report["clocks"]:
        lines += ["; ".join(f"{k}: {v}" for k, v in report["clocks"].items()), ""]
    lines += [*(f"- {note.strip().splitlines()[0] if note.strip() else note}" for note in report["notes"]), ""]

    lines += ["## Checks", ""]
    lines += table([[r["name"] + (f" ({r['only']})" if r["only"] else ""), "ok" if r["ok"] else "**FAILED**", r["passed"], r["failed"],
                     r["seconds"], r.get("status", "")] for r in report["checks"]], ["program", "", "passed", "failed", "s", ""])
    for r in report["checks"]:
        if not r["ok"] and r.get("output"):
            lines += [f"{r['name']}:", "", "```", r["output"][-1500:].strip(), "```", ""]

    lines += ["## Limits", ""]
    lines += table([[r["case"], r["what"], time(r["ms"]) if "ms" in r else r["error"], rate(r) if r.get("ms") else ""] for r in report["limits"]],
                   ["", "", "time", "rate"])

    lines += ["## Whole models", "", "Host and card, through the library's sessions; of a decode step the next tokens are chosen on the card.", ""]
    rows = []
    for r in report["models"]:
        part, name = share(r, known, by_line)
        tokens = r["n"] / r["ms"] * 1e3
        rows.append([f"{r['dtype']}, {r['model']}", r["n"], r["context"], time(r["ms"]), f"{tokens:,.0f}", rate(r), f"{part:.0%} of {name}" if name else "",
                     verdict(r, part, name)])
    for r in report["peer"]:
        ours = [o["ms"] for o in report["models"] if o["dtype"] == "bf16" and all(o[k] == r.get(k) for k in ("model", "n", "context"))]
        rows.append([f"{r['peer']}, bf16, {r['model']}", r["n"], r["context"], time(r["ms"]), f"{r['n'] / r['ms'] * 1e3:,.0f}", "",
                     f"ours: {r['ms'] / ours[0]:.1f} times as fast" if ours else "", ""] if "ms" in r else [r["error"], *[""] * 7])
    lines += table(rows, ["what", "tokens", "context", "time", "tokens/s", "rate", "share", "target"])

    lines += ["## Kernels", "", "Bytes and FLOPs as in docs/kernels/README.md; the share is of the bound that asks for more time.", ""]
    rows = []
    for r in report["kernels"]:
        if "error" in r:
            rows.append([r["case"], r["what"], f"**{r['error']}**", "", "", "", ""])
            continue
        part, name = share(r, known, by_line)
        spread = f"{time(r['ms'])} ({time(r['least'])}–{time(r['most'])})"
        rows.append([r["case"], r["what"], spread, f"{r['bytes']:.3g}, {r['flops']:.3g}", rate(r) if r["ms"] > 0 else "",
                     f"{part:.0%} of {name}" if name else "", verdict(r, part, name)])
    lines += table(rows, ["case", "what", "time", "bytes, FLOPs", "rate", "share", "target"])
    return "\n".join(lines)
