"""Writes encodings.bin: what HF tokenizers makes of 10,000 strings with the bundled tokenizer.

    python make_fixture.py          # run again whenever examples/model/tokenizer.json changes

Integers are little endian: u64 FNV-1a of tokenizer.json, u32 count, then per string u16 bytes, u16 ids, the bytes, the ids: one byte below
240, else 240 + id / 256 and id % 256.
"""
from __future__ import annotations

import struct
from pathlib import Path

from tokenizers import Tokenizer

import corpus
from oracle import markers

HERE = Path(__file__).parent
TOKENIZER = HERE.parents[1] / "examples" / "model" / "tokenizer.json"


def fnv(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def pack(i: int) -> bytes:
    assert i < 4096, "the fixture has room for 4,096 ids"
    return bytes([i]) if i < 240 else bytes([240 + i // 256, i % 256])


def main() -> None:
    oracle = Tokenizer.from_file(str(TOKENIZER))
    texts = corpus.strings(2, 10000, markers(TOKENIZER))
    top, share = next(iter(corpus.shares(texts).items()))
    assert share <= 0.15, f"{top} has {share:.1%} of the letters"
    out = [struct.pack("<QI", fnv(TOKENIZER.read_bytes()), len(texts))]
    for text in texts:
        data, ids = text.encode(), oracle.encode(text, add_special_tokens=False).ids
        out.append(struct.pack("<HH", len(data), len(ids)) + data + b"".join(map(pack, ids)))
    (HERE / "encodings.bin").write_bytes(b"".join(out))
    print(f"{len(texts)} strings, {sum(map(len, out))} bytes; the largest script is {top} with {share:.1%} of the letters")


if __name__ == "__main__":
    main()
