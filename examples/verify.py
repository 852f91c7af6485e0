#!/usr/bin/env python3
"""dsv2-verify: compare libdsv2 with Hugging Face's code on a real checkpoint: token ids, chat template, logits.

SPDX-License-Identifier: MIT

    dsv2-verify FOLDER                  needs: pip install torch transformers tokenizers jinja2 numpy

Prints a table and a verdict; the exit status is 0 when everything agrees.
"""
import argparse
import json
import os
import sys
from pathlib import Path

try:
    import dsv2
except ImportError:  # run from a source tree
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bindings" / "python"))
    try:
        import dsv2
    except ImportError:
        sys.exit("dsv2-verify: the Python package dsv2 is missing: pip install bindings/python")

TEXTS = [
    "", "Hello world", " Hello world", "Hello, world!", "Hello\n\nworld", "  two  spaces  ", "trailing   ", "\t\tx\r\n\r\n",
    "\tdef f(x):\n\t\treturn x**2  # 3.14\n", "I've told 12345 people, don’t ’s", "foo_bar ab12 C++ 11 x=1;y=22;z=333",
    "你好，世界！我在2024年学习DeepSeek。", "中文  abc 中文 字", "Füße öäü naïve café — “quoted”…", "😀👍🏽 emoji ❤️‍🔥 🏳️‍🌈",
    "한국어 text", "日本語のテキスト", "½ ² ①② १ २", "a\u00a0b\u3000c\u200bx\u180e", "שלום العربية", "e\u0301 \u1e9b\u0323", "a" * 1000, " " * 300,
    "<｜end▁of▁sentence｜> <｜User｜> <|EOT|>", "\x00\x01\x7f",
]
CHATS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "1+1=?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " a\n"}, {"role": "assistant", "content": ""}],
]
PROMPT = ("The quick brown fox jumps over the lazy dog. In 2024 there were 365 + 1 days. def f(x):\n    return x * 2\n"
          "Das ist ein kurzer Satz. 你好，世界！ ")
results = []


def report(what, count, detail, ok):
    results.append(ok)
    print(f"  {'ok  ' if ok else 'FAIL'}  {what:28} {count:>14}  {detail}", flush=True)


def token(config, name):
    value = config.get(name)
    return value["content"] if isinstance(value, dict) else value or ""


def verify_ids(folder, model, extra):
    from tokenizers import Tokenizer  # the file itself: Transformers' own Llama class would replace its rules

    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = TEXTS + extra
    wrong = [t for t in texts if model.tokenize(t) != reference.encode(t, add_special_tokens=False).ids]
    report("token ids", f"{len(texts)} texts", f"first that differs: {wrong[0]!r}" if wrong else "all equal", not wrong)
    wrong = [t for t in texts if model.detokenize(model.tokenize(t)) != reference.decode(model.tokenize(t), skip_special_tokens=False)]
    report("text from ids", f"{len(texts)} texts", f"first that differs: {wrong[0]!r}" if wrong else "all equal", not wrong)


def template_source(folder, config):
    """The template that Transformers takes: a file of its own comes first; of a list, "default"."""
    file, source = folder / "chat_template.jinja", config.get("chat_template")
    if file.exists():
        return file.read_text(encoding="utf-8")
    if isinstance(source, list):
        return {named["name"]: named["template"] for named in source}.get("default")
    return source


def verify_template(folder, model):
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    source = template_source(folder, config)
    if not source:
        print("  -     chat template                             the checkpoint has none")
        return
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    problems = []
    for messages in CHATS:
        for generate in (True, False):
            expected = template.render(messages=messages, add_generation_prompt=generate, bos_token=token(config, "bos_token"),
                                       eos_token=token(config, "eos_token"))
            if model.chat_text(messages, generate=generate) != expected:
                problems.append(f"{messages}: expected {expected!r}")
    report("chat template", f"{2 * len(CHATS)} chats", problems[0] if problems else f"all equal ({model.info.chat_template})", not problems)


def verify_logits(folder, model, dtype, n_tokens):
    import numpy
    import torch
    from transformers import DeepseekV2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    ids = model.tokenize(PROMPT * 50, bos=True)[:n_tokens]
    try:
        reference = DeepseekV2ForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager")
    except TypeError:  # Transformers before 4.56
        reference = DeepseekV2ForCausalLM.from_pretrained(folder, torch_dtype=getattr(torch, dtype), attn_implementation="eager")
    scaling = reference.model.layers[0].self_attn.scaling
    repaired = abs(scaling - model.info.softmax_scale) > 1e-6
    if repaired:  # releases without YaRN's factor in the softmax scale
        for layer in reference.model.layers:
            layer.self_attn.scaling = model.info.softmax_scale
    print(f"  -     softmax scale                             {model.info.softmax_scale:.10f}; Transformers' was {scaling:.10f}"
          f"{', repaired' if repaired else ''}")
    with torch.no_grad():
        theirs = reference(torch.tensor([ids])).logits[0].double().numpy()
    del reference
    ours = numpy.empty_like(theirs)
    with model.session(n_ctx=len(ids), kv="f32") as session:
        for i, t in enumerate(ids):
            session.prefill([t])
            ours[i] = session.logits
    n = model.info.n_tokens  # padding rows mean nothing
    ours, theirs = ours[:, :n], theirs[:, :n]

    def log_softmax(x):
        x = x - x.max(axis=1, keepdims=True)
        return x - numpy.log(numpy.exp(x).sum(axis=1, keepdims=True))

    error = numpy.abs(ours - theirs).max() / numpy.abs(theirs).max()
    p, q = log_softmax(theirs), log_softmax(ours)
    kl = (numpy.exp(p) * (p - q)).sum(axis=1).mean()
    agree = (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()
    # In fp32 both compute the same; in bf16 the reference rounds every activation, so only closeness can be asked for.
    exact = dtype == "float32"
    detail = f"against {dtype}: largest error {error:.1e} of the largest logit, mean KL {kl:.1e}, same best token {agree:.1%}"
    report("logits", f"{len(ids)} positions", detail, error < 1e-3 if exact else kl < 0.05 and agree > 0.9)


def main():
    parser = argparse.ArgumentParser(prog="dsv2-verify", description="Compare libdsv2 with Hugging Face's code on a checkpoint.",
                                     epilog="Needs: pip install torch transformers tokenizers jinja2 numpy")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="what Transformers computes in; bfloat16 takes half the memory (default float32)")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="positions whose logits are compared (default 128)")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="more texts to tokenize, one a line")
    parser.add_argument("--no-logits", action="store_true", help="ids and template only: weights are still loaded here, but not by torch")
    parser.add_argument("--library", metavar="PATH", help="libdsv2.so.0 or the folder that has it")
    args = parser.parse_args()

    os.environ["HF_HUB_OFFLINE"] = "1"  # the folder is all there is to read
    try:
        if args.library:
            dsv2.load_library(args.library)
        extra = args.texts.read_text().splitlines() if args.texts else []
        print(f"{args.folder}: libdsv2 {'.'.join(map(str, dsv2.version()))}")
        with dsv2.Model(args.folder) as model:
            verify_ids(args.folder, model, extra)
            verify_template(args.folder, model)
            if not args.no_logits:
                verify_logits(args.folder, model, args.dtype, args.tokens)
    except (dsv2.Error, OSError) as e:
        sys.exit(f"dsv2-verify: {e}")
    except ImportError as e:
        sys.exit(f"dsv2-verify: {e}; needed: pip install torch transformers tokenizers jinja2 numpy, and libdsv2 (--library)")
    print("Verdict: everything agrees." if all(results) else f"Verdict: {results.count(False)} of {len(results)} checks FAILED.")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
