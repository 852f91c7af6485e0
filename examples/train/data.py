"""Training documents of the four kinds, and the mixture of them.

A document is a list of segments (text, weight): the weight says how much the
prediction of its tokens counts in the loss.  Everything that can be known is
worth 1, what is random (the digits of a planted number, a user's next question)
little.  BOS and EOS are added by `encode`.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Iterator

import numpy as np
from tokenizers import Tokenizer

import chat
import english

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
STORY_PREFIX = "Story:"
Document = list[tuple[str, float]]

WORDS = sorted({*english.OBJECTS, *english.PLACES, *english.ROLES, *english.ANIMALS, *english.MOODS, *chat.COLOURS, *chat.TOWNS})
# Attribute: what a sentence says before the value, the question, and the values.
ATTRIBUTES: dict[str, tuple[str, str, list[str]]] = {
    "word": ("The secret word of {} is", "What is the secret word of {}?", WORDS),
    "colour": ("The favourite colour of {} is", "What is the favourite colour of {}?", chat.COLOURS),
    "town": ("The home of {} is", "What is the home of {}?", chat.TOWNS),
}


def story_document(rng: random.Random) -> Document:
    """Half of the stories stand behind a prefix, so that one can ask for a story
    in particular; the others follow BOS, so that any beginning can be continued."""
    text = " ".join(english.story(rng)[0])
    return [(STORY_PREFIX, 0.1), (" " + text + EOS, 1.0)] if rng.random() < 0.6 else [(text + EOS, 1.0)]


def addition_document(rng: random.Random, lines: int = 12) -> Document:
    out: Document = []
    for _ in range(lines):
        a, b = chat.addends(rng)
        out += [(f"{a}+{b}", 0.02), ("=", 0.1), (f"{a + b}\n", 1.0)]
    return out[:-1] + [(out[-1][0].rstrip("\n") + EOS, 1.0)]


def filler(rng: random.Random) -> Iterator[str]:
    while True:
        yield from english.story(rng)[0]


@dataclass
class Planted:
    """Facts inside filler; `facts` are (beginning, question, value) in the order of the text."""

    sentences: list[str]
    is_fact: list[bool]
    facts: list[tuple[str, str, str]]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def facts(rng: random.Random, n: int, kinds: list[str]) -> list[tuple[str, str, str]]:
    """n facts about different (attribute, name) pairs."""
    seen: set[tuple[str, str]] = set()
    out: list[tuple[str, str, str]] = []
    while len(out) < n:
        kind, name = rng.choice(kinds), rng.choice(english.NAMES)
        if (kind, name) in seen:
            continue
        seen.add((kind, name))
        told, asked, values = ATTRIBUTES[kind]
        out.append((told.format(name), asked.format(name), rng.choice(values)))
    return out


def plant(rng: random.Random, tok: Tokenizer, room: int, told: list[tuple[str, str, str]]) -> Planted:
    """Filler of at most `room` tokens with the facts at random places."""
    left = room - sum(len(tok.encode(f[0]).ids) + 3 for f in told)
    base: list[str] = []
    for s in filler(rng):
        left -= len(tok.encode(s).ids) + 1
        if left < 0:
            break
        base.append(s)
    places = sorted(rng.randrange(len(base) + 1) for _ in told)
    out, kinds = [], []
    for i in range(len(base) + 1):
        while places and places[0] == i:
            places.pop(0)
            f = told[len(told) - len(places) - 1]
            out.append(f"{f[0]} {f[2]}.")
            kinds.append(True)
        if i < len(base):
            out.append(base[i])
            kinds.append(False)
    return Planted(out, kinds, told)


def retrieval_document(rng: random.Random, tok: Tokenizer, length: int) -> Document:
    """Many facts and many questions, so that each sequence trains many look-ups;
    now and then only one fact in filler, as in the test."""
    most = max(1, length // 24)
    n = rng.randint(max(1, most // 2), most)
    if rng.random() < 0.35:
        n = max(1, round(math.exp(rng.uniform(0, math.log(most + 0.49)))))
    told = facts(rng, n, ["word"] if rng.random() < 0.7 else list(ATTRIBUTES))
    short = rng.random() < 0.4  # the fact said again, without a question
    cost = 12 if short else 24
    asked = rng.sample(told, min(n, max(1, int(length * 0.6) // cost)))
    p = plant(rng, tok, max(length - cost * len(asked) - 6, 12 * n), told)
    as_chat = not short and rng.random() < 0.4
    out: Document = [("User: ", 0.1)] if as_chat else []
    for i, (s, fact) in enumerate(zip(p.sentences, p.is_fact)):
        out.append(((" " if i else "") + s, 0.05 if fact else 0.15))
    for i, (f, q, v) in enumerate(asked):
        gap = "\n\n" if i == 0 else "\n"
        if as_chat:
            out += [(f"{' ' if i == 0 else 'User: '}{q}\n\nAssistant:", 0.1), (f" {f}", 0.5), (f" {v}.", 1.5), (EOS, 0.5)]
        elif short:
            out += [(f"{gap}Note: {f}", 0.05), (f" {v}", 1.5), (".", 0.2)]
        else:
            out += [(f"{gap}Question: {q}\nAnswer:", 0.1), (f" {f}", 0.5), (f" {v}", 1.5), (".", 0.2)]
    return out if as_chat else out + [(EOS, 0.5)]


def copy_document(rng: random.Random, length: int) -> Document:
    """Lists to repeat.  Each token of the copy is a look-up of the simplest kind,
    with which the others begin; and `repeat` is a useful word in a chat."""
    out: Document = []
    while length > 0:
        n = rng.randint(2, max(2, min(30, length // 4)))
        pool = rng.choice([english.NAMES, WORDS, WORDS + english.NAMES + chat.PETS])
        words = [str(rng.randrange(100)) if rng.random() < 0.15 else rng.choice(pool) for _ in range(n)]
        text = rng.choice([", ", " "]).join(words)
        out += [(f"User: {rng.choice(['Repeat:', 'Repeat after me:', 'Say'])} {text}\n\nAssistant:", 0.05), (f" {text}" + EOS, 1.0)]
        length -= 3 * n + 12
    return out


def render(system: str, turns: list[tuple[str, str]]) -> Document:
    """DeepSeek-V2-Chat's template, without BOS."""
    out: Document = [(system + "\n\n", 0.02)] if system else []
    for q, a in turns:
        out += [(f"User: {q}\n\n", 0.05), ("Assistant:", 0.1), (f" {a}{EOS}", 1.0)]
    return out


def chat_document(rng: random.Random, longest: int) -> Document:
    if rng.random() < 0.5:
        return drill(rng, longest)
    return render(*chat.conversation(rng, rng.randint(1, max(3, min(12, longest // 40)))))


def drill(rng: random.Random, longest: int) -> Document:
    """The instructions that are hardest to follow: short answers, mostly sums without
    the operands said again, and words in another case, each of which is to be spelled."""
    while True:
        system, styles = chat.make_system(rng)
        short, cased = any(s.rank == 0 and not s.persona for s in styles), any(s.rank == 2 for s in styles)
        if short or cased:
            break
    memory, out = chat.Memory(), []
    n = rng.randint(1, max(2, min(9, longest // 28)))
    while len(out) < n:
        sums = rng.random() < (0.7 if short else 0.1)
        q, a = chat.sum_question(rng) if sums else chat.next_turn(rng, styles, memory)
        if not chat.held_out(system, q):
            out.append((q, chat.styled(styles, a)))
    return render(system, out)


def encode(tok: Tokenizer, doc: Document) -> tuple[np.ndarray, np.ndarray]:
    """Token ids behind a BOS, and the weight of each as a target."""
    text = BOS + "".join(t for t, _ in doc)
    weight = np.repeat(np.array([0.0] + [w for _, w in doc], np.float32), [len(BOS)] + [len(t) for t, _ in doc])
    e = tok.encode(text, add_special_tokens=False)
    last = np.fromiter((b - 1 for _, b in e.offsets), np.int64, len(e.ids))
    return np.array(e.ids, np.int16), weight[last]


class Mixture:
    """An endless seeded stream of batches.  Documents of like length share a
    batch; each begins at position 0, so attention never crosses from one to another."""

    KINDS = ("english", "retrieval", "addition", "chat", "copy")

    def __init__(self, tok: Tokenizer, seed: int) -> None:
        self.tok, self.rng = tok, random.Random(seed)
        self.drawn = dict.fromkeys(self.KINDS, 1.0)
        self.bins: dict[int, list[tuple[int, np.ndarray, np.ndarray]]] = {}

    def document(self, kind: str, longest: int) -> Document:
        if kind == "english":
            return story_document(self.rng)
        if kind == "addition":
            return addition_document(self.rng)
        if kind == "chat":
            return chat_document(self.rng, longest)
        short = self.rng.random() < 0.4 if longest > 128 else self.rng.random() < 0.7
        n = round(math.exp(self.rng.uniform(math.log(64), math.log(longest)))) if short else longest
        return copy_document(self.rng, n) if kind == "copy" else retrieval_document(self.rng, self.tok, n)

    def batch(self, shares: dict[str, float], longest: int, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids [B, T], weights [B, T], and the kind of each row."""
        while True:
            kind = min(self.KINDS, key=lambda k: self.drawn[k] / max(shares[k], 1e-6))
            ids, w = encode(self.tok, self.document(kind, longest))
            ids, w = ids[:longest], w[:longest]
            self.drawn[kind] += len(ids)
            step = 16 if len(ids) <= 256 else 64
            size = -(-len(ids) // step) * step
            rows = self.bins.setdefault(size, [])
            rows.append((self.KINDS.index(kind), ids, w))
            if len(rows) * size >= tokens:
                del self.bins[size]
                x, y = np.zeros((len(rows), size), np.int64), np.zeros((len(rows), size), np.float32)
                for i, (_, a, b) in enumerate(rows):
                    x[i, : len(a)], y[i, : len(b)] = a, b
                return x, y, np.array([k for k, _, _ in rows])

    def new_phase(self) -> None:
        """Forget the balance so far: the shares may have changed."""
        self.drawn = dict.fromkeys(self.KINDS, 1.0)
