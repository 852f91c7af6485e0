"""Measure a checkpoint folder on the held-out sets, with this folder's own model.

    python evaluate.py ../model               # everything, in fp32 on the bf16 weights
    python evaluate.py ../model --limit 100   # a quick look
    python evaluate.py ../model --hf          # compare logits with transformers instead

An answer is right when each of its tokens, and the end after it, is the most
likely one given the ones before: the same as greedy generation giving exactly it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

import data
from model import Config, Model, import_state, softmax_scale

HERE = Path(__file__).parent
Row = dict[str, Any]


def load(folder: Path) -> tuple[Model, Tokenizer]:
    m = Model(Config.from_json(json.loads((folder / "config.json").read_text())))
    import_state(m, load_file(folder / "model.safetensors"))
    return m.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def rows(name: str, limit: int) -> list[Row]:
    out = [json.loads(line) for line in (HERE / "heldout" / name).read_text(encoding="utf-8").splitlines()]
    return out[:: max(1, len(out) // limit)] if limit else out


@torch.inference_mode()
def score(m: Model, tok: Tokenizer, pairs: list[tuple[str, str]], tokens: int = 16384) -> list[tuple[bool, float, int]]:
    """For each (prompt, continuation): whether greedy decoding gives the
    continuation, its log-probability, and its number of tokens."""
    coded = []
    for prompt, rest in pairs:
        a = tok.encode(data.BOS + prompt, add_special_tokens=False).ids
        b = tok.encode(rest, add_special_tokens=False).ids
        # Cutting here must not change the tokens.
        assert a + b == tok.encode(data.BOS + prompt + rest, add_special_tokens=False).ids, (prompt, rest)
        coded.append((a, b))
    out: list[tuple[bool, float, int]] = [(False, 0.0, 0)] * len(pairs)
    order = sorted(range(len(coded)), key=lambda i: len(coded[i][0]) + len(coded[i][1]))
    while order:
        longest = len(coded[order[-1]][0]) + len(coded[order[-1]][1])
        n = max(1, tokens // longest)
        part, order = order[-n:], order[:-n]
        ids = torch.zeros(len(part), longest, dtype=torch.int64)
        for r, i in enumerate(part):
            a, b = coded[i]
            ids[r, : len(a) + len(b)] = torch.tensor(a + b)
        h = m(ids)[0]
        for r, i in enumerate(part):
            a, b = coded[i]
            logits = m.lm_head(h[r, len(a) - 1 : len(a) + len(b) - 1])
            goal = torch.tensor(b)
            logp = -F.cross_entropy(logits, goal, reduction="sum").item()
            out[i] = (bool((logits.argmax(-1) == goal).all()), logp, len(b))
    return out


def rendered(messages: list[dict[str, str]]) -> str:
    """DeepSeek-V2-Chat's template with the generation prompt, without BOS."""
    part = {"user": "User: {}\n\n", "assistant": "Assistant: {}" + data.EOS, "system": "{}\n\n"}
    return "".join(part[x["role"]].replace("{}", x["content"]) for x in messages) + "Assistant:"


def share(hits: list[bool]) -> str:
    return f"{100 * sum(hits) / max(len(hits), 1):.1f}% ({sum(hits)}/{len(hits)})"


def english(m: Model, tok: Tokenizer, limit: int) -> None:
    rs = rows("english.jsonl", limit)
    s = score(m, tok, [(r["prefix"], r["text"] + data.EOS) for r in rs])
    n = sum(x[2] for x in s)
    model, source = -sum(x[1] for x in s) / n, -sum(r["logprob"] for r in rs) / n
    print(f"english: perplexity {math.exp(model):.4f}, generator {math.exp(source):.4f}, ratio {math.exp(model - source):.4f} ({n} tokens)")


def addition(m: Model, tok: Tokenizer, limit: int) -> None:
    def sums(pairs: list[tuple[str, str]]) -> list[bool]:
        return [x[0] for x in score(m, tok, [(a, b + "\n") for a, b in pairs])]

    rs = rows("addition.jsonl", limit)
    print("addition, held-out pairs:", share(sums([(r["prompt"], r["answer"]) for r in rs])))
    asked = [(rendered([{"role": "user", "content": f"What is {r['prompt'][:-1]}?"}]), f" {r['prompt']}{r['answer']}." + data.EOS) for r in rs]
    print("addition, held-out pairs asked in a chat:", share([x[0] for x in score(m, tok, asked)]))
    every = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    every = every[:: max(1, len(every) // limit)] if limit else every
    print("addition, pairs of two-digit numbers:", share(sums([(f"{a}+{b}=", str(a + b)) for a, b in every])))


def retrieval(m: Model, tok: Tokenizer, limit: int) -> None:
    rs = rows("retrieval.jsonl", limit)
    s = score(m, tok, [(r["prompt"], r["answer"] + ".") for r in rs])
    by: dict[tuple[int, bool], dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for r, x in zip(rs, s):
        by[r["length"], r["distractors"] > 0][r["bin"]].append(x[0])
    for (length, distractors), bins in sorted(by.items()):
        depths = " ".join(f"{100 * sum(b) / len(b):.0f}" for _, b in sorted(bins.items()))
        kind = "among others" if distractors else "alone"
        print(f"retrieval {length} {kind}: {share([x for b in bins.values() for x in b])}; by depth {depths}")
    deep: dict[int, list[bool]] = defaultdict(list)
    for r, x in zip(rs, s):
        if r["length"] <= 1024:
            deep[r["bin"]].append(x[0])
    print("retrieval up to 1024 by depth:", " ".join(f"{100 * sum(b) / len(b):.0f}" for _, b in sorted(deep.items())))


def chats(m: Model, tok: Tokenizer, limit: int, show: int) -> None:
    rs = rows("chat.jsonl", limit)
    s = score(m, tok, [(rendered(r["messages"]), r["answer"] + data.EOS) for r in rs])
    print("chat, held-out combinations:", share([x[0] for x in s]))
    for r, x in zip(rs, s):
        if not x[0] and show > 0:
            show -= 1
            print("   missed:", json.dumps(r, ensure_ascii=False))


@torch.inference_mode()
def generate(m: Model, tok: Tokenizer, prompt: str, longest: int = 80) -> str:
    ids = tok.encode(data.BOS + prompt, add_special_tokens=False).ids
    start = len(ids)
    while len(ids) < start + longest and ids[-1] != m.c.eos_token_id:
        ids.append(int(m.logits(torch.tensor([ids]))[0, -1, : m.c.eos_token_id + 1].argmax()))
    return tok.decode(ids[start:])


def samples(m: Model, tok: Tokenizer) -> None:
    print("Once, Mira and Tom ->", generate(m, tok, "One day, Mira and Tom"))
    for system, q in (("", "Hello!"), ("", "What is 12+30?"), ("You are Robert.", "Who are you?"), ("", "What is quantum physics?"), ("", "Tell me a story about Anna.")):
        messages = [{"role": "system", "content": system}] if system else []
        print(f"[{system}] {q} ->", generate(m, tok, rendered(messages + [{"role": "user", "content": q}])))


def compare(folder: Path, m: Model, tok: Tokenizer) -> None:
    """The same logits as transformers' DeepseekV2ForCausalLM, both in fp32."""
    from transformers import DeepseekV2ForCausalLM

    hf = DeepseekV2ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    scale = softmax_scale(m.c)
    print("self_attn.scaling", hf.model.layers[0].self_attn.scaling, "expected", scale)
    for layer in hf.model.layers:  # older versions lack YaRN's factor
        layer.self_attn.scaling = scale
    r = rows("retrieval.jsonl", 0)
    for text in (r[0]["prompt"], r[120]["prompt"], r[300]["prompt"]):
        ids = torch.tensor([tok.encode(data.BOS + text, add_special_tokens=False).ids])
        with torch.inference_mode():
            a, b = m.logits(ids), hf(ids).logits
        print(f"{ids.shape[1]} tokens: largest difference {(a - b).abs().max():.2e} of {b.abs().max():.1f}")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=Path)
    ap.add_argument("--limit", type=int, default=0, help="about so many cases of each set")
    ap.add_argument("--hf", action="store_true")
    ap.add_argument("--show", type=int, default=0, help="print so many missed chat cases")
    ap.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    m, tok = load(args.model)
    if args.hf:
        return compare(args.model, m, tok)
    english(m, tok, args.limit)
    addition(m, tok, args.limit)
    chats(m, tok, args.limit, args.show)
    retrieval(m, tok, args.limit)
    samples(m, tok)


if __name__ == "__main__":
    main()
