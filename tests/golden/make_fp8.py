"""Makes the fp8 checkpoints of this folder, one in each format, and what they must compute. README.md describes the result.

    python make_fp8.py        # needs numpy alone

Each layout of scales has shapes that it can go wrong with: blocks of 128 end inside of weights, and of the heads of kv_b_proj.
"""
from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fixtures import V2, Expected, choose_ids, greedy, positions_of, random_tensors
from reference import E4M3, Array, Config, Model, Trace, softmax_scale

HERE = Path(__file__).parent
SIZES = {"F32": 4, "BF16": 2, "F8_E4M3": 1}
SMALL: Config = V2 | {"num_hidden_layers": 2, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3,
                      "routed_scaling_factor": 4.0, "moe_intermediate_size": 20, "vocab_size": 96}


@dataclass(frozen=True)
class Format:
    config: Config
    quantization: dict[str, Any]
    block: tuple[int, int]  # rows and columns that share a scale; 0: all
    scale: str                      # name and type of a scale
    scale_dtype: str
    seed: int


FORMATS = {
    "fp8-tensor": Format(SMALL | {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
                         {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
                         (0, 0), "weight_scale", "F32", 11),
    "fp8-channel": Format(SMALL, {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed", "kv_cache_scheme": None,
        "ignore": ["lm_head", "re:.*mlp\\.gate$"], "config_groups": {"group_0": {
            "targets": ["Linear"], "output_activations": None,
            "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False, "group_size": None},
            "input_activations": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}}}},
        (1, 0), "weight_scale", "BF16", 12),
    "fp8-block": Format(SMALL | {"hidden_size": 136, "num_attention_heads": 3, "num_key_value_heads": 3, "kv_lora_rank": 132,
                                 "q_lora_rank": 130, "intermediate_size": 140, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
                                 "num_experts_per_tok": 2, "moe_intermediate_size": 136, "n_shared_experts": 1},
                        {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
                        (128, 128), "weight_scale_inv", "F32", 13),
}


def stored(x: Array, dtype: str) -> tuple[Array, Array]:
    """Bits of a type, and the values that these have."""
    bits = np.asarray(x, "<f4").view("<u4")
    if dtype == "BF16":
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return bits.astype("<u2"), (bits << 16).view("<f4").astype(float)
    return bits, bits.view("<f4").astype(float)


def encode(x: Array) -> Array:
    """The nearest codes; ties to even."""
    magnitude, below = np.abs(x), np.clip(np.searchsorted(E4M3[:127], np.abs(x), "right") - 1, 0, 125)
    low, high = magnitude - E4M3[below], E4M3[below + 1] - magnitude
    code = below + ((low > high) | ((low == high) & (below % 2 == 1)))
    return (code | (np.signbit(x) << 7)).astype("u1")


def quantize(w: Array, f: Format) -> tuple[Array, Array]:
    """Codes, and bits of the scales; the greatest of a block is 448."""
    rows, cols = f.block[0] or w.shape[0], f.block[1] or w.shape[1]
    across = [range(0, n, step) for n, step in zip(w.shape, (rows, cols))]
    greatest = np.array([[np.abs(w[i : i + rows, j : j + cols]).max() for j in across[1]] for i in across[0]])
    bits, scale = stored(greatest / 448, f.scale_dtype)
    wide = scale[np.ix_(np.arange(w.shape[0]) // rows, np.arange(w.shape[1]) // cols)]
    return encode(w / wide), bits


def write_safetensors(path: Path, tensors: dict[str, tuple[str, Array]]) -> None:
    """Wide types first, as the safetensors library does, so that each is aligned."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, (dtype, bits) in sorted(tensors.items(), key=lambda item: (-SIZES[item[1][0]], item[0])):
        header[name] = {"dtype": dtype, "shape": list(bits.shape), "data_offsets": [len(data), len(data) + bits.nbytes]}
        data += bits.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def make(name: str, f: Format) -> None:
    folder = HERE / name
    tensors: dict[str, tuple[str, Array]] = {}
    for i, (key, w) in enumerate(random_tensors(f.config, f.seed).items()):
        if "_proj" not in key:
            tensors[key] = "BF16", stored(w, "BF16")[0]
            continue
        codes, scale = quantize(w, f)
        tensors[key] = "F8_E4M3", codes
        if f.block == (0, 0):
            scale = scale.reshape([1] if i % 2 else [])
            tensors[key.removesuffix("weight") + "input_scale"] = "F32", stored(np.full(scale.shape, 0.01), "F32")[0].reshape(scale.shape)
        tensors[key.removesuffix("weight") + f.scale] = f.scale_dtype, scale
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = f.config | {"torch_dtype": "bfloat16", "quantization_config": f.quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_safetensors(folder / "model.safetensors", tensors)

    model = Model.load(folder)
    ids = choose_ids(model, 80, f.seed, 0.08)
    positions = positions_of(len(ids))
    trace = Trace()
    full = model.forward(ids, trace)
    assert np.abs(Model.load(folder, absorbed=True).forward(ids) - full).max() < 1e-11
    e = Expected()
    e.facts |= {"checkpoint_dtype": "f8_e4m3", "vocab_size": full.shape[1], "softmax_scale": softmax_scale(model.config), "ids": ids,
                "positions": positions, "smallest_routing_margin": float(min(m.min() for m in trace.margin.values()))}
    e.facts["greedy_ids"], e.facts["greedy_smallest_lead"] = greedy(model, ids, 16)
    e.add("logits", full[positions])
    e.write(folder)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e3
    print(f"{name}: {size:.0f} kB, margin {e.facts['smallest_routing_margin']:.3g}, lead {e.facts['greedy_smallest_lead']:.2g}, "
          f"logits std {full.std():.2f}")


if __name__ == "__main__":
    for name, f in FORMATS.items():
        make(name, f)
