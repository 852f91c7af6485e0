#!/usr/bin/env python3
"""What each kernel must move and compute, for any shape: the one table from which the script for cards makes its cases and
docs/kernels/README.md its figures.

    python3 tests/gpu/roofline.py             # is docs/kernels/README.md up to date?
    python3 tests/gpu/roofline.py --update    # make it so

Bytes count what must come from or go to device memory when nothing is read twice; FLOPs count a multiply-add as two.

SPDX-License-Identifier: MIT
"""
from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "docs" / "kernels" / "README.md"
SIZE = {"f32": 4, "bf16": 2, "f16": 2, "f8": 1}
RECORD = {"bf16": 1152, "e4m3": 592, "6bit": 400}  # bytes of a token of a layer: kernels/kv_page.h for 512 + 64
LATENT, ROPE, NOPE, V = 512, 64, 128, 128
WINDOW = 2048  # DSV2I_CUDA_WINDOW of kernels/cuda/backend.h

CONFIG = {
    "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "hidden_act": "silu", "kv_lora_rank": LATENT,
    "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE, "v_head_dim": V, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "scoring_func": "softmax", "norm_topk_prob": False, "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 163840,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
                     "mscale": 0.707, "mscale_all_dim": 0.707},
    "attention_bias": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "n_shared_experts": 2, "num_experts_per_tok": 6,
}
MODELS = {
    "V2-Lite": CONFIG | {
        "vocab_size": 102400, "bos_token_id": 100000, "eos_token_id": 100001, "hidden_size": 2048, "num_hidden_layers": 27,
        "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "n_routed_experts": 64, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
        "routed_scaling_factor": 1.0},
    "V2": CONFIG | {
        "vocab_size": 102400, "bos_token_id": 100000, "eos_token_id": 100001, "hidden_size": 5120, "num_hidden_layers": 60,
        "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "intermediate_size": 12288,
        "moe_intermediate_size": 1536, "n_routed_experts": 160, "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3,
        "routed_scaling_factor": 16.0},
}
TINY = CONFIG | {  # for the emulated card; the heads are the releases'
    "vocab_size": 128, "bos_token_id": 100, "eos_token_id": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "q_lora_rank": None, "intermediate_size": 96, "moe_intermediate_size": 32, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}


def distinct(n: int, experts: int, top_k: int) -> float:
    """Experts that n rows choose, if any choice is as likely as another."""
    return experts * (1 - (1 - top_k / experts) ** n)


@dataclass(frozen=True)
class Case:
    """A kernel on a shape, as bench reads it.  target: the share of a limit ('copy', 'matrix') that it should reach, or of the speed of
    other cases ('like') that do the same arithmetic."""
    kernel: str
    shape: dict = field(default_factory=dict)
    what: str = ""
    target: float = 0
    against: str = ""
    like: tuple = ()

    def line(self) -> str:
        return " ".join([self.kernel, *(f"{k}={v}" for k, v in self.shape.items())])

    def facts(self) -> tuple[float, float]:
        """Bytes and FLOPs."""
        return FACTS[self.kernel](**self.shape)


def product(rows: int, cols: int, n: int, dtype: str = "bf16", x: int = 4, y: int = 4) -> tuple[float, float]:
    return rows * cols * SIZE[dtype] + n * (cols * x + rows * y), 2 * n * rows * cols


def experts(hidden: int, inter: int, experts: int, top_k: int, n: int, dtype: str = "bf16", x: int = 4) -> tuple[float, float]:
    return distinct(n, experts, top_k) * 3 * hidden * inter * SIZE[dtype] + n * hidden * (x + 8), n * top_k * 6 * hidden * inter


def decode(heads: int, batch: int, context: int, kv: str) -> tuple[float, float]:
    return (batch * (context * RECORD[kv] + heads * ((LATENT + ROPE) * 2 + LATENT * 4)),
            batch * context * heads * 2 * (2 * LATENT + ROPE))


def prefill(heads: int, n: int, context: int, kv: str) -> tuple[float, float]:
    """n rows that end at position context - 1."""
    pairs = n * (context - n) + n * (n + 1) // 2
    return (context * RECORD[kv] + heads * (NOPE + V) * LATENT * 2 + n * heads * (NOPE + ROPE + V) * 4,
            context * heads * 2 * (NOPE + V) * LATENT + pairs * heads * 2 * (NOPE + ROPE + V))


FACTS = {
    "copy": lambda mib: (2 * mib * 2**20, 0),
    "read": lambda mib: (mib * 2**20, 0),
    "launch": lambda graph, early: (0, 0),
    "gemm": lambda m, n, k: (2 * (n * k + m * k) + 4 * m * n, 2 * m * n * k),
    "linear_few": product,
    "linear_many": lambda rows, cols, n, dtype: product(rows, cols, n, dtype, 2),
    "experts_few": experts,
    "experts_many": lambda **s: experts(**s, x=2),
    "rms_norm": lambda n, dim: (n * dim * 10 + 4 * dim, 0),
    "rope": lambda n: (n * ROPE * 4, 0),
    "embed": lambda n, hidden, vocab, dtype: (n * hidden * (4 + SIZE[dtype]), 0),
    "moe_route": lambda n, experts, groups: (n * (experts * 4 + 6 * 8), 0),
    "moe_permute": lambda n, experts, tile: (n * 6 * 8, 0),
    "narrow": lambda n, dim: (n * dim * 6, 0),
    "quantize": lambda n, dim, scaling: (n * dim * 5, 0),
    "widen": lambda rows, cols: (rows * cols * 3, 0),
    "mla_prepare": lambda heads, n, kv: (n * (heads * ROPE * 8 + (LATENT + ROPE) * 4 + RECORD[kv]), 0),
    "mla_plan": lambda heads, batch, context: (0, 0),
    "mla_absorb": lambda heads, n: (heads * NOPE * LATENT * 2 + n * heads * ((NOPE + ROPE) * 4 + (LATENT + ROPE) * 2),
                                    2 * n * heads * NOPE * LATENT),
    "mla_decode": decode,
    "mla_value": lambda heads, n: (heads * V * LATENT * 2 + n * heads * (LATENT + V) * 4, 2 * n * heads * V * LATENT),
    "mla_prefill": prefill,
    "sample": lambda n, vocab, how: (n * vocab * 4, 0),
    "score": lambda n, vocab: (n * vocab * 4, 0),
}


# ---- cases of the script for cards, the most important first ------------------------------------------------------------------------

def limits() -> list[Case]:
    return [Case("copy", {"mib": 2048}, "device copy, bytes read and written"), Case("read", {"mib": 4096}, "reading kernel"),
            Case("gemm", {"m": 8192, "n": 8192, "k": 8192}, "cuBLASLt, bf16"),
            Case("launch", {"graph": 1, "early": 1}, "launch gap in a graph, early"),
            Case("launch", {"graph": 1, "early": 0}, "launch gap in a graph"),
            Case("launch", {"graph": 0, "early": 0}, "launch gap in a stream")]


def dense_products(c: dict) -> dict[str, tuple[int, int]]:
    """Rows and columns of a layer's dense products, and of the head."""
    heads, hidden, q_rank = c["num_attention_heads"], c["hidden_size"], c["q_lora_rank"]
    q = heads * (NOPE + ROPE)
    first = {"q_a_proj": (q_rank, hidden), "q_b_proj": (q, q_rank)} if q_rank else {"q_proj": (q, hidden)}
    return first | {"kv_a_proj": (LATENT + ROPE, hidden), "o_proj": (hidden, heads * V), "router": (c["n_routed_experts"], hidden),
                    "lm_head": (c["vocab_size"], hidden)}


def expert_shape(c: dict, n: int, dtype: str = "bf16") -> dict:
    return {"hidden": c["hidden_size"], "inter": c["moe_intermediate_size"], "experts": c["n_routed_experts"],
            "top_k": c["num_experts_per_tok"], "n": n, "dtype": dtype}


def dense_shape(c: dict, inter: int, n: int, dtype: str = "bf16") -> dict:
    return {"hidden": c["hidden_size"], "inter": inter, "experts": 1, "top_k": 1, "n": n, "dtype": dtype}


def cases() -> list[Case]:
    lite, v2 = MODELS["V2-Lite"], MODELS["V2"]
    out = []
    for name, c in MODELS.items():
        heads = c["num_attention_heads"]
        out.append(Case("experts_few", expert_shape(c, 1), f"{name}: experts of a token", 0.75 if c is lite else 0, "copy"))
        for label, (rows, cols) in dense_products(c).items():
            out.append(Case("linear_few", {"rows": rows, "cols": cols, "n": 1, "dtype": "bf16"},
                            f"{name}: {label}"))
        target = (0.9, "copy") if heads == 16 else (0.65, "matrix")
        out.append(Case("mla_decode", {"heads": heads, "batch": 128, "context": 4096, "kv": "bf16"}, f"{name}: 128 sequences", *target))
    for name, c in MODELS.items():
        n, hidden, inter = 4096, c["hidden_size"], c["moe_intermediate_size"]
        entries = n * c["num_experts_per_tok"]
        like = (Case("gemm", {"m": entries, "n": 2 * inter, "k": hidden}, f"{name}: the FLOPs of gate and up"),
                Case("gemm", {"m": entries, "n": hidden, "k": inter}, f"{name}: the FLOPs of down"))
        out += like
        out.append(Case("experts_many", expert_shape(c, n), f"{name}: experts of 4,096 tokens", 0.8, "like", like))
        out.append(Case("mla_prefill", {"heads": c["num_attention_heads"], "n": 4096, "context": 4096, "kv": "bf16"}, f"{name}: prompt"))
    for c, name in ((lite, "V2-Lite"), (v2, "V2")):
        heads = c["num_attention_heads"]
        for kv in ("bf16", "e4m3", "6bit"):
            out.append(Case("mla_decode", {"heads": heads, "batch": 1, "context": 4096, "kv": kv}, f"{name}: one sequence"))
            if kv != "bf16":
                out.append(Case("mla_decode", {"heads": heads, "batch": 128, "context": 4096, "kv": kv}, f"{name}: 128 sequences"))
        out.append(Case("mla_decode", {"heads": heads, "batch": 8, "context": 32768, "kv": "bf16"}, f"{name}: 8 long sequences"))
        for n in (1, 8, 128):
            out += [Case("mla_absorb", {"heads": heads, "n": n}, name), Case("mla_value", {"heads": heads, "n": n}, name)]
        out.append(Case("mla_plan", {"heads": heads, "batch": 128, "context": 4096}, name))
        out.append(Case("mla_prefill", {"heads": heads, "n": 512, "context": 8192, "kv": "bf16"}, f"{name}: end of a prompt"))
    for name, c in MODELS.items():
        for label, (rows, cols) in dense_products(c).items():
            if label == "router":  # from fp32 for any number of rows
                out += [Case("linear_few", {"rows": rows, "cols": cols, "n": n, "dtype": "bf16"}, f"{name}: router") for n in (8, 128)]
                continue
            out.append(Case("linear_few", {"rows": rows, "cols": cols, "n": 2, "dtype": "bf16"}, f"{name}: {label}"))
            out += [Case("gemm", {"m": m, "n": rows, "k": cols}, f"{name}: {label}") for m in (8, 128)]
        out.append(Case("experts_few", expert_shape(c, 2), f"{name}: experts"))
        out.append(Case("experts_few", dense_shape(c, 2 * c["moe_intermediate_size"], 1), f"{name}: shared experts"))
        out.append(Case("experts_few", dense_shape(c, c["intermediate_size"], 1), f"{name}: dense layer"))
        out.append(Case("experts_few", expert_shape(c, 1, "f8"), f"{name}: experts of a token"))
        out += [Case("linear_few", {"rows": rows, "cols": cols, "n": 1, "dtype": "f8"}, f"{name}: {label}")
                for label, (rows, cols) in dense_products(c).items() if label in ("q_proj", "q_b_proj", "o_proj")]
        for n in (4, 8, 32, 128, 512, 2048):
            out.append(Case("experts_many", expert_shape(c, n), f"{name}: experts"))
        for n in (8, 32, 128):
            out.append(Case("experts_many", dense_shape(c, 2 * c["moe_intermediate_size"], n), f"{name}: shared experts"))
        out.append(Case("experts_many", dense_shape(c, 2 * c["moe_intermediate_size"], 4096), f"{name}: shared experts"))
        for n in (32, 128):
            out += [Case("linear_many", {"rows": rows, "cols": cols, "n": n, "dtype": "bf16"}, f"{name}: {label}")
                    for label, (rows, cols) in dense_products(c).items() if label in ("q_proj", "q_b_proj", "o_proj", "lm_head")]
        rows, cols = dense_products(c)["o_proj"]
        like = (Case("gemm", {"m": 4096, "n": rows, "k": cols}, f"{name}: o_proj"),)
        out += like
        out.append(Case("linear_many", {"rows": rows, "cols": cols, "n": 4096, "dtype": "bf16"}, f"{name}: o_proj", 0, "like", like))
        out.append(Case("linear_many", {"rows": rows, "cols": cols, "n": 4096, "dtype": "f8"}, f"{name}: o_proj"))
        out.append(Case("experts_many", expert_shape(c, 4096, "f8"), f"{name}: experts of 4,096 tokens"))
        hidden, heads = c["hidden_size"], c["num_attention_heads"]
        for n in (1, 128, 4096):
            out.append(Case("rms_norm", {"n": n, "dim": hidden}, name))
            out.append(Case("moe_route", {"n": n, "experts": c["n_routed_experts"], "groups": c["n_group"]}, name))
            out.append(Case("mla_prepare", {"heads": heads, "n": n, "kv": "bf16"}, name))
        out.append(Case("mla_prepare", {"heads": heads, "n": 128, "kv": "6bit"}, name))
        out.append(Case("embed", {"n": 4096, "hidden": hidden, "vocab": c["vocab_size"], "dtype": "bf16"}, name))
        out.append(Case("narrow", {"n": 4096, "dim": hidden}, name))
        out.append(Case("moe_permute", {"n": 4096, "experts": c["n_routed_experts"], "tile": 128}, name))
        out.append(Case("quantize", {"n": 4096, "dim": hidden, "scaling": 3}, name))
    out.append(Case("rope", {"n": 4096}, "both"))
    for how in ("greedy", "drawn"):
        for n in (1, 128):
            out.append(Case("sample", {"n": n, "vocab": 102400, "how": how}, "both"))
    out.append(Case("score", {"n": 256, "vocab": 8192}, "both"))
    out.append(Case("widen", {"rows": v2["num_attention_heads"] * (NOPE + V), "cols": LATENT}, "V2: kv_b_proj, when loaded"))
    return list({case.line(): case for case in out}.values())


LEAST = {"heads": 2, "batch": 2, "context": 70, "n": 3, "rows": 48, "cols": 64, "hidden": 64, "inter": 32, "experts": 8, "top_k": 2, "vocab": 300,
         "dim": 64, "m": 16, "k": 64, "mib": 1, "tile": 16}


def tiny(case: Case) -> Case:
    """The same for the emulated card."""
    shape = {k: min(v, LEAST[k]) if k in LEAST else v for k, v in case.shape.items()}
    if case.kernel == "gemm":
        shape["n"] = 16
    if case.kernel == "moe_permute" or (case.kernel == "moe_route" and case.shape["groups"] > 1):
        shape["experts"] = 16
    if case.kernel == "mla_prefill":
        shape["n"] = 3
    return Case(case.kernel, shape, case.what, case.target, case.against, tuple(map(tiny, case.like)))


# ---- the whole model ----------------------------------------------------------------------------------------------------------------

def model_step(c: dict, batch: int, context: int, dtype: str = "bf16", kv: str = "bf16") -> tuple[float, float]:
    """Bytes and FLOPs of one token of each of batch sequences that hold context tokens: weights that are read, and the caches."""
    total = flops = 0.0
    hidden, heads, inter = c["hidden_size"], c["num_attention_heads"], c["moe_intermediate_size"]
    kept = {"lm_head": "bf16", "router": "bf16"}  # not quantized
    for layer in range(c["num_hidden_layers"]):
        parts = [product(r, w, batch, kept.get(label, dtype), 0, 0) for label, (r, w) in dense_products(c).items()
                 if label not in ("lm_head", "router")]
        parts.append((heads * (NOPE + V) * LATENT * SIZE["bf16"], 2 * batch * heads * (NOPE + V) * LATENT))  # kv_b_proj
        parts.append((batch * context * RECORD[kv], batch * context * heads * 2 * (2 * LATENT + ROPE)))
        if layer < c["first_k_dense_replace"]:
            parts.append(experts(hidden, c["intermediate_size"], 1, 1, batch, dtype))
        else:
            parts.append(product(c["n_routed_experts"], hidden, batch, "bf16", 0, 0))
            parts.append(experts(hidden, c["n_shared_experts"] * inter, 1, 1, batch, dtype))
            parts.append(experts(hidden, inter, c["n_routed_experts"], c["num_experts_per_tok"], batch, dtype))
        total += sum(p[0] for p in parts)
        flops += sum(p[1] for p in parts)
    head = product(c["vocab_size"], hidden, batch, "bf16", 0, 4)
    return total + head[0], flops + head[1]


def model_prefill(c: dict, n: int) -> tuple[float, float]:
    """FLOPs of a prompt of n tokens, whose last logits are wanted; bytes: the weights."""
    weights, flops = model_step(c, n, 0)
    layers, heads = c["num_hidden_layers"], c["num_attention_heads"]
    attention = layers * (prefill(heads, n, n, "bf16")[1] - 2 * n * heads * (NOPE + V) * LATENT)  # kv_b_proj is in both
    return weights, flops + attention - 2 * (n - 1) * c["vocab_size"] * c["hidden_size"]


# ---- docs/kernels/README.md -----------------------------------------------------------------------------------------------------------

COPY, MATRIX = 3.35e12, 989e12  # of an H100's data sheet
KERNELS = (
    ("rope.cu", "angles of the rows' positions", "latency", None),
    ("embed.cu", "rows of the embedding", "bandwidth", lambda c, n: Case("embed", {"n": n, "hidden": c["hidden_size"], "vocab": c["vocab_size"], "dtype": "bf16"})),
    ("rms_norm.cu", "RMSNorm, fp32 and bf16", "bandwidth; few rows: latency", lambda c, n: Case("rms_norm", {"n": n, "dim": c["hidden_size"]})),
    ("linear_few.cu", "dense products of one or two rows (here o_proj); the router", "bandwidth: the weight", lambda c, n: n <= 2 and o_proj(c, n, "linear_few")),
    ("linear_many.cu", "dense products of more rows (here o_proj), invariant; others by cuBLASLt",
     "bandwidth to some 300 rows, then the matrix units", lambda c, n: n > 2 and o_proj(c, n, "linear_many")),
    ("mla_prepare.cu", "rotation, latent norm, KV record", "latency, then bandwidth",
     lambda c, n: Case("mla_prepare", {"heads": c["num_attention_heads"], "n": n, "kv": "bf16"})),
    ("mla_absorb.cu", "queries to the latent space", "bandwidth: kv_b_proj",
     lambda c, n: n <= 128 and Case("mla_absorb", {"heads": c["num_attention_heads"], "n": n})),
    ("mla_decode.cu", "attention over latents; here n sequences of 4,096 tokens", "16 heads: bandwidth, the caches; 128 heads: the matrix units",
     lambda c, n: n <= 128 and Case("mla_decode", {"heads": c["num_attention_heads"], "batch": n, "context": 4096, "kv": "bf16"})),
    ("mla_absorb.cu", "results back from it (mla_value)", "bandwidth: kv_b_proj",
     lambda c, n: n <= 128 and Case("mla_value", {"heads": c["num_attention_heads"], "n": n})),
    ("mla_expand.cu, mla_prefill.cu", "attention in the expanded form; here a prompt of n tokens", "the matrix units",
     lambda c, n: n > 1 and Case("mla_prefill", {"heads": c["num_attention_heads"], "n": n, "context": n, "kv": "bf16"})),
    ("mla_attend_any.cu", "attention for any shape, and for fp32 caches", "arithmetic; a reference that is never the fast path", None),
    ("moe_route.cu", "choice of experts", "latency", lambda c, n: Case("moe_route", {"n": n, "experts": c["n_routed_experts"], "groups": c["n_group"]})),
    ("experts_few.cu", "experts of one or two rows", "bandwidth: the chosen experts", lambda c, n: n <= 2 and Case("experts_few", expert_shape(c, n))),
    ("moe_permute.cu", "rows by expert", "latency", lambda c, n: n > 2 and Case("moe_permute", {"n": n, "experts": c["n_routed_experts"], "tile": 128})),
    ("experts_many.cu", "experts of more rows", "bandwidth to some thousand rows, then the matrix units",
     lambda c, n: n > 2 and Case("experts_many", expert_shape(c, n))),
    ("quantize.cu", "activations to bf16 (narrow)", "bandwidth", lambda c, n: Case("narrow", {"n": n, "dim": c["hidden_size"]})),
    ("quantize.cu", "activations to e4m3, with scales", "bandwidth", lambda c, n: Case("quantize", {"n": n, "dim": c["hidden_size"], "scaling": 3})),
    ("widen.cu", "a weight to bf16, when it is loaded", "bandwidth", None),
    ("sample.cu", "tokens from logits", "bandwidth: logits", lambda c, n: n <= 128 and Case("sample", {"n": n, "vocab": c["vocab_size"], "how": "drawn"})),
    ("score.cu", "log-probabilities of given tokens", "bandwidth: logits", lambda c, n: Case("score", {"n": n, "vocab": c["vocab_size"]})),
)


def o_proj(c: dict, n: int, kernel: str) -> Case:
    rows, cols = dense_products(c)["o_proj"]
    return Case(kernel, {"rows": rows, "cols": cols, "n": n, "dtype": "bf16"})


def amount(x: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if x < 999.5:
            break
        x /= 1000
    digits = max(0, 2 - int(math.log10(x))) if x >= 1 else 2
    return f"{x:.{digits if prefix else 0}f} {prefix}{unit}"


def duration(seconds: float) -> str:
    if seconds < 0.1e-6:
        return "< 0.1 µs"
    return f"{seconds * 1e6:.2f} µs" if seconds < 9.995e-6 else f"{seconds * 1e6:.0f} µs" if seconds < 9.995e-4 else f"{seconds * 1e3:.2f} ms"


def cell(case: Case | None) -> str:
    if not case:
        return "–"
    moved, flops = case.facts()
    time = max(moved / COPY, flops / MATRIX)
    return f"{amount(moved, 'B')}{', ' + amount(flops, 'F') if flops else ''}: {duration(time)}"


def tables() -> str:
    lines = ["| file | what | bound by |", "| --- | --- | --- |"]
    lines += [f"| {file} | {what} | {bound} |" for file, what, bound, _ in KERNELS]
    for name, c in MODELS.items():
        lines += ["", f"{name}, a layer, bf16:", "", "| kernel | 1 row | 128 rows | 4,096 rows |", "| --- | --- | --- | --- |"]
        for file, what, _, case in KERNELS:
            if case:
                kernel = next(made for made in (case(c, n) for n in (1, 128, 4096)) if made).kernel
                lines.append(f"| {kernel} | " + " | ".join(cell(case(c, n) or None) for n in (1, 128, 4096)) + " |")
        lines += ["", "| whole model | bytes, FLOPs: time | tokens in a second |", "| --- | --- | --- |"]
        for batch in (1, 8, 32, 128):
            moved, flops = model_step(c, batch, 4096)
            time = max(moved / COPY, flops / MATRIX)
            lines.append(f"| decode, {batch} at 4,096 tokens | {amount(moved, 'B')}, {amount(flops, 'F')}: {duration(time)} | {batch / time:,.0f} |")
        moved, flops = model_prefill(c, 2048)
        time = max(moved / COPY, flops / MATRIX)
        lines.append(f"| prompt of 2,048 | {amount(moved, 'B')}, {amount(flops, 'F')}: {duration(time)} | {2048 / time:,.0f} |")
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- made by tests/gpu/roofline.py -->\n\n", "\n<!-- end -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    args = parser.parse_args()
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    made = before + BEGIN + tables() + END + rest.partition(END)[2]
    there = {f.strip() for file, *_ in KERNELS for f in file.split(",")}
    missing = sorted({p.name for p in (README.parents[2] / "kernels" / "cuda").glob("*.cu") if not p.name.endswith("_sm90.cu")} - there)
    if missing:
        print(f"KERNELS lacks {', '.join(missing)}")
    if made != text and args.update:
        README.write_text(made)
    elif made != text:
        print(f"{README} is not what tests/gpu/roofline.py makes: run it with --update")
    return 1 if missing or (made != text and not args.update) else 0


if __name__ == "__main__":
    sys.exit(main())
