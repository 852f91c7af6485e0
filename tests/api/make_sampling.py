"""Makes sampling.json: what each step of sampling must give, computed without the library.

    python make_sampling.py        # needs torch and transformers

Steps that Hugging Face Transformers has too are run with its own processors, one by one, in the order of the library (which is
vLLM's): min_tokens, bias, repetition penalty, frequency and presence penalty, temperature, min_p, top_k, top_p. Frequency and
presence penalties are vLLM's one-line definitions. The draws come from Philox4x32-10 in plain Python integers.

A case: logits (float32), prompt, output, eos, params (fields of dsv2_sample_params), kept: ids left at the end, p: their
probabilities (float64 from the kept logits), draws: [seed, position, token]. edited: logits before temperature.

SPDX-License-Identifier: MIT
"""
import json
import math
from pathlib import Path

import torch
from transformers import generation as hf

VOCAB = 64
MASK = 0xFFFFFFFF


def philox(counter, key):
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (p1 >> 32) ^ b ^ k0, p1 & MASK, (p0 >> 32) ^ d ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return a, b, c, d


def draw(p, seed, position):
    """argmax p_i / E_i over {id: probability}."""
    def race(token):
        words = philox((position & MASK, position >> 32, token // 4, 0), (seed & MASK, seed >> 32))
        return p[token] / -math.log((words[token % 4] + 0.5) / 2**32)
    return max(sorted(p), key=race)


def run(logits, prompt, output, eos, params):
    ids = torch.tensor([prompt + output])
    x = logits[None].clone()
    if len(output) < params.get("min_tokens", 0):
        masked = torch.tensor(eos + params.get("stop_tokens", []))
        x = hf.MinNewTokensLengthLogitsProcessor(len(prompt), params["min_tokens"], masked.tolist(), device="cpu")(ids, x)
    for token, bias in params.get("logit_bias", []):
        x = hf.SequenceBiasLogitsProcessor([[[token], float(max(-100, min(100, bias)))]])(ids, x)
    if params.get("repetition_penalty", 1) != 1:
        x = hf.RepetitionPenaltyLogitsProcessor(params["repetition_penalty"])(ids, x)
    counts = torch.bincount(torch.tensor(output, dtype=torch.long), minlength=VOCAB)[None]
    x = x - params.get("frequency_penalty", 0) * counts
    x = x - params.get("presence_penalty", 0) * (counts > 0)
    edited = x[0].clone()
    temperature = params.get("temperature", 1)
    if temperature < 1e-5:
        kept = [int(x[0].argmax())]
        return edited, kept, [1.0]
    x = hf.TemperatureLogitsWarper(float(max(temperature, 0.01)))(ids, x)
    if params.get("min_p", 0) > 0:
        x = hf.MinPLogitsWarper(params["min_p"])(ids, x)
    if params.get("top_k", 0) > 0:
        x = hf.TopKLogitsWarper(params["top_k"])(ids, x)
    if params.get("top_p", 1) < 1:
        x = hf.TopPLogitsWarper(params["top_p"])(ids, x)
    kept = torch.nonzero(x[0] > -math.inf)[:, 0].tolist()
    return edited, kept, torch.softmax(x[0].double(), 0)[kept].tolist()


def main():
    rng = torch.Generator().manual_seed(2024)
    prompt = [3, 9, 9, 20, 41, 63]
    output = [9, 5, 5, 5, 17, 60, 41]
    steps = [
        {}, {"temperature": 0.0}, {"temperature": 9e-6}, {"temperature": 0.005}, {"temperature": 0.3}, {"temperature": 2.0},
        {"top_k": 1}, {"top_k": 5}, {"top_k": 63}, {"top_k": 64}, {"top_k": 1000}, {"top_k": -1},
        {"top_p": 0.1}, {"top_p": 0.5}, {"top_p": 0.95}, {"top_p": 1e-6}, {"top_p": 1.0},
        {"min_p": 0.05}, {"min_p": 0.5}, {"min_p": 1.0},
        {"top_k": 7, "top_p": 0.8}, {"min_p": 0.1, "top_p": 0.9}, {"min_p": 0.02, "top_k": 9, "top_p": 0.7, "temperature": 0.7},
        {"repetition_penalty": 1.3}, {"repetition_penalty": 0.8}, {"frequency_penalty": 0.7}, {"frequency_penalty": -2.0},
        {"presence_penalty": 1.5}, {"presence_penalty": -0.5},
        {"repetition_penalty": 1.1, "frequency_penalty": 0.3, "presence_penalty": 0.4, "temperature": 0.8},
        {"min_tokens": 8, "temperature": 0.5}, {"min_tokens": 7}, {"min_tokens": 100, "stop_tokens": [12, 13], "temperature": 0.4},
        {"logit_bias": [[7, 4.5], [8, -3.0]]}, {"logit_bias": [[7, 1e9], [0, -1e9]]}, {"logit_bias": [[63, -100.0]]},
        {"logit_bias": [[9, 6.0]], "repetition_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": 0.5, "min_tokens": 20,
         "stop_tokens": [9], "top_k": 20, "top_p": 0.9, "min_p": 0.01, "temperature": 1.2},
    ]
    cases = []
    for n, params in enumerate(steps):
        logits = torch.randn(VOCAB, generator=rng) * 3
        edited, kept, p = run(logits, prompt, output, [1, 2], params)
        table = dict(zip(kept, p))
        draws = [[seed, position, draw(table, seed, position)]
                 for seed in (0, 1, 2**53 - 1) for position in (len(prompt) + len(output), 1000 + n, 2**40 + n)]
        short = [float(f"{x:.9g}") for x in logits.tolist()]  # enough digits for a float32
        cases.append({"logits": short, "prompt": prompt, "output": output, "eos": [1, 2], "params": params,
                      "edited": [None if x == -math.inf else float(f"{x:.9g}") for x in edited.tolist()], "kept": kept, "p": p, "draws": draws})
    lines = ",\n".join(json.dumps(c) for c in cases)
    Path(__file__).with_name("sampling.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main()
