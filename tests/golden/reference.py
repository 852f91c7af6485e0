"""DeepSeek-V2 in float64 NumPy, written from the published formulas and nothing else.

    model = Model.load("spec-a")
    logits = model.forward([1, 5, 9, 3, 7])                  # [tokens, vocab], every position

It is the oracle of the golden tests: slow, plain and short. Attention exists twice, expanded (per-head keys and values)
and absorbed (one shared latent key), as a check on each other. A `Rules` object makes the model wrong on purpose, in the
ways in which other engines are or were wrong.
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
Config = dict[str, Any]

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1"}


def e4m3(code: int) -> float:
    """1 sign, 4 exponent bits with bias 7, 3 of mantissa; no infinities, one NaN."""
    e, m = code >> 3 & 15, code & 7
    value = math.nan if code & 127 == 127 else (8 + m) * 2.0 ** (e - 10) if e else m * 2.0**-9
    return -value if code & 128 else value


E4M3 = np.array([e4m3(code) for code in range(256)])


# Checkpoints ----------------------------------------------------------------------------------------------------------

def read_safetensors(path: Path) -> dict[str, Array]:
    raw = path.read_bytes()
    head = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + head])
    header.pop("__metadata__", None)
    tensors = {}
    for name, t in header.items():
        begin, end = t["data_offsets"]
        bits = np.frombuffer(raw[8 + head + begin : 8 + head + end], DTYPES[t["dtype"]]).reshape(t["shape"])
        if t["dtype"] == "BF16":
            bits = (bits.astype(np.uint32) << 16).view(np.float32)
        elif t["dtype"] == "F8_E4M3":
            bits = E4M3[bits]
        tensors[name] = bits.astype(np.float64)
    return tensors


def read_checkpoint(folder: Path) -> tuple[Config, dict[str, Array]]:
    config = json.loads((folder / "config.json").read_text())
    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    tensors: dict[str, Array] = {}
    for name in files:
        tensors |= read_safetensors(folder / name)
    return config, tensors


def rope_config(config: Config) -> tuple[float, Config | None]:
    """(theta, YaRN settings or None) from either spelling: rope_theta + rope_scaling, or v5's rope_parameters."""
    rope = config.get("rope_parameters")
    if rope is not None:
        return rope["rope_theta"], None if rope["rope_type"] == "default" else rope
    return config.get("rope_theta", 10000.0), config.get("rope_scaling")


def unfuse_experts(tensors: dict[str, Array]) -> dict[str, Array]:
    """[experts, 2I, h] gate_up_proj and [experts, h, I] down_proj, as Transformers v5 keeps them, to one tensor each."""
    out = {}
    for name, t in tensors.items():
        if name.endswith("experts.gate_up_proj"):
            for e, w in enumerate(t):
                stem = name.removesuffix("gate_up_proj") + str(e)
                out[f"{stem}.gate_proj.weight"], out[f"{stem}.up_proj.weight"] = np.split(w, 2)
        elif name.endswith("experts.down_proj"):
            out |= {name.removesuffix("down_proj") + f"{e}.down_proj.weight": w for e, w in enumerate(t)}
        else:
            out[name] = t
    return out


def dequantize(config: Config, tensors: dict[str, Array]) -> dict[str, Array]:
    """X.weight times its scale: one for all, one per row, or one per block. Scales of activations are left out."""
    quantization = config.get("quantization_config") or {}
    out = {}
    for name, t in tensors.items():
        if name.endswith("_scale") or name.endswith("_scale_inv"):
            continue
        scale = tensors.get(name + "_scale", tensors.get(name + "_scale_inv"))
        if scale is not None and scale.ndim == 2:
            rows, cols = quantization.get("weight_block_size") or (1, t.shape[1])
            scale = scale[np.ix_(np.arange(t.shape[0]) // rows, np.arange(t.shape[1]) // cols)]
        out[name] = t if scale is None else t * scale
    return out


# Pieces ---------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Rules:
    """How to route and scale. The defaults are the model; everything else is some engine's mistake."""
    routing: str = "model"          # plain: no groups; per-group: topk_group experts in every group; top2-sum: V3's score
    factor_power: int = 1           # 0: routed_scaling_factor skipped; 2: applied twice
    normalize: bool = False         # top-k weights divided by their sum, although norm_topk_prob is false
    mscale_in_softmax: bool = True  # False: softmax scale without the square of mscale
    inner_eps: float = 1e-6         # anything else: q_a_layernorm and kv_a_layernorm with rms_norm_eps, say
    last_wins: tuple[str, ...] = () # among "groups", "experts": ties go to the highest index


def g(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def inverse_frequencies(config: Config) -> tuple[Array, float]:
    """(f_i, multiplier of cos and sin)."""
    theta, yarn = rope_config(config)
    d = config["qk_rope_head_dim"]
    i = np.arange(d // 2)
    plain = theta ** (-2.0 * i / d)
    if yarn is None:
        return plain, 1.0
    factor, original = yarn["factor"], yarn["original_max_position_embeddings"]

    def corr(rotations: float) -> float:
        return d * math.log(original / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low = max(math.floor(corr(yarn["beta_fast"])), 0)
    high = min(math.ceil(corr(yarn["beta_slow"])), d - 1)
    ramp = np.clip((i - low) / ((high - low) or 0.001), 0, 1)
    return plain / factor * ramp + plain * (1 - ramp), g(factor, yarn["mscale"]) / g(factor, yarn["mscale_all_dim"])


def softmax_scale(config: Config, rules: Rules = Rules()) -> float:
    _, yarn = rope_config(config)
    scale = (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
    if yarn is not None and yarn["mscale_all_dim"] and rules.mscale_in_softmax:
        scale *= g(yarn["factor"], yarn["mscale_all_dim"]) ** 2
    return scale


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return weight * (x / np.sqrt((x * x).mean(-1, keepdims=True) + eps))


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Pairs are neighbours: (x0, x1), (x2, x3), … x: [tokens, …, d]; cos, sin: [tokens, d/2]."""
    shape = (len(x),) + (1,) * (x.ndim - 2) + (-1,)
    cos, sin, a, b = cos.reshape(shape), sin.reshape(shape), x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def best(scores: Array, k: int, last_wins: bool = False) -> Array:
    """Indices of the k largest, best first; among equals the lowest index first."""
    if last_wins:
        return len(scores) - 1 - np.argsort(-scores[::-1], kind="stable")[:k]
    return np.argsort(-scores, kind="stable")[:k]


def choose_experts(p: Array, config: Config, rules: Rules) -> Array:
    """Ids of the chosen experts for one token, best first, from the probabilities of all experts."""
    k, last_wins = config["num_experts_per_tok"], "experts" in rules.last_wins
    if config.get("topk_method", "greedy") == "greedy" or rules.routing == "plain":
        return best(p, k, last_wins)
    by_group = p.reshape(config["n_group"], -1)
    allowed = np.zeros_like(by_group, bool)
    if rules.routing == "per-group":
        for row, keep in zip(by_group, allowed):
            keep[best(row, config["topk_group"], last_wins)] = True
    else:
        score = np.sort(by_group, 1)[:, -2:].sum(1) if rules.routing == "top2-sum" else by_group.max(1)
        allowed[best(score, config["topk_group"], "groups" in rules.last_wins)] = True
    return best(np.where(allowed.ravel(), p, -1.0), k, last_wins)


def routing_margin(p: Array, config: Config) -> float:
    """Smallest ratio of probabilities, as a logarithm, that decides a choice: last chosen group or expert to first dropped."""
    def gap(scores: Array, k: int) -> float:
        s = np.sort(scores)[::-1]
        return math.inf if k >= len(s) or s[k] <= 0 else math.log(s[k - 1] / s[k])

    k = config["num_experts_per_tok"]
    if config["topk_method"] == "greedy":
        return gap(p, k)
    by_group = p.reshape(config["n_group"], -1)
    kept = best(by_group.max(1), config["topk_group"])
    return min(gap(by_group.max(1), config["topk_group"]), gap(by_group[kept].ravel(), k))


def is_moe(config: Config, layer: int) -> bool:
    late = layer >= config["first_k_dense_replace"] and layer % config.get("moe_layer_freq", 1) == 0
    return late and bool(config.get("n_routed_experts"))


# Model ----------------------------------------------------------------------------------------------------------------

@dataclass
class Trace:
    """What happened inside: per layer, all positions. routes[layer] = (expert ids, weights), each [tokens, k]."""
    c: list[Array] = field(default_factory=list)                # normalized latent           [tokens, kv_lora]
    kr: list[Array] = field(default_factory=list)               # roped shared key            [tokens, rope]
    probabilities: list[Array] = field(default_factory=list)    # attention                   [heads, tokens, tokens]
    after_attention: list[Array] = field(default_factory=list)  # residual stream             [tokens, hidden]
    after_layer: list[Array] = field(default_factory=list)      # residual stream             [tokens, hidden]
    routes: dict[int, tuple[Array, Array]] = field(default_factory=dict)
    router: dict[int, Array] = field(default_factory=dict)      # probabilities of experts    [tokens, experts]
    margin: dict[int, Array] = field(default_factory=dict)      # routing_margin              [tokens]


@dataclass
class Model:
    config: Config
    tensors: dict[str, Array]
    rules: Rules = Rules()
    absorbed: bool = False

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> Model:
        config, tensors = read_checkpoint(Path(folder))
        return cls(config, unfuse_experts(dequantize(config, tensors)), **options)

    def forward(self, ids: list[int], trace: Trace | None = None) -> Array:
        trace = trace or Trace()
        eps = self.config["rms_norm_eps"]
        f, multiplier = inverse_frequencies(self.config)
        angles = np.outer(np.arange(len(ids)), f)
        cos, sin = np.cos(angles) * multiplier, np.sin(angles) * multiplier

        x = self.tensors["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            stem = f"model.layers.{layer}."
            u = rms_norm(x, self.tensors[stem + "input_layernorm.weight"], eps)
            x = x + self.attention(stem + "self_attn.", u, cos, sin, trace)
            trace.after_attention.append(x)
            u = rms_norm(x, self.tensors[stem + "post_attention_layernorm.weight"], eps)
            x = x + (self.moe(layer, u, trace) if is_moe(self.config, layer) else self.mlp(stem + "mlp.", u))
            trace.after_layer.append(x)
        return rms_norm(x, self.tensors["model.norm.weight"], eps) @ self.tensors["lm_head.weight"].T

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.tensors[name + ".weight"].T

    def mlp(self, stem: str, x: Array) -> Array:
        gate = self.linear(stem + "gate_proj", x)
        return self.linear(stem + "down_proj", gate / (1 + np.exp(-gate)) * self.linear(stem + "up_proj", x))

    def attention(self, stem: str, u: Array, cos: Array, sin: Array, trace: Trace) -> Array:
        cfg, tokens = self.config, len(u)
        heads, nope, latent = cfg["num_attention_heads"], cfg["qk_nope_head_dim"], cfg["kv_lora_rank"]
        if cfg["q_lora_rank"] is None:
            q = self.linear(stem + "q_proj", u)
        else:   # both inner norms have a fixed eps: the published code does not pass rms_norm_eps on
            q = rms_norm(self.linear(stem + "q_a_proj", u), self.tensors[stem + "q_a_layernorm.weight"], self.rules.inner_eps)
            q = self.linear(stem + "q_b_proj", q)
        q = q.reshape(tokens, heads, -1)
        qn, qr = q[..., :nope], rope(q[..., nope:], cos, sin)

        z = self.linear(stem + "kv_a_proj_with_mqa", u)
        c = rms_norm(z[:, :latent], self.tensors[stem + "kv_a_layernorm.weight"], self.rules.inner_eps)
        kr = rope(z[:, latent:], cos, sin)
        kv_b = self.tensors[stem + "kv_b_proj.weight"].reshape(heads, -1, latent)
        uk, uv = kv_b[:, :nope], kv_b[:, nope:]

        if self.absorbed:
            qa = np.einsum("thn,hnl->htl", qn, uk)
            scores = np.concatenate([qa, qr.swapaxes(0, 1)], -1) @ np.concatenate([c, kr], -1).T
        else:
            k = np.concatenate([np.einsum("sl,hnl->hsn", c, uk), np.broadcast_to(kr, (heads, *kr.shape))], -1)
            v = np.einsum("sl,hvl->hsv", c, uv)
            scores = np.concatenate([qn, qr], -1).swapaxes(0, 1) @ k.swapaxes(1, 2)
        scores = np.where(np.tri(tokens, dtype=bool), scores * softmax_scale(cfg, self.rules), -np.inf)
        p = softmax(scores)
        o = np.einsum("htl,hvl->htv", p @ c, uv) if self.absorbed else p @ v

        trace.c.append(c)
        trace.kr.append(kr)
        trace.probabilities.append(p)
        return self.linear(stem + "o_proj", o.swapaxes(0, 1).reshape(tokens, -1))

    def moe(self, layer: int, x: Array, trace: Trace) -> Array:
        cfg, rules, stem = self.config, self.rules, f"model.layers.{layer}.mlp."
        gate = self.tensors[stem + "gate.weight"]
        # One sum per expert, in the same order for each: equal rows must give equal bits, which a matrix product need not.
        p = softmax(np.stack([(gate * row).sum(1) for row in x]))
        ids = np.stack([choose_experts(row, cfg, rules) for row in p])
        w = np.take_along_axis(p, ids, 1)
        if rules.normalize or (cfg.get("norm_topk_prob") and cfg["num_experts_per_tok"] > 1):
            w = w / (w.sum(1, keepdims=True) + 1e-20)
        if rules.normalize or not cfg.get("norm_topk_prob"):
            w = w * cfg["routed_scaling_factor"] ** rules.factor_power
        trace.routes[layer], trace.router[layer] = (ids, w), p
        trace.margin[layer] = np.array([routing_margin(row, cfg) for row in p])

        y = self.mlp(stem + "shared_experts.", x) if cfg.get("n_shared_experts") else np.zeros_like(x)
        for expert in np.unique(ids):
            token, slot = np.nonzero(ids == expert)
            y[token] += w[token, slot, None] * self.mlp(f"{stem}experts.{expert}.", x[token])
        return y
