"""Times encoding against HF tokenizers: processor time, one thread each, same text, same run, best of several.

    python bench_tokenizer.py ENCODE_TOOL TOKENIZER_JSON... [--mb 1] [--runs 5]
"""
from __future__ import annotations

import argparse
import os
import random
import subprocess
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer  # noqa: E402

import corpus  # noqa: E402


def texts(size: int) -> dict[str, str]:
    r = random.Random(7)

    def fill(make) -> str:
        parts, n = [], 0
        while n < size:
            parts.append(make())
            n += len(parts[-1].encode())
        return "".join(parts)

    han = corpus.LETTERS["han"][:3000]
    return {
        "English": fill(lambda: " ".join(r.choices(corpus.ENGLISH[:110], k=12)).capitalize() + r.choice([". ", ", ", ".\n"])),
        "code": fill(lambda: r.choice(corpus.CODE)),
        "Chinese": fill(lambda: "".join(r.choices(han, k=r.randint(5, 30))) + r.choice("，。！\n")),
        "random Unicode": fill(lambda: corpus.random_unicode(r)),
        "one letter": "a" * size,
        "spaces": " " * size,
        "spaces, then x": " " * (size - 1) + "x",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool")
    parser.add_argument("tokenizers", nargs="+")
    parser.add_argument("--mb", type=float, default=1)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    print("| tokenizer | text | bytes | ours, ms | HF tokenizers, ms | ratio |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for path in args.tokenizers:
        oracle = Tokenizer.from_file(path)
        for name, text in texts(int(args.mb * 1e6)).items():
            data = text.encode()
            out = subprocess.run([args.tool, path, "0", "time", str(args.runs)], input=data, capture_output=True, check=True).stdout
            ours, n = float(out.split()[0]), int(out.split()[1])
            theirs = 1e9
            # what costs the oracle minutes is run once
            for _ in range(args.runs if name in ("English", "code", "Chinese", "random Unicode") else 1):
                start = time.process_time()
                ids = oracle.encode(text, add_special_tokens=False)
                theirs = min(theirs, time.process_time() - start)
                if theirs > 5:
                    break
            assert len(ids.ids) == n, f"{name}: {n} ids, the oracle has {len(ids.ids)}"
            print(f"| {path[-40:]} | {name} | {len(data)} | {ours * 1e3:.1f} | {theirs * 1e3:.1f} | {theirs / ours:.1f} |", flush=True)


if __name__ == "__main__":
    main()
