"""Makes the checkpoints of this folder and what they must compute. README.md describes the result.

    python make_golden.py [name ...]        # all by default; needs torch, transformers, safetensors

Expected logits come from reference.py in float64, on the weights as stored. Hugging Face Transformers runs on the same
files, so that two independent implementations agree before anything is written, and so that a test of a 16-bit checkpoint
can ask for an error no larger than its.
"""
from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import DeepseekV2ForCausalLM
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as modeling

from check_reference import IDS, LOGITS, YARN, spec_config, spec_tensors
from fixtures import V2, YARN_32, Expected, choose_ids, greedy, positions_of, random_tensors
from reference import Array, Config, Model, Rules, Trace, softmax_scale

HERE = Path(__file__).parent
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}

LITE: Config = V2 | {
    "q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
    "n_routed_experts": 16, "moe_intermediate_size": 12, "vocab_size": 128,
}
PRODUCTION: Config = V2 | {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "q_lora_rank": 32, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 16,
    "rope_scaling": YARN, "max_position_embeddings": 163840,
}
TIES: Config = V2 | {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 32, "moe_intermediate_size": 4,
    "n_routed_experts": 24, "n_group": 6, "topk_group": 2, "num_experts_per_tok": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "routed_scaling_factor": 4.0, "kv_lora_rank": 32,
}
# Legal, in no release, and beyond Transformers, which knows neither norm_topk_prob nor moe_layer_freq.
RARE: Config = TIES | {
    "num_hidden_layers": 5, "moe_layer_freq": 2, "first_k_dense_replace": 1, "n_shared_experts": None, "norm_topk_prob": True,
    "rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 24, "beta_fast": 16, "beta_slow": 2,
                     "mscale": 1.0, "mscale_all_dim": 0.5}, "rope_theta": 5000.0, "max_position_embeddings": 192,
}
# YaRN over 4,096 as in the releases, and a sequence past that.
LONG: Config = LITE | {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 1,
    "num_key_value_heads": 1, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "rope_scaling": YARN, "max_position_embeddings": 163840,
}
WRONG: dict[str, Rules] = {
    "plain_top_k": Rules(routing="plain"),
    "topk_group_experts_of_every_group": Rules(routing="per-group"),
    "group_score_sum_of_top_two": Rules(routing="top2-sum"),
    "routed_scaling_factor_skipped": Rules(factor_power=0),
    "routed_scaling_factor_twice": Rules(factor_power=2),
    "top_k_normalized": Rules(normalize=True),
    "softmax_scale_without_mscale": Rules(mscale_in_softmax=False),
}
WRONG_TIES: dict[str, Rules] = {
    "tied_groups_to_the_highest_index": Rules(last_wins=("groups",)),
    "tied_experts_to_the_highest_index": Rules(last_wins=("experts",)),
    "ties_to_the_highest_index": Rules(last_wins=("groups", "experts")),
}


@dataclass(frozen=True)
class Fixture:
    config: Config
    dtype: str = "float32"
    tokens: int = 80
    seed: int = 1
    hf: bool = True                 # Transformers computes the same
    margin: float = 0.08            # log of the smallest ratio of probabilities that may decide a route
    shards: int = 1
    wrong: Mapping[str, Rules] = field(default_factory=dict)
    generation_config: bool = False
    resave: str = ""                # through Transformers' save_pretrained, expert tensors "separate" or "fused"


FIXTURES: dict[str, Fixture] = {
    "spec-a": Fixture(spec_config("a")), "spec-b": Fixture(spec_config("b")), "spec-c": Fixture(spec_config("c")),
    "v2": Fixture(V2, tokens=150, wrong=WRONG, generation_config=True),
    "v2-bf16": Fixture(V2, "bfloat16", tokens=150, margin=0.2),
    "v5": Fixture(V2, tokens=150, resave="separate"),
    "v5-fused-bf16": Fixture(V2 | {"num_hidden_layers": 2}, "bfloat16", margin=0.2, seed=7, resave="fused"),
    "v25": Fixture(V2 | {"num_hidden_layers": 2, "rope_scaling": YARN_32 | {"mscale": 1.0, "mscale_all_dim": 1.0},
                         "rms_norm_eps": 0.02}, seed=2, wrong={"inner_norms_with_rms_norm_eps": Rules(inner_eps=0.02)}),
    "lite": Fixture(LITE, seed=3, shards=3, generation_config=True),
    "lite-bf16": Fixture(LITE, "bfloat16", seed=3, margin=0.2),
    "lite-f16": Fixture(LITE, "float16", seed=3),
    "null-rope": Fixture(LITE | {"num_hidden_layers": 2, "rope_scaling": None, "max_position_embeddings": 4096,
                                "rms_norm_eps": 0.02}, seed=4, wrong={"inner_norms_with_rms_norm_eps": Rules(inner_eps=0.02)}),
    "production-heads": Fixture(PRODUCTION, "bfloat16", tokens=140, seed=5, margin=0.2),
    "long": Fixture(LONG, tokens=4300, seed=9, margin=0.01),
    "ties": Fixture(TIES, tokens=70, seed=6, wrong=WRONG_TIES),
    "rare": Fixture(RARE, tokens=70, seed=8, hf=False),
}


# Weights --------------------------------------------------------------------------------------------------------------

def tie_routers(config: Config, tensors: dict[str, Array]) -> None:
    """Layer 1: six groups with the same four rows, turned by one from group to group. Layer 2: even groups share four
    rows, odd groups share others. Layer 3: all experts equal. So equal scores stand at the border of every choice."""
    groups, h = config["n_group"], config["hidden_size"]
    rows = [tensors[f"model.layers.{i}.mlp.gate.weight"].reshape(groups, -1, h) for i in (1, 2, 3)]
    rows[0][:] = [np.roll(rows[0][0], g, 0) for g in range(groups)]
    rows[1][0::2], rows[1][1::2] = rows[1][0].copy(), rows[1][1].copy()
    rows[2][:] = rows[2][0, 0]


def write_checkpoint(folder: Path, fixture: Fixture, tensors: dict[str, Array]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = fixture.config | {"torch_dtype": fixture.dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    stored = {name: torch.tensor(t).to(TORCH[fixture.dtype]) for name, t in tensors.items()}
    names = list(stored)
    if fixture.shards == 1:
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
    else:   # five digits, then six, as in the releases
        files = [f"model-{i + 1:05d}-of-{fixture.shards:06d}.safetensors" for i in range(fixture.shards)]
        where = {name: files[i * fixture.shards // len(names)] for i, name in enumerate(names)}
        for file in files:
            save_file({n: stored[n] for n in names if where[n] == file}, folder / file, {"format": "pt"})
        total = sum(t.numel() * t.element_size() for t in stored.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    if fixture.generation_config:
        generation = {"_from_model_config": True, "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"],
                      "do_sample": True, "temperature": 0.3, "top_p": 0.95, "transformers_version": "4.39.3"}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


# Inputs ---------------------------------------------------------------------------------------------------------------

def tie_margin(p: Array) -> Array:
    """Per token, the smallest log ratio of two different probabilities."""
    gaps = np.diff(np.sort(np.log(p), 1), axis=1)
    return np.where(gaps == 0, np.inf, gaps).min(1)


# Hugging Face Transformers --------------------------------------------------------------------------------------------

def rope_on_copies(q: torch.Tensor, k: torch.Tensor, cis: torch.Tensor, rope: Any = modeling.apply_rotary_emb) -> Any:
    """Transformers views a slice of kv_a_proj's fp32 output as complex numbers, which fails if kv_lora_rank is odd."""
    return rope(q.contiguous(), k.contiguous(), cis)


modeling.apply_rotary_emb = rope_on_copies


def load_hf(folder: Path, dtype: str) -> tuple[DeepseekV2ForCausalLM, float]:
    """The model, and the softmax scale it came with. Releases before transformers#47435 lack mscale in it: repaired."""
    model = DeepseekV2ForCausalLM.from_pretrained(
        folder, dtype=TORCH[dtype], attn_implementation="eager", experts_implementation="eager").eval()
    printed = float(model.model.layers[0].self_attn.scaling)
    scale = softmax_scale(json.loads((folder / "config.json").read_text()))
    for layer in model.model.layers:
        layer.self_attn.scaling = scale
    return model, printed


def run_hf(model: DeepseekV2ForCausalLM, ids: list[int]) -> tuple[Array, dict[int, Array]]:
    routes: dict[int, Array] = {}
    hooks = []
    for i, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "gate"):
            hooks.append(layer.mlp.gate.register_forward_hook(lambda m, a, out, i=i: routes.update({i: out[2].numpy()})))
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].double().numpy()
    for hook in hooks:
        hook.remove()
    return logits, routes


def relative_error(x: Array, reference: Array) -> float:
    return float(np.abs(x - reference).max() / np.abs(reference).max())


def log_softmax(x: Array) -> Array:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def mean_kl(x: Array, reference: Array) -> float:
    a, b = log_softmax(reference), log_softmax(x)
    return float((np.exp(a) * (a - b)).sum(-1).mean())


# Expectations ---------------------------------------------------------------------------------------------------------

def make(name: str, fixture: Fixture) -> None:
    folder, spec = HERE / name, name.startswith("spec-")
    tensors = spec_tensors(fixture.config) if spec else random_tensors(fixture.config, fixture.seed)
    if name == "ties":
        tie_routers(fixture.config, tensors)
    write_checkpoint(folder, fixture, tensors)
    if fixture.resave:
        hf, _ = load_hf(folder, fixture.dtype)
        shutil.rmtree(folder)
        hf.save_pretrained(folder, save_original_format=fixture.resave == "separate")

    model = Model.load(folder)
    ids = IDS if spec else choose_ids(model, fixture.tokens, fixture.seed, fixture.margin) if name != "ties" else choose_tied_ids(model, fixture)
    positions = list(range(len(ids))) if spec else positions_of(len(ids))
    trace = Trace()
    full = model.forward(ids, trace)
    logits = full[positions]
    absorbed = Model.load(folder, absorbed=True).forward(ids)
    assert np.abs(absorbed - full).max() < 1e-11

    e = Expected()
    e.facts |= {"checkpoint_dtype": SHORT[fixture.dtype], "vocab_size": full.shape[1], "softmax_scale": softmax_scale(model.config),
                "ids": ids, "positions": positions}
    e.facts["smallest_routing_margin"] = 0.0 if name == "ties" else float(min(m.min() for m in trace.margin.values()))
    e.add("logits", logits)
    e.add("routes", np.stack([i[positions] for i, _ in trace.routes.values()]), "i32")
    e.add("route_weights", np.stack([w[positions] for _, w in trace.routes.values()]))
    e.add("after_layer", np.stack([x[positions] for x in trace.after_layer]))
    if spec:
        e.add("c", np.stack(trace.c))
        e.add("kr", np.stack(trace.kr))
        e.add("probabilities", np.stack(trace.probabilities))
        e.add("after_attention", np.stack(trace.after_attention))
        printed = LOGITS[name[-1]]
        e.facts["published_positions"] = list(printed)
        e.add("published_logits", np.array([row.split() for row in printed.values()], float))
        e.facts["published_error"] = float(np.abs(full[list(printed)] - np.array([r.split() for r in printed.values()], float)).max())
        assert e.facts["published_error"] < 5e-6
    elif fixture.dtype == "float32" and name != "ties":
        e.facts["greedy_ids"], e.facts["greedy_smallest_lead"] = greedy(model, ids, 16)

    report = [f"{name}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e3:.0f} kB, margin {e.facts['smallest_routing_margin']:.3g},"
              f" logits ±{np.abs(logits).max():.1f} std {logits.std():.2f}"]
    for dtype in dict.fromkeys(("float32", fixture.dtype)) if fixture.hf else ():
        hf, printed_scale = load_hf(folder, dtype)
        got, routes = run_hf(hf, ids)
        flips = sum(int((np.sort(routes[i], 1) != np.sort(r, 1)).any(1).sum()) for i, (r, _) in trace.routes.items())
        error, kl, s = relative_error(got[positions], logits), mean_kl(got[positions], logits), SHORT[dtype]
        e.facts |= {f"hf_{s}_max_relative_error": error, f"hf_{s}_mean_kl": kl, f"hf_{s}_routes_that_differ": flips}
        e.add(f"hf_{s}_logits", got[positions], "f32")
        e.facts["hf_softmax_scale_as_loaded"] = printed_scale
        report.append(f"HF {s}: error {error:.2e} KL {kl:.2e} flips {flips} scaling {printed_scale:.10f}")
        assert name == "ties" or dtype != "float32" or error < 1e-4, report
        assert name == "ties" or flips == 0, report
    for wrong, rules in fixture.wrong.items():
        other = Model.load(folder, rules=rules).forward(ids)[positions]
        distance = relative_error(other, logits)
        far = float(np.mean(np.abs(other - logits).max(1) > 0.01 * np.abs(logits).max()))
        e.add(f"wrong_{wrong}", other)
        e.facts.setdefault("wrong", {})[wrong] = {"max_relative_distance": distance, "share_of_positions_off_by_1_percent": far}
        report.append(f"wrong {wrong}: distance {distance:.2g}, {far:.0%} of positions")
        assert distance > 1e-3, report
    e.write(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    print("\n  ".join(report), flush=True)


def choose_tied_ids(model: Model, fixture: Fixture) -> list[int]:
    """As choose_ids, but two probabilities must be either equal or clearly apart."""
    rng = np.random.default_rng(fixture.seed + 1000)
    ids = rng.integers(2, model.config["vocab_size"], fixture.tokens).tolist()
    while True:
        trace = Trace()
        model.forward(ids, trace)
        close = np.flatnonzero(np.min([tie_margin(p) for p in trace.router.values()], 0) < 0.01)
        if not close.size:
            return ids
        ids[close[0]] = int(rng.integers(2, model.config["vocab_size"]))


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, numpy {np.__version__}")
    for name in sys.argv[1:] or FIXTURES:
        make(name, FIXTURES[name])


if __name__ == "__main__":
    main()
