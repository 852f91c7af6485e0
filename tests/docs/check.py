"""The documentation against the project.  Usage: check.py BUILD

SPDX-License-Identifier: MIT

Links lead somewhere, what the pages name exists, the API page is current, and the README's C and Python run.
"""
import json
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


def files(*suffixes):
    return [p for p in ROOT.rglob("*") if p.suffix in suffixes and not p.relative_to(ROOT).parts[0].startswith((".", "build"))]


def unknown_names(page, files, sources, programs):
    """Files, functions, constants and programs that stand in backticks and are nowhere else."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for span in re.findall(r"`([^`]+)`", text):
        if re.fullmatch(r"[\w./*-]+\.(c|h|py|md|json|build|abi)", span) and "OP" not in span:
            if not any(p.match(span) for p in files):
                yield f"{span}: no such file"
        for name in re.findall(r"\b(?:dsv2i?|DSV2I?)_\w+", span):
            if name not in sources and name not in ("dsv2_noun_verb", "dsv2_x_params_init") and not name.startswith("DSV2_TEST_"):
                yield f"{name}: nowhere in the sources"
        for name in re.findall(r"\bdsv2-\w+", span):
            if name not in programs:
                yield f"{name}: no such program"


def unknown_commands(pages, build):
    """Options of the build and of tests/run, and suites."""
    def introspect(what):
        return json.loads(subprocess.check_output(["meson", "introspect", what, build]))

    options = {o["name"] for o in introspect("--buildoptions")}
    suites = {s.split(":")[-1] for t in introspect("--tests") for s in t["suite"]}
    usage = subprocess.check_output([sys.executable, ROOT / "tests" / "lanes.py", "--help"], text=True)
    for text in pages:
        yield from (f"-D{o}: no such option" for o in re.findall(r"-D(\w+)=", text) if o not in options)
        yield from (f"--suite {s}: no such suite" for s in re.findall(r"--suite (\w+)", text) if s not in suites)
        for line in re.findall(r"sh tests/run(.*)", text):
            yield from (f"tests/run {o}: no such option" for o in re.findall(r"--[\w-]+", line) if not re.search(rf"{o}\b(?!-)", usage))


def run(*command, **env):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env={**os.environ, **env})
    return [] if done.returncode == 0 and done.stdout.strip() else (done.stdout + done.stderr).splitlines() or ["it printed nothing"]


def main():
    build = Path(sys.argv[1]).resolve()
    for page in sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.md")):
        if not page.parts[0].startswith((".", "build")):
            case(f"links of {page}", list(dead_links(ROOT / page)))

    known = files(".c", ".h", ".cu", ".cuh", ".cc", ".py", ".md", ".json", ".build", ".abi")
    sources = set(re.findall(r"\w+", "\n".join(p.read_text() for p in files(".c", ".h", ".cu", ".cuh", ".cc", ".py", ".map")
                                               if p.relative_to(ROOT).parts[0] in ("include", "lib", "kernels", "bindings"))))
    programs = {p.name for p in (build / "examples").glob("dsv2-*")} | {"dsv2-verify"}
    for page in ("README.md", "CONTRIBUTING.md", "NEWS.md", "docs/architecture.md", "docs/abi.md", "docs/numerics.md", "docs/model.md"):
        case(f"what {page} names exists", list(unknown_names(ROOT / page, known, sources, programs)))
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    case("the architecture has every file of lib/", [p.name for p in sorted((ROOT / "lib").glob("*.c")) if f"`lib/{p.name}`" not in architecture])

    readme = (ROOT / "README.md").read_text()
    case("options and suites exist", list(unknown_commands([readme, (ROOT / "CONTRIBUTING.md").read_text()], build)))
    packages = re.search(r"apt-get install ([\w. -]+)", readme)[1].split()
    script, = re.findall(r'^build_packages="(.*)"', (ROOT / "examples" / "setup.sh").read_text(), re.M)
    case("the README's packages are those of the scripts", sorted(set(packages) ^ set(script.split())))

    done = subprocess.run([sys.executable, ROOT / "docs" / "make_api.py", "--check"], capture_output=True, text=True)
    case("docs/api.md is made from the header as it is", done.stdout.splitlines() if done.returncode else [])

    first = re.findall(r"```(\w*)\n(.*?)```", readme, re.S)[:2]
    case("the README opens with two one-line commands", [] if all(k == "sh" and c.count("\n") == 1 for k, c in first) else [str(first)])

    with tempfile.TemporaryDirectory() as tmp:
        c_code, = re.findall(r"```c\n(.*?)```", readme, re.S)
        source, program = Path(tmp, "readme.c"), Path(tmp, "readme")
        source.write_text(f"#include <dsv2.h>\n#include <stdio.h>\nint main(void)\n{{\n{c_code}return !ok;\n}}\n")
        problems = subprocess.run(["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "include", "-o", program, source,
                                   build / "lib" / "libdsv2.so.0"], capture_output=True, text=True).stderr.splitlines()
        case("the README's C compiles and writes", problems or run(program, LD_LIBRARY_PATH=str(build / "lib")))
        python = "".join(re.findall(r"```python\n(.*?)```", readme, re.S))
        case("the README's Python runs", run(sys.executable, "-c", python, PYTHONPATH=str(ROOT / "bindings" / "python"),
                                             DSV2_LIBRARY=str(build / "lib")))

    for name in ("generate", "chat", "inspect", "score", "bench"):
        program = build / "examples" / f"dsv2-{name}"
        case(f"dsv2-{name} --help", run(program, "--help", LD_LIBRARY_PATH=str(build / "lib")))
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
