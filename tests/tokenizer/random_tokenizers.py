"""Compares the library with HF tokenizers on made-up tokenizers: any regular expressions, behaviours, added tokens and merges.

    python random_tokenizers.py ENCODE_TOOL [--n 600] [--seed 1]

What either side refuses is left out; a text that differs is shrunk and printed with its tokenizer.  Texts keep to Unicode 14, which is
what PCRE2 10.42 knows.
"""
from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

from tokenizers import Tokenizer

from oracle import Library, shrink

CHARACTERS = [*"abeAZst019 _-'.,!<\n\r\t", *"éßµ日龥٣½ⅣſıİςΣⒶ‿", *"\u3000\u180e\u00a0\u200b\u200d\u0301\u2028\x0b\x85\U0001044f\u212a"]
ESCAPES = [r"\s", r"\S", r"\w", r"\W", r"\d", r"\D", r"\h", r"\H", r"\b", r"\B", r"\A", r"\z", r"\Z", r"\n", r"\t", r"\v", r"\.", r"\x{e9}",
           r"\u4e00", r"\p{L}", r"\p{Lu}", r"\P{L}", r"\p{^N}", r"\p{Han}", r"\p{M}", r"\p{P}", r"\x41", r"\R", r"\1"]
IN_CLASS = [r"\s", r"\S", r"\w", r"\d", r"\h", r"\W", r"\n", r"\]", r"\-", r"\x{e9}", r"\u4e00", r"\p{L}", r"\P{N}", "[a]", "&&", "-", "^", "("]
QUANTIFIERS = ["*", "+", "?", "*?", "+?", "++", "{2}", "{1,2}", "{,2}", "{2,}", "{1,2}?", "{1", "{2}?"]
KNOWN = [" ?\\p{L}+| ?\\p{N}+|\\s+(?!\\S)|\\s+", "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s+",
         "\\s+$", "[a-zé]+", "\\s?[ -/]+", "x*", "(?=b)", "^", "a|"]
GROUPS = ["(", "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?m:", "(?-i:", "(?x:"]
BEHAVIORS = ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
CONTENTS = ["a", "ab", "ab ", " a", "b b", "st", "<s>", "é", "1", "日", "Ⅳ", "_", " ", "\n", " \n", "\u00a0"]


class Maker:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def some(self, least: int, most: int) -> range:
        return range(self.random.randint(least, most))

    def character_class(self) -> str:
        parts = []
        for _ in self.some(1, 4):
            if self.chance(0.5):
                parts.append(self.random.choice(CHARACTERS))
            elif self.chance(0.4):
                parts.append("-".join(sorted(self.random.choices("abyzAZ09é日龥", k=2))))
            else:
                parts.append(self.random.choice(IN_CLASS))
        return f"[{'^' if self.chance(0.3) else ''}{''.join(parts)}]"

    def atom(self, depth: int) -> str:
        kind = self.random.random()
        if kind < 0.25:
            return self.random.choice(ESCAPES)
        if kind < 0.45:
            return self.character_class()
        if kind < 0.5:
            return self.random.choice("^$.")
        if kind < 0.7 and depth:
            return f"{self.random.choice(GROUPS)}{self.pattern(depth - 1)})"
        return self.random.choice(CHARACTERS)

    def pattern(self, depth: int = 2) -> str:
        return "|".join("".join(self.atom(depth) + (self.random.choice(QUANTIFIERS) if self.chance(0.4) else "") for _ in self.some(1, 3))
                        for _ in self.some(1, 2))

    def step(self) -> dict[str, object]:
        if self.chance(0.2):
            return {"type": "Digits", "individual_digits": self.chance(0.5)}
        pattern = ({"String": self.random.choice(CONTENTS)} if self.chance(0.1) else
                   {"Regex": self.random.choice(KNOWN) if self.chance(0.3) else self.pattern()})
        return {"type": "Split", "pattern": pattern, "behavior": self.random.choice(BEHAVIORS), "invert": self.chance(0.3)}

    def tokenizer(self) -> dict[str, object]:
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        alphabet = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
        vocab = {c: i for i, c in enumerate(c for c in alphabet if self.chance(0.97))}
        parts, merges = [c for c in "abest1ĠĊÃ" if c in vocab], dict[str, None]()
        for _ in self.some(0, 25):
            a, b = self.random.choices(parts, k=2)
            merges[f"{a} {b}"] = None
            vocab.setdefault(a + b, len(vocab))
            parts.append(a + b)
        added, next_id = [], len(vocab)
        for content in self.random.sample(CONTENTS, self.random.randint(0, 5)):
            flags = {key: self.chance(0.4) for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}
            added.append({"id": vocab.get(content, next_id), "content": content, **flags})
            next_id += content not in vocab
        last = {"type": "ByteLevel", "add_prefix_space": self.chance(0.3), "trim_offsets": True, "use_regex": self.chance(0.2)}
        return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "post_processor": None,
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*(self.step() for _ in self.some(0, 2)), last]},
                "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                          "fuse_unk": False, "byte_fallback": False, "ignore_merges": self.chance(0.2), "vocab": vocab, "merges": [*merges]}}

    def text(self) -> str:
        def character() -> str:
            c = chr(self.random.randint(1, 0x10FFFF)) if self.chance(0.1) else self.random.choice(CHARACTERS)
            return "?" if unicodedata.category(c) in ("Cn", "Cs") else c

        parts = [self.random.choice(CONTENTS) if self.chance(0.3) else character() for _ in self.some(0, 14)]
        return "".join(parts) * (self.random.randint(5, 20) if self.chance(0.05) else 1)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("tool")
    arguments.add_argument("--n", type=int, default=600, help="tokenizers")
    arguments.add_argument("--seed", type=int, default=1)
    args = arguments.parse_args()
    maker, compared, used, failed = Maker(args.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        for _ in range(args.n):
            path.write_text(json.dumps(maker.tokenizer(), ensure_ascii=False), encoding="utf-8")
            texts = [maker.text() for _ in range(20)]
            try:
                theirs = Tokenizer.from_file(str(path))
            except Exception:  # what it raises is nothing more precise
                continue
            if subprocess.run([args.tool, path, "0"], stdin=subprocess.DEVNULL, capture_output=True).returncode:
                continue
            used += 1
            ours = Library(args.tool, str(path))

            def differs(text: str) -> bool:
                try:
                    want = theirs.encode(text, add_special_tokens=False).ids
                except BaseException:  # it panics where the strips of two added tokens overlap
                    return False
                got = ours.encode(text)
                return got is not None and got != want  # None: a limit was reached

            for text in texts:
                compared += 1
                if differs(text):
                    text = shrink(text, differs)
                    failed += 1
                    print(f"{text!r}: tokenizers {theirs.encode(text, add_special_tokens=False).ids}, library {ours.encode(text)}\n{path.read_text()}")
            ours.close()
    print(f"{used} of {args.n} tokenizers accepted by both, {compared} texts, {failed} differ")
    return 1 if failed or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
