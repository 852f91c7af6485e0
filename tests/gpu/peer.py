#!/usr/bin/env python3
"""HF Transformers on the card, with random weights: what the script for cards sets beside gpu_model's times.

    python3 tests/gpu/peer.py CONFIG.json CONTEXT PROMPT BATCH..

Decode steps of BATCH sequences that hold CONTEXT tokens, and a prompt of PROMPT tokens, as gpu_model does; a line of JSON for each.
Status 77 where there is no Transformers or no card.

SPDX-License-Identifier: MIT
"""
import json
import statistics
import sys
import time

try:
    import torch
    import transformers
except ImportError as why:
    print(why)
    sys.exit(77)

REPEATS, STEPS = 5, 8


def report(what: str, n: int, context: int, seconds: list[float]) -> None:
    ms = [s * 1e3 for s in seconds]
    print(json.dumps({"peer": f"Transformers {transformers.__version__}", "model": what, "n": n, "context": context, "ms": statistics.median(ms),
                      "least": min(ms), "most": max(ms)}), flush=True)


def now() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def tokens(n: int, length: int, vocab: int) -> torch.Tensor:
    return (torch.arange(n * length, device="cuda").reshape(n, length) * 7919 + 13) % vocab


@torch.inference_mode()
def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 77
    context, prompt, *batches = map(int, sys.argv[2:])
    with open(sys.argv[1], encoding="utf-8") as file:
        config = transformers.DeepseekV2Config(**json.load(file))
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = transformers.DeepseekV2ForCausalLM(config)
    model = model.to_empty(device="cuda").eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.normal_(0, weight.shape[-1] ** -0.5)
        else:
            weight.fill_(1)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to("cuda")  # its buffers were empty, too
    torch.set_default_dtype(torch.float32)

    times = []
    for i in range(REPEATS + 2):
        begin = now()
        model(tokens(1, prompt, config.vocab_size), use_cache=True, logits_to_keep=1)
        if i > 1:
            times.append(now() - begin)
    report("prompt", prompt, 0, times)
    for n in batches:
        cache = model(tokens(n, context, config.vocab_size), use_cache=True, logits_to_keep=1).past_key_values
        times = []
        for i in range(REPEATS + 2):
            begin = now()
            for _ in range(STEPS):
                out = model(tokens(n, 1, config.vocab_size), past_key_values=cache, use_cache=True)
            if i > 1:
                times.append((now() - begin) / STEPS)
        if not torch.isfinite(out.logits).all():
            print(json.dumps({"error": "a logit is not finite"}))
        report("decode", n, context, times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
