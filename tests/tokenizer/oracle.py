"""Compares the library's encoding with HF tokenizers, id for id; a string that differs is shrunk and printed.

    python oracle.py ENCODE_TOOL TOKENIZER_JSON [--n 12000] [--seed 1]

The oracle is tokenizers.Tokenizer.from_file (never a Transformers class, which may rebuild parts of the file).
"""
from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

import corpus

FAILED = 0xFFFFFFFF


class Library:
    """encode_tool as a function from text to ids."""

    def __init__(self, tool: str, tokenizer: str, flags: int = 0) -> None:
        self.process = subprocess.Popen([tool, tokenizer, str(flags)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def encode(self, text: str) -> list[int] | None:
        data = text.encode()
        self.process.stdin.write(struct.pack("=I", len(data)) + data)
        self.process.stdin.flush()
        (n,) = struct.unpack("=I", self._read(4))
        return None if n == FAILED else list(struct.unpack(f"={n}i", self._read(4 * n)))

    def _read(self, n: int) -> bytes:
        data = self.process.stdout.read(n)
        if len(data) < n:
            sys.exit(f"encode_tool ended with {self.process.wait()}")
        return data

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def shrink(text: str, differs) -> str:
    """Remove pieces, large ones first, for as long as the rest still differs."""
    size = max(1, len(text) // 2)
    while size:
        at = 0
        while at < len(text):
            shorter = text[:at] + text[at + size:]
            if differs(shorter):
                text = shorter
            else:
                at += size
        size //= 2
    return text


def markers(tokenizer: Path) -> list[str]:
    return [t["content"] for t in json.loads(tokenizer.read_text())["added_tokens"]][:40]


def compare(tool: str, path: Path, texts: list[str], expected=None) -> int:
    """How many differ."""
    oracle = Tokenizer.from_file(str(path))
    oracle.encode_special_tokens = False
    library = Library(tool, str(path))

    def want(text: str) -> list[int]:
        return oracle.encode(text, add_special_tokens=False).ids

    bad = 0
    for text in texts:
        if library.encode(text) == want(text):
            continue
        bad += 1
        if bad <= 10:
            small = shrink(text, lambda s: library.encode(s) != want(s))
            print(f"differs: {small!r} ({' '.join(f'U+{ord(c):04X}' for c in small[:20])})\n  library {library.encode(small)}\n"
                  f"  oracle  {want(small)} {oracle.encode(small, add_special_tokens=False).tokens}")
    library.close()
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--n", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    texts = corpus.strings(args.seed, args.n, markers(args.tokenizer))
    assert max(corpus.shares(texts).values()) <= 0.15, "one script has too many of the letters"
    top, share = next(iter(corpus.shares(texts).items()))
    bad = compare(args.tool, args.tokenizer, texts)
    print(f"{args.tokenizer}: {len(texts)} strings, {bad} differ; the largest script is {top} with {share:.1%} of the letters")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
