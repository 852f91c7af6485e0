"""Write docs/api.md from include/dsv2.h.  With --check: fail if it is out of date.

SPDX-License-Identifier: MIT

The header is the documentation; this only sets it for reading: its sections become headings, a paragraph's comment becomes
text, its declarations stay code.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER, PAGE = ROOT / "include" / "dsv2.h", ROOT / "docs" / "api.md"
RULE = re.compile(r"/\* ---- (.+?) -+ \*/")


def comment_text(comment: str) -> str:
    """The inside of a comment, without stars.  An indented paragraph is code; an indented line of another begins a list item."""
    lines = [re.sub(r"^ \* ?", "", line).rstrip() for line in comment.removeprefix("/* ").removesuffix("*/").splitlines()]
    paragraphs = []
    for paragraph in "\n".join(lines).strip("\n").split("\n\n"):
        rows = paragraph.split("\n")
        if all(row.startswith("    ") for row in rows):
            paragraphs.append("```c\n" + "\n".join(row[4:] for row in rows) + "\n```")
        else:
            paragraphs.append("\n".join(re.sub(r"^  (\w+\.?) +", r"- **\1** ", row) if re.match(r"  \w", row) else
                                        re.sub(r"^ {4,}", "  ", row) for row in rows))
    return "\n\n".join(paragraphs)


def title(code: str) -> str:
    functions = re.findall(r"\b(dsv2_\w+)\(", re.sub(r"/\*.*?\*/", "", code, flags=re.S))
    types = re.findall(r"^} (dsv2_\w+);|^typedef [^{(]*?(dsv2_\w+);|\(\*(dsv2_\w+_fn)\)|^struct (dsv2_\w+) \{", code, re.M)
    names = [name for found in types for name in found if name] + [f + "()" for f in functions if not f.endswith("_fn")]
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def page(header: str) -> str:
    intro = header[: header.index("#ifndef")].strip()
    body = re.split(r"#ifdef __cplusplus\n.*?#endif\n", header, flags=re.S)[1]
    out = ["# The C interface", "", "Made from `include/dsv2.h` by `docs/make_api.py`; edit the header, not this page.", "", comment_text(intro)]
    for part in re.split(r"\n\n+", body.strip()):
        if rule := RULE.fullmatch(part.strip()):
            out += ["", f"## {rule[1]}"]
            continue
        comment = re.match(r"/\*.*?\*/", part, re.S)
        code = part[comment.end():].strip("\n") if comment else part
        if not code.strip():
            out += ["", comment_text(comment[0])]
            continue
        if heading := title(code):
            out += ["", f"### {heading}"]
        if comment:
            out += ["", comment_text(comment[0])]
        out += ["", "```c", code.replace("DSV2_API ", ""), "```"]
    return "\n".join(out) + "\n"


def main() -> int:
    text = page(HEADER.read_text())
    if "--check" in sys.argv:
        if PAGE.read_text() != text:
            print("docs/api.md is out of date: run python3 docs/make_api.py")
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
