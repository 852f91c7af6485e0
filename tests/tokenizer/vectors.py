"""Token ids published for V2-Lite's tokenizer, checked with the library and with HF tokenizers on a file that gguf_vocab.py made.

    python vectors.py ENCODE_TOOL TOKENIZER_JSON [GGUF.inp GGUF.out]

.inp and .out are llama.cpp's own vectors for the same vocabulary.
"""
from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Tokenizer

from oracle import Library

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
VECTORS = {
    "": "",
    "Hello world": "17464 1843",
    " Hello world": "37727 1843",
    "Hello, world!": "17464 11 1843 0",
    "Hello\n\nworld": "17464 185 185 11123",
    "  two  spaces  ": "207 984 207 9577 243",
    "\tdef f(x):\n\t\treturn x**2  # 3.14\n": "32029 267 7 87 1780 185 184 3420 1376 746 17 207 1501 207 18 13 16 19 185",
    "I've told 12345 people": "40 6 313 3542 207 16 17 18 19 20 1245",
    "你好，世界！我在2024年学习DeepSeek。": "84313 19304 4997 2160 23011 17 15 17 19 934 5782 32221 64468 398",
    "Füße öäü": "37 2874 31569 68 95036 8300 2874",
    "naïve café — “quoted”…": "2490 2865 313 26506 587 207 1972 207 790 49742 976 2494",
    "😀👍🏽 emoji": "71899 209 10044 226 222 10044 224 121 89213",
    "한국어 text": "76152 91765 242 94627 112 2432",
    "x=1;y=22;z=333": "87 28 16 26 88 28 17 17 26 89 28 18 18 18",
    "\r\n\r\n": "188 185 188 185",
    "a  \nb": "64 243 185 65",
    "½ ² ①②": "19109 207 12094 207 40368 43518",
    "१ २": "23424 100 207 23424 101",
    "a\u00a0b": "64 1202 65",
    "a\u3000b": "64 88946 65",
    "\u200bx": "15630 87",
    # chat
    BOS + "User: Hello\n\nAssistant:": "100000 5726 25 37727 185 185 77398 25",
    BOS + "Be brief.\n\nUser: Hi\n\nAssistant:": "100000 4677 8749 13 185 185 5726 25 11598 185 185 77398 25",
    BOS + "User: Hi\n\nAssistant: Hello!" + EOS + "User: 1+1=?\n\nAssistant:":
        "100000 5726 25 11598 185 185 77398 25 37727 0 100001 5726 25 207 16 10 16 28 30 185 185 77398 25",
    BOS + "Be brief.\n\nUser: Hi\n\nAssistant: Hello!" + EOS:
        "100000 4677 8749 13 185 185 5726 25 11598 185 185 77398 25 37727 0 100001",
}


def main() -> int:
    library, oracle = Library(sys.argv[1], sys.argv[2]), Tokenizer.from_file(sys.argv[2])
    cases = {text: [int(i) for i in ids.split()] for text, ids in VECTORS.items()}
    if len(sys.argv) > 4:
        texts = Path(sys.argv[3]).read_bytes().decode().split("\n__ggml_vocab_test__\n")
        lines = Path(sys.argv[4]).read_text().split("\n")
        # a line of theirs may begin with BOS, which their tool added
        cases |= {text: [i for i in map(int, line.split()) if i != 100000] for text, line in zip(texts, lines)}
    bad = 0
    for text, want in cases.items():
        got, theirs = library.encode(text), oracle.encode(text, add_special_tokens=False).ids
        if got != want or theirs != want:
            bad += 1
            print(f"{text!r}\n  published {want}\n  library   {got}\n  oracle    {theirs}")
    print(f"{len(cases)} published vectors, {bad} differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
