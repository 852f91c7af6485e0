"""Write the held-out sets as JSON lines, for evaluate.py and for the C library alike.

    python heldout.py            # writes heldout/*.jsonl

Prompts are complete strings behind BOS (which `encode` or the chat template adds).
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

import chat
import data
import english

HERE = Path(__file__).parent
LENGTHS = (128, 256, 512, 1024, 2048)
BINS = 10


def retrieval(rng: random.Random, tok: Tokenizer, length: int, bin_: int, distractors: bool) -> dict[str, Any]:
    """One question about one fact in filler; the fact lies in the given tenth of
    the filler.  Distractors are facts of the same kind about other people."""
    n = 1 + (max(1, length // 60) if distractors else 0)
    told = data.facts(rng, n, ["word"])
    goal = told[0]
    tail = f"\n\nQuestion: {goal[1]}\nAnswer:"
    room = length - len(tok.encode(tail).ids) - len(tok.encode(goal[0]).ids) - 4
    p = data.plant(rng, tok, room, told[1:])
    # Put the fact at the border of sentences that is nearest to the middle of its bin.
    cost = [len(tok.encode(s).ids) + 1 for s in p.sentences]
    starts = [sum(cost[:i]) for i in range(len(cost) + 1)]
    place = min(range(len(starts)), key=lambda i: abs(starts[i] / max(starts[-1], 1) - (bin_ + 0.5) / BINS))
    p.sentences.insert(place, f"{goal[0]} {goal[2]}.")
    prompt = p.text + tail
    return {
        "prompt": prompt,
        "answer": f" {goal[0]} {goal[2]}",
        "length": length,
        "tokens": len(tok.encode(prompt).ids) + 1,
        "depth": round(starts[place] / max(starts[-1], 1), 3),
        "bin": bin_,
        "distractors": n - 1,
    }


def chat_case(rng: random.Random) -> dict[str, Any]:
    system, turns = chat.conversation(rng, rng.randint(1, 4), test=True)
    messages = [{"role": "system", "content": system}] if system else []
    for q, a in turns[:-1]:
        messages += [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
    messages.append({"role": "user", "content": turns[-1][0]})
    return {"messages": messages, "answer": " " + turns[-1][1]}


def story_case(rng: random.Random) -> dict[str, Any]:
    text, logp = english.story(rng)
    return {"prefix": data.STORY_PREFIX, "text": " " + " ".join(text), "logprob": round(logp, 6)}


def write(name: str, rows: list[dict[str, Any]]) -> None:
    path = HERE / "heldout" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    print(name, len(rows), path.stat().st_size)


def main() -> None:
    tok = Tokenizer.from_file(str(HERE / "../model/tokenizer.json"))
    rng = random.Random(20_000_003)  # far from the training seeds
    write("english.jsonl", [story_case(rng) for _ in range(400)])
    pairs = [(a, b) for a in range(100) for b in range(100) if chat.sum_held_out(a, b)]
    write("addition.jsonl", [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in pairs])
    write("chat.jsonl", [chat_case(rng) for _ in range(800)])
    rows = []
    for length in LENGTHS:
        for bin_ in range(BINS):
            for i in range(8 if length < 2048 else 4):
                rows.append(retrieval(rng, tok, length, bin_, i % 2 == 1))
    write("retrieval.jsonl", rows)


if __name__ == "__main__":
    main()
