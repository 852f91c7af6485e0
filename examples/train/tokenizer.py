"""Train the byte-level BPE tokenizer and write it as the DeepSeek-V2 family spells it.

    python tokenizer.py ../model

The pre-tokenizer is the family's, step by step.  Unlike the released vocabulary
(243 single bytes), this one holds all 256, so that any bytes can be encoded.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import data

BASE_VOCAB = 2000  # BOS and EOS follow; the model's other rows up to 2048 are padding

# Cased letters of an older Unicode version, as in the released file.
LETTERS = """41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5
3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D
1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB
1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149
214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06
FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"""
PUNCTUATION = "!-/:-~！-／：-～‘-‟\u3000-。"

CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def letters() -> str:
    return "".join("-".join(chr(int(x, 16)) for x in item.split("-")) for item in LETTERS.split())


def blank() -> Tokenizer:
    patterns = [r"[\r\n]", rf"\s?[{letters()}]+", rf"\s?[{PUNCTUATION}]+", r"\s+$", "[一-龥ࠀ-一가-\ud7ff]+"]
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.Sequence([])
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
        + [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.decoder = decoders.ByteLevel()
    return tok


def corpus(seed: int = 1) -> Iterator[str]:
    """All kinds of documents; `blank` serves to count tokens (its pieces are bytes: short fillers)."""
    rng, tok = random.Random(seed), blank()
    for _ in range(6000):
        for doc in (data.story_document(rng), data.chat_document(rng, 200), data.chat_document(rng, 200), data.retrieval_document(rng, tok, 80)):
            yield "".join(t for t, _ in doc).replace(data.EOS, "")


def train(folder: Path) -> None:
    tok = blank()
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_VOCAB, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, special_tokens=[]
    )
    tok.train_from_iterator(corpus(), trainer)
    tok.add_tokens([AddedToken(t, special=True, normalized=True) for t in (data.BOS, data.EOS)])
    d = json.loads(tok.to_str())
    # Newer versions of the tokenizers library write merges as pairs; the family's files have strings.
    d["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in d["model"]["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(d, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def special(content: str) -> dict[str, Any]:
        return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": special(data.BOS),
        "clean_up_tokenization_spaces": False,
        "eos_token": special(data.EOS),
        "legacy": True,
        "model_max_length": 2048,
        "pad_token": special(data.EOS),
        "sp_model_kwargs": {},
        "unk_token": None,
        "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    check(Tokenizer.from_file(str(folder / "tokenizer.json")))


def check(tok: Tokenizer) -> None:
    """No token joins a digit or a newline with anything; encoding loses nothing."""
    vocab = tok.get_vocab(with_added_tokens=False)
    assert not [t for t in vocab if len(t) > 1 and any(c.isdigit() or c in "ĊčÄ" and c != "Ä" for c in t)]
    assert sorted(vocab.values()) == list(range(len(vocab))) and set(pre_tokenizers.ByteLevel.alphabet()) <= set(vocab)
    assert tok.token_to_id(data.BOS) == len(vocab) and tok.token_to_id(data.EOS) == len(vocab) + 1
    for s in ("naïve café — “quoted”… 你好，世界！ 12345\r\n\t x  ", "Mira was 47 years old.\n\n"):
        assert tok.decode(tok.encode(s).ids) == s
    print(f"{len(vocab)} base tokens;", tok.encode("User: What is 47+38?\n\nAssistant: 47+38=85." + data.EOS).tokens)


if __name__ == "__main__":
    train(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "../model"))
