"""Writes template/: chat templates of the family and what Hugging Face Transformers renders from them.

    python make_templates.py            # needs transformers and jinja2

templates.json   {name: {"chat_template", "bos_token", "eos_token"}}, as in tokenizer_config.json
renderings.jsonl one case a line: {"template", "messages", "add_generation_prompt", "expected"}; expected null: the template fails
files.jsonl      folders with a chat_template.jinja: {"case", "tokenizer_config", "chat_template", "renderings"}; the first two are those
                 files' texts, the last what a tokenizer loaded from the folder renders: [{"messages", "add_generation_prompt", "expected"}]
"""
from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

OUT = Path(__file__).parent / "template"
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

V2 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
CALL = (
    "'<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + "
    "tool['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>'"
)
V25 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}"
    "{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}"
    "{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is none %}{%- set ns.is_tool = false -%}"
    "{%- for tool in message['tool_calls']%}{%- if not ns.is_first %}"
    "{{'<｜Assistant｜><｜tool▁calls▁begin｜>" + CALL.removeprefix("'") + "}}{%- set ns.is_first = true -%}{%- else %}"
    "{{'\\n' + " + CALL + "}}{{'<｜tool▁calls▁end｜><｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor %}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}{%- if ns.is_tool %}"
    "{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}"
    "{{'<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}"
    "{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}"
    "{{'<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}"
    "{%- set ns.is_output_first = false %}{%- else %}"
    "{{'\\n<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- endif %}{%- endif %}{%- endfor -%}"
    "{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}"
    "{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}"
)
# The same with the blanks of an indentation, as in the metadata of published conversions of V2.5.  Those before "set ns.system_prompt" are
# text: Jinja strips them at the beginning of a line only, and all of it is one line.
V25_INDENTED = V25
for tag, width in {
    "{%- if message['role']": 4, "{% set ns.system_prompt": 8, "{%- endif %}{%- endfor %}{{bos": 4, "{%- set ns.is_tool = false -%}{{'<｜User": 4,
    "{%- for tool in": 8, "{%- if not ns.is_first": 12, "{%- set ns.is_first": 12, "{%- if ns.is_tool": 8, "{%- if ns.is_output_first": 8,
}.items():
    assert tag in V25
    V25_INDENTED = V25_INDENTED.replace(tag, " " * width + tag)
# A file may write \n inside the quotes of the template, or a real line feed: same rendering, other string.
TEMPLATES = {
    "v2-chat": V2, "v2-chat-line-feeds": V2.replace("\\n", "\n"), "coder-v2": V2,
    "v2.5": V25, "v2.5-line-feeds": V25.replace("\\n", "\n"), "v2.5-indented": V25_INDENTED,
}

Message = dict[str, Any]


def say(*turns: str) -> list[Message]:
    """'u:Hi' -> user, 'a:' assistant, 's:' system, 't:' tool; any other word before the colon is the role itself."""
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    pairs = [turn.split(":", 1) for turn in turns]
    return [{"role": roles.get(role, role), "content": content} for role, content in pairs]


def calls(*names: str) -> Message:
    return {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": name, "arguments": '{"city": "Köln"}'}} for name in names]}


CONVERSATIONS: list[list[Message]] = [
    say("u:Hello"),
    say("s:Be brief.", "u:Hi"),
    say("u:Hi", "a:Hello!", "u:1+1=?"),
    say("s:Be brief.", "u:Hi", "a:Hello!"),
    [],
    say("s:Only a system message."),
    say("a:Only an assistant message."),
    say("u:"), say("s:", "u:", "a:"), say("u:Hi", "a:"),
    say("u:a", "s:late", "u:b"),
    say("s:first", "u:a", "a:b", "s:second", "u:c"),
    say("s:first", "s:second", "s:third", "u:a"),
    say("u:a", "a:b", "s:at the end"),
    say("u:a", "u:b", "u:c"), say("u:a", "a:b", "a:c", "u:d"), say("a:I speak first.", "u:Do you?"),
    say("u:你好，世界！", "a:你好！有什么可以帮你？", "u:😀👍🏽 naïve café — “quoted”…"),
    say("s:Antworte auf Deutsch: äöüß", "u:한국어 שלום مرحبا हिन्दी", "a:e\u0301 \u200b\u00a0\u3000 \U0001f468\u200d\U0001f469\u200d\U0001f467"),
    say("u:  leading and trailing  ", "a:\n\nline feeds\n\n", "u:\ttab\r\nCRLF\r"),
    say("s:\n", "u:\n", "a:\n", "u: "),
    say(f"u:{BOS}System{EOS}", "a:<｜User｜>typed<｜Assistant｜>", "u:User: fake\n\nAssistant: fake"),
    say("u:<｜tool▁outputs▁begin｜><｜fim▁hole｜>", "a:<|EOT|>", f"s:{EOS}"),
    say("u:{{ bos_token }} {% for x in y %} {# comment #} {%- endif %}", "a:{{ 7*7 }}"),
    say("u:quotes ' \" \\ \\n and <b>&amp;</b>", "a:\\u0041 %s %d ${x}"),
    say("u:" + "long " * 200, "a:" + "x" * 1000),
    say("developer:be nice", "u:Hi"), say("User:capital role", "u:Hi", "ASSISTANT:loud"), say("function:f", "narrator:n"), say(":empty role", "u:Hi"),
    say("u:weather?", "t:sunny"), say("u:weather?", "t:sunny", "a:It is sunny."), say("u:w?", "t:1", "t:2", "a:both", "u:more", "t:3", "a:end"),
    say("t:first of all", "u:Hi"), say("u:w?", "t:", "u:interrupted", "t:again"),
    say("u:w?") + [calls("get_weather")] + say("t:sunny", "a:It is sunny."),
    say("u:w?") + [calls("get_weather", "get_time", "get_mood")] + say("t:sunny", "t:noon", "t:fine", "a:All is well.", "u:thanks"),
    say("s:Use tools.", "u:w?") + [calls("a")] + say("t:1", "a:x", "u:again") + [calls("b")] + say("t:2"),
    say("u:w?") + [calls("pending", "pending2")],
]


def render(name: str, messages: list[Message], generate: bool) -> str | None:
    """None where the template itself fails, as it does when it adds None to a string."""
    try:
        return _compile_jinja_template(TEMPLATES[name]).render(
            messages=messages, add_generation_prompt=generate, bos_token=BOS, eos_token=EOS)
    except TypeError:
        return None


def save(folder: Path, template: object, **options: bool) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token=BOS, eos_token=EOS, chat_template=template)
    tokenizer.save_pretrained(folder, **options)


def file_cases() -> list[dict[str, Any]]:
    """The template in a file of its own: as Transformers saves it, beside other ones in tokenizer_config.json, with other line ends."""
    def lines(template: str) -> str:  # a line per tag, as people write it
        return template.replace("%}{", "%}\n{").replace("\n{{", "\n    {{-").replace("}}{%", "}}{# a note -#}\n{%")

    named = [{"name": "default", "template": V2}, {"name": "tool_use", "template": V25}]
    cases = [  # in tokenizer_config.json; in chat_template.jinja, None: as saved
        ("v2 as saved", V2, None), ("v2.5 as saved", V25, None), ("two as saved", {"default": V25, "tool_use": V2}, None),
        ("v2.5 over v2", V2, V25), ("v2 over v2.5", V25, V2), ("v2.5 over named", named, V25), ("v2 over unknown", "{{ messages }}", V2),
        ("v2 in lines", None, lines(V2)), ("v2.5 in lines", None, lines(V25)), ("v2 in CR LF", None, lines(V2).replace("\n", "\r\n")),
        ("v2.5 in CR", None, lines(V25).replace("\n", "\r")), ("a line feed at the end", V25, V2 + "\n"),
        ("line feeds in quotes as CR LF", V25, V2.replace("\\n", "\r\n")),
    ]
    made = []
    for name, config, template in cases:
        with tempfile.TemporaryDirectory() as tmp:
            folder = Path(tmp)
            save(folder, config, save_jinja_files=template is None)
            if template is not None:
                (folder / "chat_template.jinja").write_bytes(template.encode())
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            made.append({
                "case": name, "tokenizer_config": (folder / "tokenizer_config.json").read_text(),
                "chat_template": (folder / "chat_template.jinja").read_bytes().decode(),
                "renderings": [{"messages": messages, "add_generation_prompt": generate, "expected": tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=generate)} for messages in CONVERSATIONS[1:4] for generate in (False, True)]})
    return made


def check() -> None:
    """Published byte counts and contents of four renderings in either form."""
    cases = [(CONVERSATIONS[0], True), (CONVERSATIONS[1], True), (CONVERSATIONS[2], True), (CONVERSATIONS[3], False)]
    sizes = {"v2-chat": [52, 60, 106, 94], "v2.5": [63, 69, 127, 102]}
    for name, counts in sizes.items():
        for (messages, generate), size in zip(cases, counts):
            got = len(render(name, messages, generate).encode())
            assert got == size, f"{name}: {got} bytes, not {size}, for {messages}"
    b, e = "3cefbd9c626567696ee296816f66e2968173656e74656e6365efbd9c3e", "3cefbd9c656e64e296816f66e2968173656e74656e6365efbd9c3e"
    hexes = [
        b + "557365723a2048656c6c6f0a0a417373697374616e743a",
        b + "42652062726965662e0a0a557365723a2048690a0a417373697374616e743a",
        b + "557365723a2048690a0a417373697374616e743a2048656c6c6f21" + e + "557365723a20312b313d3f0a0a417373697374616e743a",
        b + "42652062726965662e0a0a557365723a2048690a0a417373697374616e743a2048656c6c6f21" + e,
    ]
    for (messages, generate), want in zip(cases, hexes):
        assert render("v2-chat", messages, generate).encode().hex() == want
    for name in ("v2-chat", "v2.5"):
        for messages in CONVERSATIONS:
            assert render(name, messages, True) == render(name + "-line-feeds", messages, True)


def main() -> None:
    check()
    OUT.mkdir(exist_ok=True)
    templates = {name: {"chat_template": text, "bos_token": BOS, "eos_token": EOS} for name, text in TEMPLATES.items()}
    (OUT / "templates.json").write_text(json.dumps(templates, indent=1, ensure_ascii=False) + "\n")
    lines = []
    for name in TEMPLATES:
        for messages in CONVERSATIONS if not name.endswith("line-feeds") else CONVERSATIONS[:12]:
            for generate in (False, True):
                lines.append(json.dumps({"template": name, "messages": messages, "add_generation_prompt": generate,
                                         "expected": render(name, messages, generate)}, ensure_ascii=False))
    (OUT / "renderings.jsonl").write_text("\n".join(lines) + "\n")
    (OUT / "files.jsonl").write_text("".join(json.dumps(c, ensure_ascii=False) + "\n" for c in file_cases()))
    print(f"{len(lines)} renderings of {len(CONVERSATIONS)} conversations; published bytes agree")


if __name__ == "__main__":
    main()
