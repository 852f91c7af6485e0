#!/usr/bin/env python3
"""Prefill and decode of one checkpoint, libdsv2 and HF Transformers side by side in one run.

SPDX-License-Identifier: MIT

    DSV2_LIBRARY=build/lib PYTHONPATH=bindings/python python3 tests/speed/compare_hf.py examples/model [--prompt 1024] [--decode 128]

Both get the same tokens and the same number of threads; rounds alternate, the median counts.  Not a test: it prints figures.
"""
import argparse
import statistics
import time

import torch
from transformers import DeepseekV2ForCausalLM

import dsv2


def time_dsv2(model: dsv2.Model, prompt: list[int], following: list[int]) -> tuple[float, float]:
    with model.session(n_ctx=len(prompt) + len(following)) as session:
        start = time.perf_counter()
        session.prefill(prompt)
        middle = time.perf_counter()
        for token in following:
            session.decode(token)
        return middle - start, time.perf_counter() - middle


@torch.inference_mode()
def time_hf(model: DeepseekV2ForCausalLM, prompt: list[int], following: list[int]) -> tuple[float, float]:
    start = time.perf_counter()
    out = model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
    middle = time.perf_counter()
    for token in following:
        out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
    return middle - start, time.perf_counter() - middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    ours = dsv2.Model(args.folder, context=dsv2.Context(n_threads=args.threads))
    # As many different tokens as the vocabulary allows: routing should spread as with real text.
    n_tokens = ours.info.n_tokens - 8
    tokens = [(i * 7919 + 13) % n_tokens for i in range(args.prompt + args.decode)]
    prompt, following = tokens[: args.prompt], tokens[args.prompt :]
    runs = {"libdsv2 (bf16 weights, fp32 arithmetic)": lambda: time_dsv2(ours, prompt, following)}
    for dtype in (torch.bfloat16, torch.float32):
        hf = DeepseekV2ForCausalLM.from_pretrained(args.folder, dtype=dtype, attn_implementation="eager").eval()
        runs[f"Transformers {str(dtype).removeprefix('torch.')}"] = lambda hf=hf: time_hf(hf, prompt, following)

    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warm up
    for _ in range(args.rounds):
        for name, run in runs.items():
            times[name].append(run())
    base = None
    print(f"{args.prompt} prompt tokens, {args.decode} decoded, {args.threads} threads, median of {args.rounds}")
    print(f"{'':44}{'prefill tok/s':>15}{'decode tok/s':>15}{'prefill ratio':>15}{'decode ratio':>14}")
    for name, measured in times.items():
        prefill = args.prompt / statistics.median(m[0] for m in measured)
        decode = args.decode / statistics.median(m[1] for m in measured)
        base = base or (prefill, decode)
        print(f"{name:44}{prefill:15.0f}{decode:15.0f}{base[0] / prefill:15.1f}{base[1] / decode:14.1f}")


if __name__ == "__main__":
    main()
