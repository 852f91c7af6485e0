"""The documentation against the project.  Usage: check.py BUILD

SPDX-License-Identifier: MIT

Links lead somewhere, the API page is current, and the README's C and Python run.
"""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "model"
n_cases = n_bad = 0


def case(name, problems):
    global n_cases, n_bad
    n_cases += 1
    n_bad += bool(problems)
    print(f"{'not ' if problems else ''}ok {n_cases} - {name}")
    for problem in problems:
        print(f"#   {problem}")


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}


def dead_links(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.exists():
            yield f"{target}: no such file"
        elif anchor and to.suffix == ".md" and anchor not in anchors(to):
            yield f"{target}: no such heading"


def run(*command, **env):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env={**os.environ, **env})
    return [] if done.returncode == 0 and done.stdout.strip() else (done.stdout + done.stderr).splitlines() or ["it printed nothing"]


def main():
    build = Path(sys.argv[1]).resolve()
    for page in sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.md")):
        if not page.parts[0].startswith((".", "build")):
            case(f"links of {page}", list(dead_links(ROOT / page)))

    done = subprocess.run([sys.executable, ROOT / "docs" / "make_api.py", "--check"], capture_output=True, text=True)
    case("docs/api.md is made from the header as it is", done.stdout.splitlines() if done.returncode else [])

    readme = (ROOT / "README.md").read_text()
    first = re.findall(r"```(\w*)\n(.*?)```", readme, re.S)[:2]
    case("the README opens with two one-line commands", [] if all(k == "sh" and c.count("\n") == 1 for k, c in first) else [str(first)])

    with tempfile.TemporaryDirectory() as tmp:
        c_code, = re.findall(r"```c\n(.*?)```", readme, re.S)
        source, program = Path(tmp, "readme.c"), Path(tmp, "readme")
        source.write_text("#include <dsv2.h>\n#include <stdio.h>\nint main(int argc, char **argv)\n{\nconst char *folder = argv[argc - 1];\n"
                          f"{c_code}return 0;\n}}\n")
        problems = subprocess.run(["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "include", "-o", program, source,
                                   build / "lib" / "libdsv2.so.0"], capture_output=True, text=True).stderr.splitlines()
        case("the README's C compiles and writes", problems or run(program, MODEL, LD_LIBRARY_PATH=str(build / "lib")))
        python, = re.findall(r"```python\n(.*?)```", readme, re.S)
        case("the README's Python runs", run(sys.executable, "-c", f"folder = {str(MODEL)!r}\n{python}",
                                             PYTHONPATH=str(ROOT / "bindings" / "python"), DSV2_LIBRARY=str(build / "lib")))

    for name in ("generate", "chat", "inspect", "score"):
        program = build / "examples" / f"dsv2-{name}"
        case(f"dsv2-{name} --help", run(program, "--help", LD_LIBRARY_PATH=str(build / "lib")))
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
