"""What the library exports, imports and promises.  Usage: check.py BUILD/lib [--update]

SPDX-License-Identifier: MIT

--update writes the baseline of types and symbols anew: only together with docs/abi.md, which says when that is allowed.
"""
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BASELINE = HERE / "libdsv2.so.0.abi"

# A library that never prints, exits, aborts, or looks at the environment has no use for these.
FORBIDDEN = set("""abort exit _exit quick_exit __assert_fail printf vprintf puts putchar fprintf vfprintf fputs fputc perror
    stdout stderr stdin getenv secure_getenv setenv putenv setlocale signal sigaction system popen fork execve
    __printf_chk __fprintf_chk __vfprintf_chk srand rand""".split())
NEEDED = {"libcjson.so.1", "libutf8proc.so.2", "libpcre2-8.so.0", "libm.so.6", "libc.so.6", "ld-linux-x86-64.so.2"}

n_cases = n_bad = 0


def case(name, problems):
    global n_cases, n_bad
    n_cases += 1
    n_bad += bool(problems)
    print(f"{'not ' if problems else ''}ok {n_cases} - {name}")
    for problem in problems or []:
        print(f"#   {problem}")


def out(*command):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def main():
    folder = Path(sys.argv[1])
    shared, static = folder / "libdsv2.so.0", folder / "libdsv2.a"
    # Both sides are written by abidw: abidiff's own ways to leave out private types miss changes of public ones.
    abidw = ["abidw", "--exported-interfaces-only", "--drop-private-types", "--headers-dir", ROOT / "include", "--no-show-locs",
             "--no-corpus-path", "--no-comp-dir-path"]
    if "--update" in sys.argv:
        BASELINE.write_text(out(*abidw, shared))
        return 0

    declared = set(re.findall(r"DSV2_API[^;]*?\b(dsv2_\w+)\(", (ROOT / "include" / "dsv2.h").read_text()))
    exported = {line.split()[-1] for line in out("nm", "-D", "--defined-only", shared).splitlines()} - {"DSV2_0"}
    case("every function of the header is exported with version DSV2_0, and nothing else",
         sorted({f"{name}@@DSV2_0" for name in declared} ^ exported))

    dynamic = out("readelf", "-d", shared)
    soname = re.findall(r"SONAME.*\[(.*)\]", dynamic)
    case("SONAME is libdsv2.so.0", [] if soname == ["libdsv2.so.0"] else soname or ["none"])
    case("needs nothing but its four dependencies and libc", sorted(set(re.findall(r"NEEDED.*\[(.*)\]", dynamic)) - NEEDED))

    imported = {line.split()[-1].split("@")[0] for line in out("nm", "-D", "--undefined-only", shared).splitlines()}
    case("imports nothing that prints, ends the process or reads the environment", sorted(imported & FORBIDDEN))

    names = {line.split()[-1] for line in out("nm", "-g", "--defined-only", static).splitlines() if len(line.split()) == 3}
    case("global names in the static library are dsv2_* or dsv2i_*", sorted(n for n in names if not re.match("dsv2i?_", n)))

    writable = re.findall(r"^\S+ .{7} \.(?:data|bss|tbss|tdata)(?!\.rel\.ro)\S*\s+(?!0+ )\S+\s+(\S+)$", out("objdump", "-t", static), re.M)
    case("no mutable global or static data but the thread's error text", [w for w in writable if not w.startswith("last_error")])

    if not shutil.which("abidiff"):
        print(f"ok {n_cases + 1} - types and symbols as in the baseline # SKIP no abidiff (abigail-tools)")
    else:
        with tempfile.NamedTemporaryFile("w", suffix=".abi") as now:
            now.write(out(*abidw, shared))
            now.flush()
            done = subprocess.run(["abidiff", "--no-show-locs", str(BASELINE), now.name], capture_output=True, text=True)
        case("types and symbols as in the baseline", done.stdout.splitlines() + done.stderr.splitlines() + ["abidiff failed"]
             if done.returncode else [])
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
