"""Turns a GGUF vocabulary of the deepseek-llm kind into a tokenizer.json with the family's pre-tokenizer.

    python gguf_vocab.py ggml-vocab-deepseek-llm.gguf LIKE/tokenizer.json OUT/tokenizer.json

DeepSeek-V2 shares its 100,000 tokens and their merges with DeepSeek LLM.  llama.cpp keeps that vocabulary among its test files
(models/ggml-vocab-deepseek-llm.gguf, also in the source distribution of llama-cpp-python).  LIKE gives everything but vocabulary, merges
and added tokens; these become the two of V2-Lite.
"""
from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> Any:
        value = struct.unpack_from("<" + form, self.data, self.at)[0]
        self.at += struct.calcsize("<" + form)
        return value

    def string(self) -> str:
        n = self.take("Q")
        self.at += n
        return self.data[self.at - n:self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, n = self.take("I"), self.take("Q")
            return [self.value(inner) for _ in range(n)]
        return self.take(SIZES[kind])


def read(path: Path) -> dict[str, Any]:
    r = Reader(path.read_bytes())
    assert r.data[:4] == b"GGUF", f"{path} is no GGUF file"
    r.at = 4
    r.take("I"), r.take("Q")
    return {r.string(): r.value(r.take("I")) for _ in range(r.take("Q"))}


def convert(gguf: Path, like: Path) -> dict[str, Any]:
    keys, out = read(gguf), json.loads(like.read_text())
    out["model"]["vocab"] = {token: i for i, token in enumerate(keys["tokenizer.ggml.tokens"][:100000])}
    out["model"]["merges"] = keys["tokenizer.ggml.merges"]
    out["added_tokens"] = [
        {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
        for i, content in ((100000, "<｜begin▁of▁sentence｜>"), (100001, "<｜end▁of▁sentence｜>"))]
    return out


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(convert(Path(sys.argv[1]), Path(sys.argv[2])), ensure_ascii=False))
