"""Write the seed inputs of the fuzz targets into corpus/: small valid files that mutation can start from.

    python3 tests/fuzz/make_seeds.py

Findings and inputs that reached new code are added to the same folders by `tests/fuzz/fuzz.sh`."""

import json
import struct
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
SEP = b"\xff"


def put(target: str, name: str, data: bytes) -> None:
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{name}").write_bytes(data)


def json_seeds() -> None:
    for i, text in enumerate((
        '{"a": [1, -0.5e3, true, false, null, "\\u00e9\\ud83d\\ude00\\n"], "b": {"c": {}}}',
        "[]", " 9007199254740992 ", '"\\"\\\\\\/\\b\\f\\n\\r\\t"', '{"a":1,"a":2}', '{"\\u0000":1}', "[01]", "[1e400]",
        "[9007199254740993]", "[1] x", '["\\ud800"]', "[" * 70 + "]" * 70, '{"é": "日本 😀"}', "[1.7976931348623157e308,5e-324]",
        "tru", "[1,]", "{,}", '{"a" 1}',
    )):
        put("json", str(i), text.encode())
    put("json", "bad-utf8", b'["\xc0\xaf"]')


def config_seeds() -> None:
    generation = json.dumps({"bos_token_id": 0, "eos_token_id": [1, 2], "do_sample": True, "temperature": 0.3,
                             "top_p": 0.95, "top_k": 50, "min_p": 0.1, "repetition_penalty": 1.1}).encode()
    for path in sorted(GOLDEN.glob("*/config.json")):
        put("config", path.parent.name, path.read_bytes() + SEP + generation)


def weights(tensors: dict[str, tuple[str, list[int], int]], metadata: bool = False) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}} if metadata else {}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(end)


def safetensors_seeds() -> None:
    a = weights({"x": ("F32", [2, 3], 24), "y": ("BF16", [4], 8), "z": ("F8_E4M3", [], 1)}, metadata=True)
    b = weights({"w": ("F16", [0, 3], 0), "v": ("I64", [1], 8)})
    put("safetensors", "single", b"\0" + a)
    put("safetensors", "zero", b"\0" + b)
    put("safetensors", "empty", b"\0" + weights({}))
    names = [f"model-{i:05d}-of-000002.safetensors" for i in (1, 2)]
    index = {"metadata": {"total_size": 41},
             "weight_map": {"x": names[0], "y": names[0], "z": names[0], "w": names[1], "v": names[1]}}
    put("safetensors", "sharded", b"\2" + b"\xff\xfe".join([json.dumps(index).encode(), a, b]))


def tokenizer(pre: object, merges: object, added: list[dict[str, object]]) -> bytes:
    alphabet = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    words = ["he", "ll", "Ġt"]
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": []}, "pre_tokenizer": pre,
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {w: i for i, w in enumerate(alphabet + words)}, "merges": merges},
    }, ensure_ascii=False).encode()


def tokenizer_seeds() -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    def split(pattern: str) -> dict[str, object]:
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    digits = {"type": "Digits", "individual_digits": True}
    bos = {"id": 259, "content": "<|b|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
           "special": True}
    word = bos | {"id": 260, "content": "hi", "single_word": True, "lstrip": True, "rstrip": True, "special": False}
    sequence = {"type": "Sequence", "pretokenizers": [split("[\\r\\n]"), split("\\s?[A-Za-z]+"), split("\\s+$"), digits,
                                                      byte_level]}
    text = "<|b|> hello there 123 hi\n\n日本 \u3000 x".encode()
    config = json.dumps({"add_bos_token": True, "bos_token": "<|b|>"}).encode()
    put("tokenizer", "strings", SEP.join([tokenizer(sequence, ["h e", "l l", "Ġ t"], [bos, word]), config, text]))
    put("tokenizer", "arrays", SEP.join([tokenizer(byte_level, [["h", "e"], ["l", "l"], ["Ġ", "t"]], []), config, text]))
    gpt2 = byte_level | {"use_regex": True, "add_prefix_space": True}
    put("tokenizer", "gpt2", SEP.join([tokenizer(gpt2, [], [bos]), b"", text]))


TEXTS = ["", "Hello, world! 12345", "  two  spaces  ", "\tdef f(x):\r\n\treturn x**2\n", "naïve café — “quoted”…",
         "你好，世界！", "😀👍🏽 emoji", "한국어 text", "½ ² ①② १ २", "a\u00a0b\u3000c\u200bx\u180e", "a" * 300, " " * 300, "e\u0301" * 9,
         "<｜begin▁of▁sentence｜>User: hi<｜end▁of▁sentence｜>", "\u0000\u0001\u007f", "שלום مرحبا"]


def encode_seeds() -> None:
    for i, text in enumerate(TEXTS):
        put("encode", str(i), text.encode())
    put("encode", "invalid", b"a\xe4\xbd b\xf0\x9f\x98 \xc0\xaf \xed\xa0\x80 \xff")


def chat_seeds() -> None:
    templates = json.loads((GOLDEN / "template" / "templates.json").read_text())
    messages = [b"system", b"Be brief.", b"user", "Hé?".encode(), b"assistant", b"Yes", b"tool", b"42", b"user", b"x"]
    for name, entry in templates.items():
        template = entry["chat_template"]
        for form in ("plain", "list"):
            config = {"bos_token": {"content": "<B>"} if form == "list" else "<B>", "eos_token": "<E>",
                      "chat_template": [{"name": "default", "template": template}] if form == "list" else template}
            put("chat", f"{name}-{form}", SEP.join([json.dumps(config).encode(), *messages]))
    put("chat", "none", b"{}" + SEP + SEP.join(messages))


def text_seeds() -> None:
    ids = b"".join(struct.pack(">H", i * 37 % 2048) for i in range(60))
    put("text", "plain", b"\0" + ids)
    put("text", "stops", b"\2" + b"the" + SEP + "é.".encode() + SEP + ids)
    put("text", "bytes", b"\0" + b"".join(struct.pack(">H", i) for i in range(256)))


for seeds in (json_seeds, config_seeds, safetensors_seeds, tokenizer_seeds, encode_seeds, chat_seeds, text_seeds):
    seeds()
