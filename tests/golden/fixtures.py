"""What the scripts that make checkpoints share: shapes, random weights, inputs, expected.json. Needs numpy alone."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from check_reference import YARN, spec_config, tensor_shapes
from reference import Array, Config, Model, Trace

# A short original context, so that a short sequence runs past it.
YARN_32 = YARN | {"original_max_position_embeddings": 32}
V2: Config = spec_config("a") | {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 8, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 32, "num_experts_per_tok": 6, "n_group": 8,
    "topk_group": 3, "routed_scaling_factor": 16.0, "rope_scaling": YARN_32, "max_position_embeddings": 1280,
    "bos_token_id": 0, "eos_token_id": 1,
}


def random_tensors(config: Config, seed: int) -> dict[str, Array]:
    """Scaled so that attention is not flat, routed and shared experts weigh alike, and logits have a spread of about 2."""
    gains = {"embed_tokens": 0.0, "q_proj": 1.3, "q_b_proj": 1.3, "mlp.gate": 2.0, "lm_head": 2.0}
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        stem = name.removesuffix(".weight")
        if "norm" in stem:
            tensors[name] = rng.uniform(0.7, 1.3, shape)
            continue
        gain = next((g for end, g in gains.items() if stem.endswith(end)), 1.0)
        if "mlp.experts" in stem and stem.endswith("down_proj"):
            gain = 4.0 / config["routed_scaling_factor"] if config["routed_scaling_factor"] > 1 else 1.5
        tensors[name] = rng.normal(size=shape) * (gain / shape[1] ** 0.5 if gain else 1.0)
    return tensors


def choose_ids(model: Model, tokens: int, seed: int, margin: float) -> list[int]:
    """Random tokens, but none at which a route hangs on less than the margin. The model is causal: replacing the first
    such token leaves everything before it as it was."""
    rng = np.random.default_rng(seed + 1000)
    vocab = model.config["vocab_size"]
    ids = [model.config["bos_token_id"], *rng.integers(2, vocab, tokens - 1).tolist()]
    while True:
        trace = Trace()
        model.forward(ids, trace)
        close = np.flatnonzero(np.min(list(trace.margin.values()), 0) < margin)
        if not close.size:
            return ids
        ids[close[0]] = int(rng.integers(2, vocab))


def positions_of(tokens: int) -> list[int]:
    wanted = {0, 1, 2, 3, 15, 16, 31, 32, 33, 48, 62, 63, 64, 65, 79, 80, 100, 126, 127, 128, 129, 2048, 4031, 4032, 4094, 4095, 4096,
              4097, 4200, tokens - 2, tokens - 1}
    return sorted(p for p in wanted if p < tokens)


def greedy(model: Model, ids: list[int], count: int) -> tuple[list[int], float]:
    """Continuation by the largest logit, and the smallest lead of a chosen token over the next best."""
    out, lead = list(ids), np.inf
    for _ in range(count):
        row = model.forward(out)[-1]
        order = np.argsort(-row, kind="stable")
        lead = min(lead, float(row[order[0]] - row[order[1]]))
        out.append(int(order[0]))
    return out[len(ids):], lead


class Expected:
    """expected.bin: arrays one after another, each at a multiple of 64 bytes; expected.json says where and what."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.arrays: dict[str, Any] = {}
        self.data = bytearray()

    def add(self, name: str, array: Array, dtype: str = "f64") -> None:
        array = np.ascontiguousarray(array, {"f64": "<f8", "f32": "<f4", "i32": "<i4"}[dtype])
        self.data += bytes(-len(self.data) % 64)
        self.arrays[name] = {"dtype": dtype, "shape": list(array.shape), "offset": len(self.data)}
        self.data += array.tobytes()

    def write(self, folder: Path) -> None:
        (folder / "expected.bin").write_bytes(self.data)
        lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in self.facts.items()]
        arrays = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in self.arrays.items()]
        lines.append(' "arrays": {\n' + ",\n".join(arrays) + "\n }")
        (folder / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
