"""DeepSeek-V2 in plain PyTorch, written for training on a CPU.

One module per kind of layer, expanded (naive) attention, and experts computed
by sorting the tokens: all that an optimizer needs and nothing that inference
would (no cache).  Parameters carry the names of the Hugging Face checkpoint,
except that the experts of a layer are stacked; `export_state` and
`import_state` unstack and stack them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Config:
    """The quantities of config.json under their own names."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 768
    moe_intermediate_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    n_shared_experts: int = 2
    n_routed_experts: int = 16
    ep_size: int = 1
    routed_scaling_factor: float = 4.0
    kv_lora_rank: int = 512
    q_lora_rank: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    qk_nope_head_dim: int = 128
    topk_method: str = "group_limited_greedy"
    n_group: int = 4
    topk_group: int = 2
    num_experts_per_tok: int = 4
    moe_layer_freq: int = 1
    first_k_dense_replace: int = 1
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"
    aux_loss_alpha: float = 0.01
    seq_aux: bool = True
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000
    rope_scaling: dict[str, Any] = field(
        default_factory=lambda: {
            "type": "yarn",
            "factor": 8,
            "original_max_position_embeddings": 256,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
        }
    )
    bos_token_id: int = 0
    eos_token_id: int = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "architectures": ["DeepseekV2ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "model_type": "deepseek_v2",
            "pretraining_tp": 1,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.39.3",
            "use_cache": True,
            **asdict(self),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Config":
        return cls(**{k: v for k, v in data.items() if k in cls.__dataclass_fields__})


def yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(c: Config) -> float:
    """The YaRN temperature sits here; mscale = mscale_all_dim leaves cos and sin alone."""
    g = yarn_mscale(c.rope_scaling["factor"], c.rope_scaling["mscale_all_dim"])
    return (c.qk_nope_head_dim + c.qk_rope_head_dim) ** -0.5 * g * g


def rope_table(c: Config, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin, [length, qk_rope_head_dim / 2], with static YaRN frequencies."""
    s, d, base = c.rope_scaling, c.qk_rope_head_dim, c.rope_theta
    assert s["mscale"] == s["mscale_all_dim"]

    def corr(r: float) -> float:
        return d * math.log(s["original_max_position_embeddings"] / (2 * math.pi * r)) / (2 * math.log(base))

    low = max(math.floor(corr(s["beta_fast"])), 0)
    high = min(math.ceil(corr(s["beta_slow"])), d - 1)
    i = torch.arange(d // 2, dtype=torch.float64)
    ramp = ((i - low) / max(high - low, 0.001)).clamp(0, 1)
    e = base ** (-2 * i / d)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), e / s["factor"] * ramp + e * (1 - ramp))
    return angle.cos().float(), angle.sin().float()


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the interleaved pairs of x [B, T, H, d]; the result lists first all
    first members, then all second ones.  Queries and keys are permuted alike, so
    that no product changes."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[: x.shape[1], None].to(x.dtype), sin[: x.shape[1], None].to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def linear(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, n: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.float()
        return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(dtype)


class Matrix(nn.Module):
    """A weight [out, in] without bias: nn.Linear's name and shape, cast at use."""

    def __init__(self, n_out: int, n_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) * n_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        h, heads, qk = c.hidden_size, c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim
        self.c, self.scaling = c, softmax_scale(c)
        self.q_a_proj = Matrix(c.q_lora_rank, h)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank)
        self.q_b_proj = Matrix(heads * qk, c.q_lora_rank)
        self.kv_a_proj_with_mqa = Matrix(c.kv_lora_rank + c.qk_rope_head_dim, h)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank)
        self.kv_b_proj = Matrix(heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank)
        self.o_proj = Matrix(h, heads * c.v_head_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c, (b, t, _), h = self.c, x.shape, self.c.num_attention_heads
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x), x.dtype)).view(b, t, h, -1)
        qn, qr = q.split((c.qk_nope_head_dim, c.qk_rope_head_dim), -1)
        z, kr = self.kv_a_proj_with_mqa(x).split((c.kv_lora_rank, c.qk_rope_head_dim), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(z, x.dtype)).view(b, t, h, -1)
        kn, v = kv.split((c.qk_nope_head_dim, c.v_head_dim), -1)
        kr = rope(kr[:, :, None], cos, sin).expand(b, t, h, -1)
        q = torch.cat((qn, rope(qr, cos, sin)), -1).transpose(1, 2)
        k = torch.cat((kn, kr), -1).transpose(1, 2)
        o = attend(q, k, v.transpose(1, 2), self.scaling)
        return self.o_proj(o.transpose(1, 2).reshape(b, t, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, block: int = 256) -> Tensor:
    """Causal attention, a block of queries at a time over the keys that it sees.
    Twice as fast on a CPU as the fused kernel, which wants v as wide as q."""
    q, out = q * scale, []
    for start in range(0, q.shape[2], block):
        end = min(start + block, q.shape[2])
        score = q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2)
        hidden = torch.ones(end - start, end, dtype=torch.bool).triu_(start + 1)
        out.append(score.masked_fill_(hidden, float("-inf")).softmax(-1) @ v[:, :, :end])
    return torch.cat(out, 2) if len(out) > 1 else out[0]


class MLP(nn.Module):
    def __init__(self, h: int, n: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = Matrix(n, h), Matrix(n, h), Matrix(h, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        n, h, i = c.n_routed_experts, c.hidden_size, c.moe_intermediate_size
        self.c = c
        self.gate = Matrix(n, h)
        # Stacked by expert: gate rows, then up rows; and the down projections.
        self.experts_gate_up = nn.Parameter(torch.randn(n, 2 * i, h) * h**-0.5)
        self.experts_down = nn.Parameter(torch.randn(n, h, i) * i**-0.5)
        self.shared_experts = MLP(h, i * c.n_shared_experts)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Softmax over all experts in fp32, then the best experts of the best groups."""
        c = self.c
        p = F.linear(x.float(), self.gate.weight).softmax(-1)
        best = p.detach().unflatten(-1, (c.n_group, -1))
        keep = best.amax(-1).topk(c.topk_group, -1).indices
        mask = torch.ones(best.shape[:-1], dtype=torch.bool).scatter_(-1, keep, False)
        idx = best.masked_fill(mask[..., None], -1.0).flatten(-2).topk(c.num_experts_per_tok, -1).indices
        return p, idx, p.gather(-1, idx) * c.routed_scaling_factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output, load-balance loss, and the number of tokens sent to each expert."""
        c, shape = self.c, x.shape
        x = x.flatten(0, -2)
        p, idx, w = self.route(x)
        count = idx.flatten().bincount(minlength=c.n_routed_experts)
        share = count / idx.numel() * c.n_routed_experts
        aux = (share * p.mean(0)).sum()
        order = idx.flatten().argsort(stable=True)
        token = order // c.num_experts_per_tok
        xs = x.index_select(0, token).split(count.tolist())
        gu, down = self.experts_gate_up.to(x.dtype), self.experts_down.to(x.dtype)
        ys = []
        for e, part in enumerate(xs):
            g, u = F.linear(part, gu[e]).chunk(2, -1)
            ys.append(F.linear(F.silu(g) * u, down[e]))
        y = torch.cat(ys).float() * w.flatten()[order, None]
        out = self.shared_experts(x).float().index_add(0, token, y)
        return out.view(shape), aux, count


class Layer(nn.Module):
    def __init__(self, c: Config, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        dense = index < c.first_k_dense_replace
        self.mlp = MLP(c.hidden_size, c.intermediate_size) if dense else MoE(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x, dtype), cos, sin)
        y = self.mlp(self.post_attention_layernorm(x, dtype))
        out, aux, count = y if isinstance(y, tuple) else (y, x.new_zeros(()), torch.zeros(0))
        return x + out, aux, count


class Model(nn.Module):
    """Token ids [B, T] to the hidden state before lm_head; the residual stream is fp32."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embed_tokens = Matrix(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = Matrix(c.vocab_size, c.hidden_size)
        cos, sin = rope_table(c, c.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        with torch.no_grad():
            self.lm_head.weight.mul_(0.5)
            for name, p in self.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight", "experts_down")):
                    p.mul_(0.25 * (2 * c.num_hidden_layers) ** -0.5)

    def forward(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, list[Tensor]]:
        x = F.embedding(ids, self.embed_tokens.weight)
        aux, counts = x.new_zeros(()), []
        for layer in self.layers:
            x, a, n = layer(x, self.cos, self.sin, dtype)
            aux = aux + a
            counts.append(n)
        return self.norm(x, dtype), aux, counts

    def logits(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.lm_head(self.forward(ids, dtype)[0]).float()


@torch.no_grad()
def plant_induction(m: Model, width: int = 40, look_back: float = 6.0, match: float = 16.0, pairs: int = 8) -> None:
    """Begin with attention that finds an earlier mention and reads what came after it.

    Looking up "Mira is ..." takes two layers: one that tells each token its predecessors,
    one that finds the place with the same predecessors and copies the token there.  From random
    weights a model of this size needs tens of millions of tokens until that appears, so it is there
    from the start and trained on like all else:

    - heads 0 and 1 of layer 0 look one and two tokens back and write `width` numbers about
      the token there into directions of the residual stream that nothing else uses yet;
    - head 0 of layer 1 looks where two tokens back is what here is one token back,
      head 1 where one token back is the current token;
    - both write the token found there in the code of the output: lm_head begins as the
      embeddings in rotated coordinates.

    `look_back` and `match` are about what the scores of the right place have over others."""
    c, first, second = m.c, m.layers[0].self_attn, m.layers[1].self_attn
    h, nope, v, latents = c.hidden_size, c.qk_nope_head_dim, c.v_head_dim, c.kv_lora_rank

    def unit_rows(n: int, *without: Tensor) -> Tensor:
        """n orthonormal rows [n, hidden_size] orthogonal to the given ones."""
        taken = torch.cat(without) if without else torch.zeros(0, h)
        x = torch.linalg.qr(torch.cat((taken, torch.randn(n, h))).T)[0].T
        return x[len(taken) :]

    # The stream: u is common to all tokens, `one` and `two` are kept free for the predecessors.
    u, one, two = unit_rows(2 * width + 1).split((1, width, width))
    free = torch.cat((one, two))
    e = m.embed_tokens.weight
    e -= e @ free.T @ free + e @ u.T @ u
    e += u * e.norm(dim=1).mean()
    for w in (first.o_proj.weight, m.layers[0].mlp.down_proj.weight):
        w -= free.T @ (free @ w)
    seen = unit_rows(width, u, free)  # what of a token is told
    copied = unit_rows(v, u, free)  # what of a token is copied

    # Layer 0.  From u each head makes a constant query, and all a constant key; the angle
    # between them is such that the product peaks at the head's distance.
    along = (F.rms_norm(e, (h,)) @ u[0]).mean()
    f = torch.atan2(m.sin[1], m.cos[1])[:pairs]  # the angle per position
    size = (look_back / (1 - f.cos()).sum() / first.scaling) ** 0.5
    z, key = first.kv_a_proj_with_mqa.weight.split((latents, c.qk_rope_head_dim))
    key[: 2 * pairs] *= 0.1
    key[0 : 2 * pairs : 2] += size / along * u  # (size, 0) in each pair
    qa, qb = first.q_a_proj.weight, first.q_b_proj.weight.view(c.num_attention_heads, -1, c.q_lora_rank)
    qa[0] = u / 2
    lead = along / 2 / (1 + (along / 2) ** 2 / c.q_lora_rank) ** 0.5  # element 0 after the norm
    qb[:, nope:][:, : 2 * pairs] *= 0.1  # the other heads are not to see that key
    kvb, o = first.kv_b_proj.weight.view(c.num_attention_heads, -1, latents), first.o_proj.weight.view(h, -1, v)
    for head, to in enumerate((one, two)):
        qb[head] *= 0.1
        qb[head, nope : nope + 2 * pairs : 2, 0] = size / lead * (f * (head + 1)).cos()
        qb[head, nope + 1 : nope + 2 * pairs : 2, 0] = -size / lead * (f * (head + 1)).sin()
        kvb[head, nope : nope + width] = seen @ torch.linalg.pinv(z)
        o[:, head, :width] = 0.1 * to.T

    # Layer 1.
    qa, qb = second.q_a_proj.weight, second.q_b_proj.weight.view(c.num_attention_heads, -1, c.q_lora_rank)
    z, kvb = second.kv_a_proj_with_mqa.weight[:latents], second.kv_b_proj.weight.view(c.num_attention_heads, -1, latents)
    o = second.o_proj.weight.view(h, -1, v)
    qa[:width], qa[width : 2 * width] = one, seen
    z[:width], z[width : 2 * width] = one, two
    back = torch.linalg.pinv(z)
    eye, scale = torch.eye(width), (match / width / second.scaling) ** 0.5
    turn = unit_rows(h)
    for head, (q_at, k_at) in enumerate(((0, width), (width, 0))):
        qb[head] *= 0.1
        kvb[head, :nope] *= 0.1
        qb[head, :width, q_at : q_at + width] = scale * eye
        kvb[head, :width, k_at : k_at + width] = scale * eye
        kvb[head, nope:] = copied @ back
        o[:, head] = 0.2 * (copied @ turn).T
    m.lm_head.weight.copy_(0.5 * (e - e @ u.T @ u) @ turn)


def export_state(c: Config, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors in bf16, under the names that the family uses."""
    out: dict[str, Tensor] = {}
    i = c.moe_intermediate_size
    for name, p in state.items():
        p = p.detach().to(torch.bfloat16)
        if name.endswith("experts_gate_up"):
            base = "model." + name.removesuffix("_gate_up")
            for e in range(len(p)):
                out[f"{base}.{e}.gate_proj.weight"] = p[e, :i].clone()
                out[f"{base}.{e}.up_proj.weight"] = p[e, i:].clone()
        elif name.endswith("experts_down"):
            base = "model." + name.removesuffix("_down")
            for e in range(len(p)):
                out[f"{base}.{e}.down_proj.weight"] = p[e].clone()
        else:
            out[name if name.startswith("lm_head") else "model." + name] = p.contiguous()
    return out


def import_state(m: Model, tensors: dict[str, Tensor]) -> None:
    state: dict[str, Tensor] = {}
    n = m.c.n_routed_experts
    for name in m.state_dict():
        base = "model." + name.rsplit("_", 1)[0].removesuffix("_gate")
        if name.endswith("experts_gate_up"):
            rows = [torch.cat([tensors[f"{base}.{e}.{k}_proj.weight"] for k in ("gate", "up")]) for e in range(n)]
            state[name] = torch.stack(rows).float()
        elif name.endswith("experts_down"):
            state[name] = torch.stack([tensors[f"{base}.{e}.down_proj.weight"] for e in range(n)]).float()
        else:
            state[name] = tensors[name if name.startswith("lm_head") else "model." + name].float()
    m.load_state_dict(state)
