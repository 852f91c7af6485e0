"""Write the seed inputs of the fuzz targets into corpus/: small files that mutation can start from, one for each rule of a parser that
mutation would hardly meet by itself.

    python3 tests/fuzz/make_seeds.py [FOLDER]

Findings and inputs that reached new code are added to corpus/ by `tests/fuzz/fuzz.sh`."""

import copy
import json
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
CORPUS = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "corpus"
SEP = b"\xff"
ABSENT = object()


def put(target: str, name: str, data: bytes) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{name}").write_bytes(data)


def text(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def edited(base: object, path: str, value: object) -> object:
    """A copy in which the member at a path such as "model.merges.0" is another one, or ABSENT."""
    result = node = copy.deepcopy(base)
    *parents, last = [int(k) if k.isdigit() else k for k in path.split(".")]
    for k in parents:
        node = node[k]  # type: ignore[index]
    if value is ABSENT:
        del node[last]  # type: ignore[attr-defined]
    else:
        node[last] = value  # type: ignore[index]
    return result


def json_seeds() -> None:
    for i, source in enumerate((
        '{"a": [1, -0.5e3, true, false, null, "\\u00e9\\ud83d\\ude00\\n"], "b": {"c": {}}}',
        "[]", " 9007199254740992 ", '"\\"\\\\\\/\\b\\f\\n\\r\\t"', '{"a":1,"a":2}', '{"\\u0000":1}', "[01]", "[1e400]",
        "[9007199254740993]", "[1] x", '["\\ud800"]', "[" * 70 + "]" * 70, '{"é": "日本 😀"}', "[1.7976931348623157e308,5e-324]",
        "tru", "[1,]", "{,}", '{"a" 1}', '{"i":3,"d":0.25,"b":true,"s":"x","n":null,"o":{"f":-1e30},"l":[7]}',
        '{"\\u0061b":0,"ab":1}', "[17976931348623158079e289]", '"' + "x" * 70 + '"', '["\\"\\u007f"]',
    )):
        put("json", str(i), source.encode())
    put("json", "bad-utf8", b'["\xc0\xaf"]')
    put("json", "no-memory", b'{"a":[1]}\xfd\3')


def config_seeds() -> None:
    generation = {"bos_token_id": 0, "eos_token_id": [1, 2], "do_sample": True, "temperature": 0.3, "top_p": 0.95, "top_k": 50,
                  "min_p": 0.1, "repetition_penalty": 1.1}
    for path in sorted(GOLDEN.glob("*/config.json")):
        put("config", path.parent.name, path.read_bytes() + SEP + text(generation))
    yarn = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1, "mscale": 0.7,
            "mscale_all_dim": 0.7}
    base = {"model_type": "deepseek_v2", "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1, "rope_theta": 10000,
            "rope_scaling": yarn}
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 2, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    put("config", "least", text(base))
    put("config", "experts", text(base | experts))
    for i, (key, value) in enumerate((
        ("eos_token_id", list(range(17))), ("eos_token_id", [1, 99]), ("eos_token_id", None), ("eos_token_id", ABSENT),
        ("bos_token_id", ABSENT), ("quantization_config", {"quant_method": "fp8"}), ("quantization_config", 1),
        ("routed_scaling_factor", 1e39), ("rope_scaling.beta_fast", 0.5), ("rope_scaling.attention_factor", 1),
        ("rope_scaling.truncate", False), ("rope_scaling.factor", 0.5), ("rope_scaling.mscale", 1e300), ("rope_scaling.rope_type", "linear"),
        ("rope_scaling.type", ABSENT), ("rope_scaling.type", "linear"), ("rope_theta", 1), ("rope_theta", 0), ("rope_scaling", 3),
        ("rope_parameters", 3), ("rope_parameters", yarn), ("rope_parameters", yarn | {"factor": 41}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 10000}), ("rope_parameters", yarn | {"rope_theta": 5}),
        ("rope_parameters", yarn | {"partial_rotary_factor": 0.5}), ("rope_scaling", yarn | {"original_max_position_embeddings": 6, "beta_fast": 1}), ("attention_bias", True), ("mlp_bias", 1),
        ("tie_word_embeddings", True), ("rms_norm_eps", 0), ("hidden_act", "gelu"), ("architectures", ["LlamaForCausalLM"]),
        ("architectures", [1]), ("architectures", []), ("architectures", "x"), ("model_type", "deepseek"), ("model_type", "llama"),
        ("model_type", ABSENT), ("torch_dtype", "float16"), ("num_key_value_heads", 1), ("qk_rope_head_dim", 3), ("q_lora_rank", None),
        ("scoring_func", "sigmoid"), ("norm_topk_prob", True), ("topk_method", "noaux_tc"), ("topk_method", None),
    )):
        put("config", f"edit-{i}", text(edited(base, key, value)))
    quantization_seeds(base)
    put("config", "dtypes", text(base | {"torch_dtype": "float16", "dtype": "bfloat16"}))
    put("config", "default-ids", text({"model_type": "deepseek_v2"}))
    put("config", "tiny-theta", text(base | {"rope_theta": 5e-324, "qk_rope_head_dim": 256, "rope_scaling": None}))
    put("config", "no-theta", text({k: v for k, v in base.items() if k != "rope_theta"} | {"rope_parameters": {"rope_theta": -1}}))
    put("config", "huge", text(base | experts | {"n_routed_experts": 4096, "hidden_size": 1 << 20, "moe_intermediate_size": 1 << 20}))
    for i, (key, value) in enumerate((
        ("num_experts_per_tok", None), ("num_experts_per_tok", 9), ("num_experts_per_tok", 5), ("n_group", None), ("n_group", 3),
        ("topk_group", 5), ("topk_group", None), ("topk_method", "gready"), ("topk_method", "greedy"),
    )):
        put("config", f"experts-{i}", text(base | edited(experts, key, value)))  # type: ignore[operator]
    for i, change in enumerate((
        {"top_k": -1}, {"top_k": None, "temperature": None, "do_sample": None}, {"top_p": 0}, {"min_p": 2}, {"repetition_penalty": 0},
        {"eos_token_id": 98}, {"eos_token_id": "x"}, {"min_new_tokens": 3}, {"temperature": "hot"},
    )):
        put("config", f"generation-{i}", text(base) + SEP + text(generation | change))
    put("config", "generation-list", text(base) + SEP + b"[]")
    put("config", "no-memory", text(base) + SEP + text(generation) + b"\xfd\5")


def quantization_seeds(base: dict[str, object]) -> None:
    auto = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head", "re:.*head"], "kv_cache_scheme": "static"}
    block = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    group = {"targets": ["Linear"], "input_activations": None, "weights": {"num_bits": 8, "type": "float", "symmetric": True,
                                                                           "strategy": "channel", "dynamic": False}}
    packed = {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
              "ignore": ["lm_head", "re:.*gate$"], "kv_cache_scheme": None, "config_groups": {"group_0": group}}
    module = "model.layers.11.self_attn.kv_b_proj"
    for i, (config, path, value) in enumerate((
        (auto, "ignored_layers.0", module), (auto, "ignored_layers.0", f"re:{module}"), (auto, "ignored_layers.0", "re:model.*kv_b"),
        (auto, "ignored_layers.0", "re:("), (auto, "ignored_layers.1", 1), (auto, "ignored_layers", "lm_head"), (auto, "ignored_layers", None),
        (auto, "modules_to_not_convert", []), (auto, "activation_scheme", "token"), (auto, "activation_scheme", 1), (auto, "quant_method", "awq"),
        (auto, "quant_method", 3), (auto, "quant_method", ABSENT), (auto, "fmt", "e5m2"),
        (auto, "ignored_layers.0", "re:" + 14 * "(.*)" + "[!?]$"), (auto, "ignored_layers.0", "re:\\C"),
        (block, "weight_block_size", None), (block, "weight_block_size", [128]), (block, "weight_block_size.1", 64), (block, "weight_block_size", 1),
        (packed, "format", "pack-quantized"), (packed, "quantization_status", "frozen"), (packed, "sparsity_config", {}),
        (packed, "sparsity_config", {"format": "dense"}), (packed, "config_groups", {}), (packed, "config_groups.group_0", 1),
        (packed, "config_groups.group_0.targets", None), (packed, "config_groups.group_0.format", "int"), (packed, "config_groups.group_0.weights", []),
        (packed, "config_groups.group_0.weights.num_bits", 4), (packed, "config_groups.group_0.weights.num_bits", 1.5),
        (packed, "config_groups.group_0.weights.type", "int"), (packed, "config_groups.group_0.weights.symmetric", False),
        (packed, "config_groups.group_0.weights.dynamic", True), (packed, "config_groups.group_0.weights.strategy", "tensor"),
        (packed, "config_groups.group_0.weights.strategy", "group"), (packed, "config_groups.a", edited(group, "weights.strategy", "tensor")),
    )):
        put("config", f"quantization-{i}", text(base | {"quantization_config": edited(config, path, value)}))
    for i in range(1, 12):
        put("config", f"quantization-no-memory-{i}", text(base | {"quantization_config": packed}) + bytes([0xFE, i]))


def header(tensors: dict[str, object], data: int) -> bytes:
    source = text(tensors)
    source += b" " * (-len(source) % 8)
    return struct.pack("<Q", len(source)) + source + bytes(data)


def weights(tensors: dict[str, tuple[str, list[int], int]], metadata: bool = False) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}} if metadata else {}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return header(entries, end)


def safetensors_seeds() -> None:
    a = weights({"x": ("F32", [2, 3], 24), "y": ("BF16", [4], 8), "z": ("F8_E4M3", [], 1)}, metadata=True)
    b = weights({"w": ("F16", [0, 3], 0), "v": ("I64", [1], 8)})
    part = b"\xff\xfe"
    put("safetensors", "single", b"\0" + a)
    put("safetensors", "zero", b"\0" + b)
    put("safetensors", "empty", b"\0" + weights({}))
    put("safetensors", "nothing", b"")
    good = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
    for i, (entries, data) in enumerate((
        ({"x": good | {"shape": [1] * 9}}, 2), ({"x": good | {"shape": [1 << 40, 1 << 40]}}, 2), ({"x": good | {"shape": 2}}, 2),
        ({"x": good | {"dtype": "F64", "shape": [1 << 50, 1 << 12]}}, 2), ({"x": good | {"shape": [-1]}}, 2), ({"x": 1}, 2),
        ({"__metadata__": 1}, 0), ({"__metadata__": {"a": 1}}, 0), ({"x": good | {"data_offsets": [1, 3]}}, 3),
        ({"x": good, "y": good}, 2), ({"x": good, "y": good | {"data_offsets": [3, 5]}}, 5), ({"x": good}, 3), ({"x": good}, 1),
        ({"x": good | {"data_offsets": [0, 2, 4]}}, 2), ({"x": good | {"dtype": "U9"}}, 2), ({"x": good | {"dtype": 8}}, 2),
        ({"x": good | {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, 2), ({"x": good | {"shape": [3]}}, 2),
    )):
        put("safetensors", f"edit-{i}", b"\0" + header(entries, data))
    for i, source in enumerate((b"\1\0", struct.pack("<Q", 1 << 62), struct.pack("<Q", 100) + b"{}", struct.pack("<Q", 1) + b"{", struct.pack("<Q", 2) + b"[]")):
        put("safetensors", f"header-{i}", b"\0" + source)
    put("safetensors", "many", b"\0" + weights({f"t{i}": ("U8", [1], 1) for i in range(130)}))
    names = [f"model-{i:05d}-of-000002.safetensors" for i in (1, 2)]
    files = {"x": names[0], "y": names[0], "z": names[0], "w": names[1], "v": names[1]}
    for name, index, shards in (
        ("sharded", files, [a, b]), ("twice", files, [a, weights({"x": ("I64", [1], 8)})]), ("swapped", files | {"x": names[1]}, [a, b]),
        ("missing", files | {"u": names[1]}, [a, b]), ("unlisted", {"x": names[0]}, [a, b]), ("no-shard", {"x": "other"}, [a, b]),
        ("path", {"x": "../x"}, [a, b]), ("number", {"x": 1}, [a, b]), ("no-entry", {}, [a, b]),
    ):
        put("safetensors", name, b"\2" + part.join([text({"weight_map": index}), *shards]))
    sharded = b"\2" + part.join([text({"weight_map": files}), a, b])
    for n in range(1, 12):
        put("safetensors", f"reader-{n}", sharded + b"\xfc" + bytes([n]))
        put("safetensors", f"no-memory-{n}", sharded + b"\xfe" + bytes([n]))
    for n in range(1, 6):
        put("safetensors", f"single-no-memory-{n}", b"\0" + a + b"\xfe" + bytes([n]))


SPLIT = {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(pattern: str, **other: object) -> dict[str, object]:
    return SPLIT | {"pattern": {"Regex": pattern}} | other


def added(i: int, content: object, **other: object) -> dict[str, object]:
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True} | other


def tokenizer_seeds() -> None:
    text_with_all = "<b> aab hi  <n>he, hiab hi-\u3000<b> \u00e9hi\u4e00 12\u0660 aaa".encode()
    base = {
        "normalizer": None, "added_tokens": [added(9, "<b>"), added(10, "hi", single_word=True, lstrip=True, rstrip=True, special=False),
                                             added(11, "<n>", normalized=False)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split("a?b+"), {"type": "Digits", "individual_digits": True}, BYTES]},
        "post_processor": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "aa": 4, "日": 5, "h": 6, "Ã": 7}, "merges": ["a b", "a a"]},
    }

    def one(name: str, root: object, config: bytes = b"", text: bytes = text_with_all) -> None:
        put("tokenizer", name, SEP.join([globals()["text"](root), config, text]))

    one("small", base)
    merges = "model.merges"
    steps = "pre_tokenizer.pretokenizers"
    for i, (path, value) in enumerate((
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}, None]}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}), ("normalizer", {"type": "Sequence"}),
        ("normalizer", {"type": 1}), ("normalizer", 1),
        ("decoder", None), ("decoder", {"type": 1}), ("decoder", {"type": "Fuse"}),
        ("post_processor", None), ("post_processor", 1), ("post_processor", {"type": 1}), ("post_processor", {"type": "Bert"}),
        ("post_processor", {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<b>"}}]}),
        ("post_processor", {"type": "TemplateProcessing", "single": 1}), ("post_processor", {"type": "Sequence", "processors": 1}),
        ("post_processor", {"type": "Sequence", "processors": [{"type": "ByteLevel"}, 1]}),
        ("model", 1), ("model.type", 1), ("model.type", "Unigram"), ("model.dropout", 0), ("model.dropout", 0.5), ("model.unk_token", "a"),
        ("model.end_of_word_suffix", ""), ("model.byte_fallback", True), ("model.ignore_merges", True), ("model.vocab", {}),
        ("model.merges", 1), ("model.vocab.a", "x"), ("model.vocab.a", 0.5), ("model.vocab.a", 4096), ("model.vocab.a", -1),
        ("model.vocab.a", 1), ("model.vocab", {"": 0}), ("model.vocab.aa", 400),
        (merges, [["a", "b"], ["a", "a"]]), (merges, ["ab"]), (merges, ["a b c"]), (merges, [1]), (merges, [["a"]]), (merges, ["a x"]),
        (merges, [" a"]), (merges, ["a longer-than-all"]), (merges, ["a h"]), (merges, ["a b", "a b"]), (merges, ["a 日"]),
        ("added_tokens", 1), ("added_tokens", None), ("added_tokens.0", 1), ("added_tokens.0.id", "x"), ("added_tokens.0.content", ""),
        ("added_tokens.0.content", "x" * 513), ("added_tokens.0.id", 0), ("added_tokens.0.content", "<n>"), ("added_tokens.0.content", "ab"),
        ("added_tokens.0.content", "hi"), ("added_tokens.0.special", 1), ("added_tokens.0.id", 10), ("added_tokens.0.normalized", False),
        ("pre_tokenizer", None), ("pre_tokenizer", 1), ("pre_tokenizer", BYTES), ("pre_tokenizer", {"type": "Whitespace"}),
        ("pre_tokenizer", BYTES | {"use_regex": True, "add_prefix_space": True}), ("pre_tokenizer", {}), ("pre_tokenizer", SPLIT),
        (steps, 1), (steps, [BYTES, SPLIT]), (steps, [1]), (steps + ".0", {"type": "Digits"}),
        (steps, [{"type": "Sequence", "pretokenizers": [SPLIT, BYTES]}]), (steps, [SPLIT] * 65 + [BYTES]),
        (steps, [SPLIT] * 64 + [BYTES | {"use_regex": True}]), (steps + ".2.use_regex", 1),
        (steps, [BYTES | {"add_prefix_space": True}, BYTES]), (steps, [{"type": "Digits"}] * 65),
        (steps + ".0.pattern", 1), (steps + ".0.pattern", {}), (steps + ".0.pattern", {"String": "ab"}),
        (steps + ".0.pattern", {"String": "ab", "Regex": "ab"}), (steps + ".0.pattern", {"Regex": "(a|b)*"}),
        (steps + ".0.pattern", {"Regex": "(?=b)"}), (steps + ".0.pattern", {"Regex": "("}), (steps + ".0.pattern", {"Regex": "\\s+(?!\\S)"}),
        (steps + ".0.behavior", ABSENT), (steps + ".0.behavior", "None"), (steps + ".0.behavior", "Removed"),
        (steps + ".0.behavior", "MergedWithPrevious"), (steps + ".0.behavior", "MergedWithNext"), (steps + ".0.behavior", "Contiguous"),
        (steps + ".0.invert", True),
    )):
        one(f"edit-{i}", edited(base, path, value))
    nested: object = BYTES
    for _ in range(20):
        nested = {"type": "Sequence", "pretokenizers": [nested]}
    one("nested", edited(base, "pre_tokenizer", nested))
    one("list", [])
    whole = edited(base, "pre_tokenizer", BYTES)
    one("long", whole, text=b"ab" * 40 + b"aaaab" * 10)
    deep = edited(edited(whole, "model.vocab", {t: i for i, t in enumerate(("a", "b", "ab", "ba", "aba", "abab", "aa", "abaaba"))}),
                  merges, ["b a", "a b", "a ba", "ab ab", "a a", "aba aba"])
    one("deep", edited(deep, "added_tokens", None), text=b"aba" * 30 + b"ab" * 30)
    one("long-unknown", whole, text=b"x" * 70)
    one("invalid", whole, text=b"a\xc0b\xe4\xbd")
    for i, config in enumerate(({"add_bos_token": True}, {"tokenizer_class": "LlamaTokenizerFast"}, {"add_bos_token": None}, {"tokenizer_class": 1},
                                {"add_bos_token": 1}, [])):
        one(f"config-{i}", base, text(config))
    one("swallowed", edited(base, "added_tokens.1", added(10, "\n", lstrip=True, rstrip=True)), text=b"a\n\n\nb")
    one("words", base, text="<b> _hi \u00e9hi \u0301hi hi\u24b6 hi\u200d hi\u203f hi\u2160 hi\u01c5 hi\u02b0 hi\u0903 hi\u20dd hi. hi".encode())
    for n in range(1, 40, 3):
        put("tokenizer", f"no-memory-{n}", SEP.join([text(whole), b"", text_with_all]) + b"\xfe" + bytes([n]))


TEXTS = ["", "Hello, world! 12345", "  two  spaces  ", "\tdef f(x):\r\n\treturn x**2\n", "naïve café — “quoted”…",
         "你好，世界！", "😀👍🏽 emoji", "한국어 text", "½ ² ①② १ २", "a\u00a0b\u3000c\u200bx\u180e", "a" * 300, " " * 300, "e\u0301" * 9,
         "<｜begin▁of▁sentence｜>User: hi<｜end▁of▁sentence｜>x<｜end▁of▁sentence｜>y", "\u0000\u0001\u007f", "שלום مرحبا", "thereandtherestandinthereon" * 4,
         "日本" * 30, "!?" * 40 + "\n\n\r\n"]


def regex_seeds() -> None:
    patterns = [step["pattern"]["Regex"] for step in
                json.loads((HERE.parents[1] / "examples/model/tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"] if "pattern" in step]
    patterns += ["a", "[a-z]", " ?[a-z!]+", "\\s+", "\\s?\\s+", "[\\s!]+$", "a+$", "[\\u4e00-\\u9fa5\\x{800}-\\x{1044F}]+", "[\\]\\[\\\\\\-^]+",
                 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
                 "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"]
    patterns += ["\\S", "\\w+", "\\W", "\\bth", "\\B", "\\d\\D", "\\h\\H", "[\\w\\d\\D\\S\\h\\r\\v\\f]", "[^a]", "\\pL", "\\p{}", "\\p{^Lu}+", "\\P{Han}",
                 "\\p{Lu-}", "\\Ath\\z", "e\\Z", "\\u12", "\\xe9", "\\x{e9}", "\\t\\n\\a\\e", "\\v", "\\q", "\\1", "\\.", "\\", "[", "[]", "[[a]]", "[a&&b]",
                 "[\\W]", "[\\b]", "[\\H]", "[\\A]", "(a)", "(*F)", "(?<=a)e", "(?<!a)e", "(?>a)", "(?x:a)", "(?m:.)", "(?-i:A)", "(?i:sS)", "(?i:[st)]\\.)", "(?im:s|[st]+)", "(?i)a", "(?", "(", "a{2}",
                 "a{,2}", "a{1,2}?", "a{1}?", "a{2}+", "a{", "a{x}", "{", "^t", "e$", ".", "a++", "a*?", "x*", "(a+)+$", "[a-", "[a-\\s]", "[\\s-a]", "[z-a]",
                 "[-a]", "a?b", "a?b+$", "\\x{110000}", "\\x{}", "\\x{41", "[\\x{10000}-\\x{10FFFF}a]+", "\\ud800", "\u4e00+", "(?=t)", "", "[\\q]", "[\\p{L}]+"]
    walk = "the <there> ab\u00e9 \u4e00\u9fa5 \u3000\u180e\n 12\u0661 A_z\r\n\U0001044f's tail  ".encode()
    for i, pattern in enumerate(patterns):
        put("regex", str(i), pattern.encode() + SEP + walk)
    put("regex", "literal", b"\1he" + SEP + walk)
    put("regex", "no-match", b"q(?=x)" + SEP + b"x" + "é".encode() * 700)
    put("regex", "explodes", b"(a|aa)+$" + SEP + b"a" * 60 + b"b")
    for n in (0, 28, 36):
        put("regex", f"deep-{n}", b"(?:(a)|b)*(?=c)" + SEP + b"ab" * 1000 + (b"\xfe" + bytes([n]) if n else b""))
    for n in range(20, 36):
        put("regex", f"match-no-memory-{n}", b"(?:th|e)+(?=x)" + SEP + b"the there\xfe" + bytes([n]))
    for n in range(1, 12):
        put("regex", f"no-memory-{n}", b"(?:th|\\p{Lu})+[^a]" + SEP + walk + b"\xfe" + bytes([n]))
        put("regex", f"class-no-memory-{n}", "[\U00010000-\U00010400]?[a\U00010000]+".encode() + SEP + walk + b"\xfe" + bytes([n]))


def encode_seeds() -> None:
    for i, sample in enumerate(TEXTS):
        put("encode", str(i), sample.encode())
    put("encode", "invalid", b"a\xe4\xbd b\xf0\x9f\x98 \xc0\xaf \xed\xa0\x80 \xff")
    for n in range(1, 5):
        put("encode", f"no-memory-{n}", b"Hello " * 30 + b"\x80\xfe" + bytes([n]))
        put("encode", f"long-no-memory-{n}", b"a" * 70 + b"\xfe" + bytes([n]))


def chat_seeds() -> None:
    templates = json.loads((GOLDEN / "template" / "templates.json").read_text())
    messages = [b"system", b"Be brief.", b"user", "Hé?<｜end▁of▁sentence｜>".encode(), b"assistant", b"Yes", b"tool", b"42", b"tool", b"43", b"user", b"x",
                b"other", b""]
    special = {"bos_token": "<B>", "eos_token": {"content": "<E>"}}

    def one(name: str, config: object) -> None:
        put("chat", name, SEP.join([text(config), *messages]))

    for name, entry in templates.items():
        template = entry["chat_template"]
        one(name, special | {"chat_template": template})
        one(f"{name}-list", special | {"chat_template": [{"name": "default", "template": template}]})
    v2 = templates["v2-chat"]["chat_template"]
    put("chat", "none", b"{}" + SEP + SEP.join(messages))
    put("chat", "absent", SEP + SEP.join(messages))
    put("chat", "tool-last", SEP.join([text(special | {"chat_template": templates["v2.5"]["chat_template"]}), *messages[:8]]))
    calls = [b"\2function\2f\2{}", "\2x\2é\2\"<E>\"\2function\2g\2<｜tool▁calls▁end｜>".encode(), b"\2open\2call"]
    for i, config in enumerate((templates["v2.5"]["chat_template"], v2)):
        for j, call in enumerate(calls):
            called = [b"user", b"w?", b"assistant", call, b"tool", b"1", b"assistant", b"Yes", b"user", b"w?", b"assistant", call, b"tool", b"2"]
            put("chat", f"calls-{i}-{j}", SEP.join([text(special | {"chat_template": config}), *called]))
            put("chat", f"calls-invalid-{i}-{j}", SEP.join([text(special | {"chat_template": config}), b"assistant", call + b"\xc0"]))
    put("chat", "invalid", SEP.join([text(special | {"chat_template": v2}), b"user", b"\xc0"]))
    for i, template in enumerate((
        "{#- note -#}\n" + v2, "{# note +#}\n" + v2, v2 + "\n", v2.replace("{% for", "  {% for"), v2.replace("%}{%", "-%}\n {%-"), v2.replace("'", '"'),
        v2.replace("%}", "+%}"), "{# open", "{% open", "{{ 'open", "{{ '\\q' }}", "{{ a b\n}}x\n  {% c %}\n y", "\1", "{{ \1 }}",
        "{{ 'a\\'\"\\\\\n' }}", " \t {%- x -%} \n ", "text\n {%+ x %}", "{", "",
    )):
        one(f"template-{i}", special | {"chat_template": template})
    for i, config in enumerate((
        {"chat_template": v2}, {"chat_template": v2, "bos_token": "b"}, {"bos_token": 1}, {"bos_token": {"content": 1}}, {"chat_template": 1},
        {"chat_template": [1]}, {"chat_template": [{"name": "tool_use", "template": v2}]}, [], {"bos_token": None, "chat_template": None},
    )):
        one(f"config-{i}", config)
    for i, (config, template) in enumerate((
        (special | {"chat_template": 1}, v2), (special, v2), (special, v2.replace("%}{%", "%}\r\n{%")), (special, v2.replace("\\n", "\r")), ({}, v2),
        (special | {"chat_template": v2}, "{{ x }}"), (special, "\2"), (special, ""),
    )):
        put("chat", f"jinja-{i}", SEP.join([text(config), b"\1" + template.encode(), *messages]))
    put("chat", "jinja-invalid", SEP.join([text(special), b"\1\xc0", *messages]))
    for n in range(1, 10):
        put("chat", f"jinja-no-memory-{n}", SEP.join([text(special), b"\1" + v2.encode(), *messages[:6]]) + b"\xfe" + bytes([n]))
        put("chat", f"no-memory-{n}", SEP.join([text(special | {"chat_template": v2}), *messages[:6]]) + b"\xfe" + bytes([n]))


def text_seeds() -> None:
    vocab = json.loads((HERE.parents[1] / "examples/model/tokenizer.json").read_text())["model"]["vocab"]

    def ids(*tokens: str) -> bytes:
        return b"".join(struct.pack(">H", vocab[t]) for t in tokens)

    some = b"".join(struct.pack(">H", i * 37 % 2048) for i in range(60))
    there = ids("t", "h", "e", "r", "e", "Ġ", "t", "h", "e", "n", ".") * 3
    special = struct.pack(">HH", 2000, 2001)
    put("text", "plain", b"\0" + some)
    put("text", "stops", b"\2" + b"the" + SEP + "é.".encode() + SEP + some)
    put("text", "bytes", b"\0" + b"".join(struct.pack(">H", i) for i in range(256)))
    put("text", "cut", b"\0" + ids("Ã", "a", "Ã", "©", "ä", "½"))
    for flags in (0, 0x20, 0x40, 0x60, 0x80):
        put("text", f"stop-{flags:02x}", bytes([2 | flags]) + b"then" + SEP + b"e t" + SEP + special + there)
        put("text", f"overlap-{flags:02x}", bytes([3 | flags]) + b"ere t" + SEP + b"the" + SEP + b"ther" + SEP + there + special)
        put("text", f"late-{flags:02x}", bytes([2 | flags]) + b"he" + SEP + b"there then!" + SEP + there[:20])
        put("text", f"fall-{flags:02x}", bytes([1 | flags]) + b"ththen" + SEP + ids("t", "h", "t", "h", "t", "h", "e", "n"))
    put("text", "null-stop", b"\6" + there)
    put("text", "null-stops", b"\7" + there)
    put("text", "empty-stop", b"\1" + SEP + there)
    put("text", "bad-stop", b"\1\xc0" + SEP + there)
    put("text", "wild", b"\x80\x7f\xff\x80\x00\x10\x00" + there)
    for n in range(1, 9):
        put("text", f"no-memory-{n}", b"\1then" + SEP + there * 8 + b"\xfe" + bytes([n]))


def save_seeds() -> None:
    files, unsealed, small, raw = 1, 2, 4, 8
    of3, of64, of70 = 6, 12, 18 # BF16; see fuzz_save.c

    def one(name: str, flags: int, which: int, more: int = 0, *changes: tuple[int, int]) -> None:
        put("save", name, struct.pack(">BBh", flags, which, more) + b"".join(struct.pack(">HB", *c) for c in changes))

    for which in range(36):
        one(f"good-{which}", 0, which)
    for i, (at, value) in enumerate((
        (0, 88), (8, 2), (12, 0), (20, 1), (28, 1), (36, 1), (44, 9), (48, 2), (52, 1), (56, 9), (60, 0), (64, 0), (68, 1), (72, 2), (72, 200), (76, 9), (80, 0),
        (80, 9), (95, 9), (92, 99), (130, 255), (160, 127), (199, 1),
    )):
        one(f"edit-{i}", 0, of3, 0, (at, value))
        one(f"unsealed-{i}", unsealed, of3, 0, (at, value))
    one("logits-only", 0, 0, 52, (80, 11))
    one("no-prompt", 0, of3, 0, (76, 0))
    for more in (1, -1, -200, -5000):
        one(f"length-{more}", 0, of3, more)
        one(f"unsealed-length-{more}", unsealed, of3, more)
    one("small", small, of64)
    one("files", files, of70)
    one("files-short", files | unsealed, of70, -1)
    one("files-empty", files, of3, -5000)
    one("nothing", 0, 0)
    put("save", "raw", bytes([raw, 0]) + b"DSV2SESS" + struct.pack("<IQQQQ10I", 2, 100, 0, 0, 0, 11, 3, 0, 1, 18, 64, 0, 0, 0, 0) + bytes(16))
    put("save", "raw-short", bytes([raw | unsealed, 0]) + b"DSV2")
    for n in range(1, 40):
        put("save", f"no-memory-{n}", struct.pack(">BBh", n % 2, of70, 0) + b"\xfe" + bytes([n]))


for seeds in (json_seeds, config_seeds, safetensors_seeds, tokenizer_seeds, regex_seeds, encode_seeds, chat_seeds, text_seeds, save_seeds):
    seeds()
