"""Checks reference.py against the published float64 vectors of three tiny models; run it after every change there.

The vectors were made by the published PyTorch code and by an independent absorbed implementation. They carry six decimals.
"""
from __future__ import annotations

import numpy as np

from reference import Config, Model, Trace, inverse_frequencies, is_moe, softmax_scale

IDS = [1, 5, 9, 3, 7]
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
        "mscale": 0.707, "mscale_all_dim": 0.707}


def spec_config(name: str) -> Config:
    """Models A (236B-shaped), B (Lite-shaped) and C (B without YaRN)."""
    a = name == "a"
    return {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 11, "hidden_size": 8,
        "intermediate_size": 10, "moe_intermediate_size": 6, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 2, "q_lora_rank": 7 if a else None, "kv_lora_rank": 5, "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4, "v_head_dim": 3, "n_shared_experts": 2, "n_routed_experts": 8, "num_experts_per_tok": 3,
        "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": False, "scoring_func": "softmax",
        "topk_method": "group_limited_greedy" if a else "greedy", "n_group": 4 if a else 1, "topk_group": 2 if a else 1,
        "routed_scaling_factor": 2.5 if a else 1.0, "rms_norm_eps": 1e-6, "rope_theta": 10000,
        "rope_scaling": None if name == "c" else YARN, "max_position_embeddings": 163840, "hidden_act": "silu",
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 10,
        "tie_word_embeddings": False, "torch_dtype": "float32",
    }


def tensor_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint, in the order in which the published vectors number them."""
    h, heads = c["hidden_size"], c["num_attention_heads"]
    nope, rope, v, latent = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], h)}

    def mlp(stem: str, width: int) -> None:
        shapes.update({f"{stem}.gate_proj.weight": (width, h), f"{stem}.up_proj.weight": (width, h),
                       f"{stem}.down_proj.weight": (h, width)})

    for i in range(c["num_hidden_layers"]):
        stem = f"model.layers.{i}."
        attn = stem + "self_attn."
        shapes[stem + "input_layernorm.weight"] = (h,)
        if c["q_lora_rank"] is None:
            shapes[attn + "q_proj.weight"] = (heads * (nope + rope), h)
        else:
            shapes[attn + "q_a_proj.weight"] = (c["q_lora_rank"], h)
            shapes[attn + "q_a_layernorm.weight"] = (c["q_lora_rank"],)
            shapes[attn + "q_b_proj.weight"] = (heads * (nope + rope), c["q_lora_rank"])
        shapes[attn + "kv_a_proj_with_mqa.weight"] = (latent + rope, h)
        shapes[attn + "kv_a_layernorm.weight"] = (latent,)
        shapes[attn + "kv_b_proj.weight"] = (heads * (nope + v), latent)
        shapes[attn + "o_proj.weight"] = (h, heads * v)
        shapes[stem + "post_attention_layernorm.weight"] = (h,)
        if not is_moe(c, i):
            mlp(stem + "mlp", c["intermediate_size"])
            continue
        shapes[stem + "mlp.gate.weight"] = (c["n_routed_experts"], h)
        for e in range(c["n_routed_experts"]):
            mlp(f"{stem}mlp.experts.{e}", c["moe_intermediate_size"])
        if c["n_shared_experts"]:
            mlp(stem + "mlp.shared_experts", c["n_shared_experts"] * c["moe_intermediate_size"])
    shapes["model.norm.weight"] = (h,)
    shapes["lm_head.weight"] = (c["vocab_size"], h)
    return shapes


def spec_tensors(config: Config) -> dict[str, np.ndarray]:
    """A linear congruential generator per tensor, so that anyone can make the same weights."""
    tensors = {}
    for t, (name, shape) in enumerate(tensor_shapes(config).items()):
        s = 2654435761 * (t + 1) % 2**32
        u = np.empty(int(np.prod(shape)))
        for i in range(u.size):
            s = (1664525 * s + 1013904223) % 2**32
            u[i] = (s >> 8) / 2**24 - 0.5
        value = 1 + 0.5 * u if "norm" in name else 4 * u if name.endswith("mlp.gate.weight") else 2 * u
        tensors[name] = value.reshape(shape)
    return tensors


LOGITS = {   # model: {position: logits}
    "a": {0: "-1.230951 1.517027 2.294879 -1.093149 0.846334 0.685090 -0.016383 2.365495 -0.192736 1.092108 0.060871",
          4: "-0.863384 -1.114729 2.070395 2.624692 -1.568429 -2.201947 3.847562 1.915174 -3.069636 0.678821 0.979434"},
    "b": {0: "-0.815254 -2.066305 -0.670035 0.127801 1.596689 -1.704399 -1.594543 0.504672 1.105807 -1.921629 -0.035089",
          4: "2.323437 0.422204 -0.298111 -1.335855 4.004346 -1.185739 1.272094 2.185839 -0.427918 -1.375359 1.340995"},
    "c": {0: "-0.815254 -2.066305 -0.670035 0.127801 1.596689 -1.704399 -1.594543 0.504672 1.105807 -1.921629 -0.035089",
          4: "2.447212 0.781559 0.211314 -1.164201 4.193466 -0.899183 1.815032 2.033143 -1.109604 -0.874626 1.696888"},
}
ROUTES = {   # model: {(layer, position): (experts, weights)}
    "a": {(1, 0): ("1 7 6", "2.156229 0.191310 0.003927"), (1, 4): ("2 0 3", "2.348157 0.125097 0.000208"),
          (2, 0): ("7 2 3", "2.325773 0.085822 0.033011"), (2, 4): ("2 0 1", "1.371365 0.974491 0.032676")},
    "b": {(1, 0): ("4 5 0", "0.724157 0.108246 0.071505"), (1, 4): ("5 0 4", "0.721979 0.196383 0.059898"),
          (2, 0): ("5 2 6", "0.454482 0.344097 0.186607"), (2, 4): ("6 3 5", "0.840803 0.056134 0.055266")},
    "c": {(1, 4): ("5 0 4", "0.732093 0.173587 0.065864"), (2, 4): ("6 3 5", "0.597661 0.209379 0.094417")},
}
LAYERS = {   # model A, position 4
    "c": ["-1.259227 -0.219614 1.721600 -0.029715 0.330741"],
    "kr": ["1.987443 -1.447195 -3.020889 -0.640873"],
    "after_attention": ["2.962168 0.187866 -2.170624 -1.310204 -2.251763 -1.372534 2.211596 0.701467"],
    "after_layer": ["2.573925 -5.373013 0.115944 -1.069594 -7.944151 -1.641293 5.350569 -1.884243",
                    "-0.668197 2.019782 -1.281571 -3.902521 -10.044026 -3.386668 0.592632 -7.761963",
                    "4.359655 6.071261 6.762533 1.249423 -15.402118 -5.272087 -1.452265 -7.142123"],
}
PROBABILITIES = ["0.577196 0.089900 0.029052 0.299178 0.004675", "0.000062 0.999826 0.000004 0.000002 0.000106"]
RELEASE_F = """1 7.498942093e-1 5.623413252e-1 4.216965034e-1 3.162277660e-1 2.371373706e-1 1.778279410e-1 1.333521432e-1
1e-1 7.498942093e-2 5.623413252e-2 3.900692657e-2 2.687936011e-2 1.837814622e-2 1.244795587e-2 8.334508951e-3
5.5e-3 3.561997494e-3 2.249365301e-3 1.370513636e-3 7.905694150e-4 4.149903985e-4 1.778279410e-4 3.333803580e-5
2.5e-5 1.874735523e-5 1.405853313e-5 1.054241259e-5 7.905694150e-6 5.928434264e-6 4.445698525e-6 3.333803580e-6"""


def close(what: str, got: np.ndarray, printed: str) -> None:
    want = np.array(printed.split(), float)
    error = np.abs(np.asarray(got) - want).max()
    assert error <= 6e-7, f"{what}: off by {error:g}"


def main() -> None:
    release = spec_config("a") | {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
    want = np.array(RELEASE_F.split(), float)
    assert np.abs(inverse_frequencies(release)[0] / want - 1).max() < 1e-9
    assert abs(softmax_scale(release) - 0.1147213867929261) < 1e-15
    assert abs(softmax_scale(spec_config("a")) - 0.5026839309980871) < 1e-15

    for name, rows in LOGITS.items():
        config = spec_config(name)
        tensors = spec_tensors(config)
        trace = Trace()
        logits = Model(config, tensors).forward(IDS, trace)
        for position, printed in rows.items():
            close(f"model {name} logits at {position}", logits[position], printed)
        for (layer, position), (experts, weights) in ROUTES[name].items():
            ids, w = trace.routes[layer]
            assert ids[position].tolist() == [int(e) for e in experts.split()], (name, layer, position, ids[position])
            close(f"model {name} weights of layer {layer} at {position}", w[position], weights)
        if name == "a":
            assert len(tensors) == 89
            close("first weights", tensors["model.embed_tokens.weight"][0, :4], "-0.484202504 -0.629788041 0.541525364 -0.837006688")
            for what, printed_layers in LAYERS.items():
                for layer, printed in enumerate(printed_layers):
                    close(f"{what} of layer {layer}", getattr(trace, what)[layer][4], printed)
            for head, printed in enumerate(PROBABILITIES):
                close(f"probabilities of head {head}", trace.probabilities[0][head, 4], printed)
        difference = np.abs(Model(config, tensors, absorbed=True).forward(IDS) - logits).max()
        assert difference < 1e-13, f"absorbed and expanded differ by {difference:g}"
        print(f"model {name}: all published vectors reproduced; absorbed form within {difference:.1e}")


if __name__ == "__main__":
    main()
