"""Strings that try a tokenizer: seeded, no script over 15% of them, a quarter random Unicode.

    strings(seed, n, markers) -> list[str]
"""
from __future__ import annotations

import random
import sys
import unicodedata

# name: first and last code point; letters of them are strung into words.  The weights below keep each under 15%.
SCRIPTS = {
    "latin": (0x41, 0x24F), "greek": (0x370, 0x3FF), "cyrillic": (0x400, 0x52F),
    "armenian": (0x531, 0x587), "hebrew": (0x5D0, 0x5EA), "arabic": (0x620, 0x6D3), "devanagari": (0x900, 0x97F),
    "bengali": (0x980, 0x9FB), "tamil": (0xB82, 0xBFA), "thai": (0xE01, 0xE5B), "tibetan": (0xF00, 0xFBC),
    "georgian": (0x10A0, 0x10FF), "ethiopic": (0x1200, 0x137C), "cherokee": (0x13A0, 0x13FD), "khmer": (0x1780, 0x17F9),
    "mongolian": (0x1800, 0x18AA), "hiragana": (0x3041, 0x309F), "katakana": (0x30A0, 0x30FF), "han": (0x4E00, 0x9FFF),
    "han-b": (0x20000, 0x2A6D0), "hangul": (0xAC00, 0xD7A3), "jamo": (0x1100, 0x11FF), "gothic": (0x10330, 0x1034A),
    "deseret": (0x10400, 0x1044F), "adlam": (0x1E900, 0x1E943), "cuneiform": (0x12000, 0x12399),
}
SPACES = list("\t\n\v\f\r \x85\xa0\u1680\u180e\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff")
EMOJI = list("😀👍🎉🔥❤☃✈🇩🇪🏽👨👩👧🏴󠁧󠁢") + ["\u200d", "\ufe0f", "\u20e3", "👨\u200d👩\u200d👧", "👍🏽", "❤\ufe0f", "1\ufe0f\u20e3"]
MARKS = [chr(c) for c in range(0x300, 0x370)] + list("\u0591\u064b\u0903\u0e31\u20d0\u3099\ufe20")
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~‘’“”…—–·、。《》「」！？：；（）￥€£§¶†‡•‰′″※") + ["'s", "'ll", "n't", "...", "--", "=>"]
DIGITS = list("0123456789") + list("٣४৫๓〇½¼²①Ⅷⅷ㉑𝟘𝟗༳፲") + ["2024", "3.14", "1,000,000", "0xFF", "1e-9", "12345678901234567890"]
CODE = [
    "def f(x):\n\treturn x ** 2  # square\n", "for (size_t i = 0; i < n; i++) {\n    a[i] += b[i];\n}\n", "#include <stdio.h>\r\n",
    "SELECT * FROM t WHERE a>=1 AND b!='x';", "<div class=\"a b\">&nbsp;</div>\n", "x=1;y=22;z=333", "fn main() -> Result<(), E> {}\n",
    "if __name__ == '__main__':\n    main()\n", "\\begin{align}x_{i}^{2}\\end{align}", "https://example.org/a?b=c&d=%20#e", "a\t\tb\t \tc",
    "const f = async (x) => { await g(x?.y ?? 0) };", "{\"key\": [1, 2.5e3, null, \"\\u00e9\"]}", "git commit -m \"fix: foo_bar\" && ls -la ~/x",
    "        deeply indented\n            more\n", "CamelCaseName snake_case_name SCREAMING_CASE kebab-case", "/* comment */ // another\n\n\n",
]
ENGLISH = ("the of and to in is that it was for on are as with his they at be this have from or one had by word but not what all were we "
           "when your can said there use an each which she do how their if will up other about out many then them these so some her would "
           "make like him into time has look two more write go see number no way could people my than first water been call who oil its now "
           "find long down day did get come made may part don't I've we'll it's naïve café résumé Führer").split()
ASSIGNED = [c for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
# without the four fifths that are Chinese characters and Korean syllables
FEWER = [c for c in ASSIGNED if not (0x3400 <= c < 0xA000 or 0xAC00 <= c < 0xD7A4 or 0x20000 <= c < 0x32000)]


def letters(name: str) -> list[str]:
    first, last = SCRIPTS[name]
    return [chr(c) for c in range(first, last + 1) if unicodedata.category(chr(c))[0] in "LM"]


LETTERS = {name: letters(name) for name in SCRIPTS}


def assigned(r: random.Random) -> int:
    return r.choice(ASSIGNED if r.random() < 0.1 else FEWER)


def words(r: random.Random) -> str:
    pool = LETTERS[r.choice(list(SCRIPTS))]
    glue = r.choice([" ", " ", "  ", "", "\u3000", ", ", "\n", "-", r.choice(SPACES)])
    return glue.join("".join(r.choices(pool, k=r.randint(1, 9))) for _ in range(r.randint(1, 14)))


def english(r: random.Random) -> str:
    text = " ".join(r.choices(ENGLISH, k=r.randint(1, 6)))
    return r.choice([str.capitalize, str.upper, str, str, lambda s: s + ".", lambda s: f'"{s}"', lambda s: s.replace(" ", "  ")])(text)


def random_unicode(r: random.Random) -> str:
    kind = r.randrange(4)
    if kind == 0:
        pool = [assigned(r) for _ in range(30)]
    elif kind == 1:  # any scalar value at all
        pool = [c for c in (r.randrange(0x110000) for _ in range(30)) if not 0xD800 <= c < 0xE000]
    elif kind == 2:  # one block
        base = r.choice(FEWER) & ~0x7F
        pool = [c for c in range(base, base + 0x80) if not 0xD800 <= c < 0xE000] or [0x41]
    else:  # assigned ones between ASCII
        pool = [assigned(r) for _ in range(25)] + r.sample(range(0x20, 0x7F), 6)
    return "".join(chr(r.choice(pool)) for _ in range(r.randint(1, 30)))


def run(r: random.Random) -> str:
    """One character again and again, of a length that may cross the border between methods for short and long pieces."""
    pool = r.choice([SPACES, list("aж0.-=_é中א😀\u0301Ω"), [chr(assigned(r))]])
    return r.choice(["", "ж", " "]) + r.choice(pool) * r.choice([1, 2, 3, 5, 17, 63, 64, 65, 66, 129, 400]) + r.choice(["", "ב", " ", "\n"])


def spaces(r: random.Random) -> str:
    parts = []
    for _ in range(r.randint(1, 6)):
        parts += ["".join(r.choices(SPACES, k=r.randint(1, 5))), r.choice(["a", "слово", "!", "中", "9", "é", "א", ""])]
    return "".join(parts)


def mixed(r: random.Random, markers: list[str]) -> str:
    parts: list[str] = []
    for _ in range(r.randint(2, 9)):
        parts.append(r.choice([
            lambda: r.choice(EMOJI), lambda: r.choice(MARKS), lambda: r.choice(PUNCTUATION), lambda: r.choice(DIGITS), lambda: r.choice(SPACES),
            lambda: chr(assigned(r)), lambda: r.choice(ENGLISH)[:3], lambda: "".join(r.choices(LETTERS[r.choice(list(SCRIPTS))], k=3)),
        ])())
    if markers and r.random() < 0.3:
        parts.insert(r.randrange(len(parts)), r.choice(markers))
    return "".join(parts)


def marked(r: random.Random, markers: list[str]) -> str:
    """Literals of added tokens: whole, cut, doubled, with spaces about them."""
    parts = []
    for _ in range(r.randint(1, 5)):
        marker = r.choice(markers)
        parts += [r.choice([marker, marker, marker[: r.randint(1, len(marker))], marker[r.randint(0, len(marker) - 1):], marker + marker]),
                  r.choice(["", "", " ", "  ", "\n", "a", "User: ", "中", "<", "｜"])]
    r.shuffle(parts)
    return "".join(parts)


def strings(seed: int, n: int, markers: list[str]) -> list[str]:
    r = random.Random(seed)
    makers = [
        (25, random_unicode), (45, words), (1, english), (1, lambda r: r.choice(CODE)), (6, run), (7, spaces),
        (11, lambda r: mixed(r, markers)), (3, lambda r: "".join(r.choices(EMOJI + MARKS, k=r.randint(1, 12)))),
        (2, lambda r: "".join(chr(r.randrange(0x20)) for _ in range(r.randint(1, 10))) + r.choice(["", "\x7f", "a", "\x80\x9f"])),
        (1, lambda r: marked(r, markers) if markers else english(r)),
    ]
    chosen = r.choices([m for _, m in makers], [w for w, _ in makers], k=n - 1)
    return [""] + [make(r) for make in chosen]


def shares(texts: list[str]) -> dict[str, float]:
    """How much of all letters each script has."""
    counts: dict[str, int] = {}
    for text in texts:
        for c in text:
            if unicodedata.category(c)[0] == "L":
                name = unicodedata.name(c, "?").split()[0]
                counts[name] = counts.get(name, 0) + 1
    total = sum(counts.values())
    return {name: count / total for name, count in sorted(counts.items(), key=lambda kv: -kv[1])}


if __name__ == "__main__":
    sample = strings(int(sys.argv[1]) if len(sys.argv) > 1 else 1, 12000, ["<｜end▁of▁sentence｜>"])
    for script, share in list(shares(sample).items())[:12]:
        print(f"{share:6.1%} {script}")
