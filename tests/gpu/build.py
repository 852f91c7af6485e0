"""Everything that runs on a card, built without meson: by nvcc and the host's compiler, or for the emulated card by the host's alone.

SPDX-License-Identifier: MIT
"""
from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
KERNELS, CPU, LIB, TESTS = ROOT / "kernels" / "cuda", ROOT / "kernels" / "cpu", ROOT / "lib", ROOT / "tests"
EMULATION = TESTS / "emulation"
# Of other projects: a header, and the library.
PACKAGES = (("cjson/cJSON.h", "cjson"), ("utf8proc.h", "utf8proc"), ("pcre2.h", "pcre2-8"), ("cmocka.h", "cmocka"))
PREAMBLE = "#include <setjmp.h>\n#include <stdarg.h>\n#include <stddef.h>\n#include <stdint.h>\n#define PCRE2_CODE_UNIT_WIDTH 8\n"
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
VARIANTS = {"inner_avx2.c": AVX2, "inner_avx512.c": AVX2 + ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]}


class Failed(Exception):
    """A command failed; the text says which and how."""


class Toolkit(NamedTuple):
    """What builds kernels: nvcc's, or (nvcc None) the emulation."""
    nvcc: Path | None
    architecture: str
    include: list[Path]
    link: list[str]


def run(command: list, timeout: float = 600) -> str:
    words = [str(c) for c in command]
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=timeout)
    except subprocess.TimeoutExpired as late:
        raise Failed(f"no end after {timeout:.0f} s: {' '.join(words)}") from late
    if done.returncode:
        raise Failed(f"{' '.join(words)}\n{done.stdout}")
    return done.stdout


def find_nvcc() -> Path | None:
    found = shutil.which("nvcc")
    if found:
        return Path(found)
    inside = sorted(Path("/usr/local").glob("cuda*/bin/nvcc"))
    return inside[-1] if inside else None


def capability() -> str:
    """Of the first card, as "90"; "" where nobody says."""
    if not shutil.which("nvidia-smi"):
        return ""
    done = subprocess.run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "-i", "0"], capture_output=True, text=True)
    first = done.stdout.strip().split("\n")[0].replace(".", "")
    return first if first.isdigit() else ""


def find_toolkit() -> Toolkit:
    """Raises Failed."""
    nvcc = find_nvcc()
    if not nvcc:
        raise Failed("no nvcc, neither in PATH nor in /usr/local/cuda*/bin")
    home = nvcc.resolve().parents[1]
    places = [home, *home.glob("targets/*"), Path("/usr"), *Path("/").glob("usr/lib/python3*/site-packages/nvidia/*"),
              *Path("/").glob("opt/*/.venv/lib/python3*/site-packages/nvidia/*")]

    def first(patterns: list[str]) -> Path:
        for place in places:
            for pattern in patterns:
                found = sorted(place.glob(pattern))
                if found:
                    return found[0]
        raise Failed(f"no {patterns[0]} beside {nvcc}")

    runtime, blas = first(["include/cuda_runtime_api.h"]), first(["include/cublasLt.h"])
    static = first(["lib64/libcudart_static.a", "lib/libcudart_static.a", "lib/*/libcudart_static.a"])
    shared = first(["lib64/libcublasLt.so", "lib/libcublasLt.so", "lib/*/libcublasLt.so", "lib64/libcublasLt.so.*", "lib/libcublasLt.so.*"])
    number = capability() or "90"
    architecture = f"sm_{number}a" if number == "90" else f"sm_{number}"
    return Toolkit(nvcc, architecture, list(dict.fromkeys([runtime.parent, blas.parent])),
                   [str(shared), f"-Wl,-rpath,{shared.parent}", str(static), "-lrt"])


def emulated() -> Toolkit:
    return Toolkit(None, "emulated", [EMULATION / "include", EMULATION], [])


# ---- libraries of others ---------------------------------------------------------------------------------------------------------------

def installed() -> bool:
    """Are they all here, for the compiler to find?"""
    source = PREAMBLE + "".join(f"#include <{header}>\n" for header, _ in PACKAGES) + "int main(void) { return 0; }\n"
    done = subprocess.run(["gcc", "-x", "c", "-", "-o", os.devnull, *(f"-l{name}" for _, name in PACKAGES)], input=source, text=True,
                          capture_output=True)
    return done.returncode == 0


def vendor(folder: Path) -> None:
    """Copy what is installed here for a machine that has none of it."""
    shutil.rmtree(folder, ignore_errors=True)
    for header, name in PACKAGES:
        parts = [w for w in run(["gcc", "-E", "-M", "-include", "stdarg.h", "-include", "stddef.h", "-include", "setjmp.h", "-include",
                                 "stdint.h", "-DPCRE2_CODE_UNIT_WIDTH=8", "-include", header, "-x", "c", os.devnull]).split()
                 if w.endswith("/" + header)]
        if not parts:
            raise Failed(f"no {header} here: install its -dev package")
        to = folder / "include" / header
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(parts[0], to)
        for kind in ("a", "so"):
            found = Path(run(["gcc", f"-print-file-name=lib{name}.{kind}"]).strip())
            if found.is_absolute():
                break
        else:
            raise Failed(f"no lib{name}.a and no lib{name}.so here")
        target = found.resolve()
        if kind == "so":  # under the name that programs look for
            soname = [line.split()[-1].strip("[]") for line in run(["readelf", "-d", target]).splitlines() if "SONAME" in line]
            found = Path(soname[0])
        (folder / "lib").mkdir(parents=True, exist_ok=True)
        shutil.copy(target, folder / "lib" / found.name)


def packages(folder: Path) -> tuple[list[str], list[str]]:
    """How to compile and link with them.  Raises Failed."""
    if installed():
        return [], [f"-l{name}" for _, name in PACKAGES]
    libraries = sorted((folder / "lib").glob("lib*"))
    if len(libraries) < len(PACKAGES):
        raise Failed(f"cJSON, utf8proc, PCRE2 and cmocka are neither installed here nor in {folder}: on a machine that has them,"
                     f" 'python3 tests/gpu/run.py --vendor {folder}' puts them there")
    return [f"-I{folder / 'include'}"], [str(p) for p in libraries] + [f"-Wl,-rpath,{folder / 'lib'}"]


# ---- sources ---------------------------------------------------------------------------------------------------------------------------

def includes(*folders: Path) -> list[str]:
    return [f"-I{f}" for f in folders]


class Build:
    def __init__(self, folder: Path, toolkit: Toolkit, vendored: Path):
        self.folder, self.toolkit = folder, toolkit
        self.compile_args, self.link_args = packages(vendored)
        self.newest_header = max(p.stat().st_mtime for f in ("kernels", "lib", "include", "tests") for p in (ROOT / f).rglob("*.*h"))
        (folder / "objects").mkdir(parents=True, exist_ok=True)

    def command(self, source: Path) -> list:
        """What compiles a source, but for its output."""
        here = includes(KERNELS, ROOT / "kernels", LIB, ROOT / "include", TESTS / "ops", TESTS / "api", TESTS / "cuda")
        system = [word for f in self.toolkit.include for word in ("-isystem", f)]
        names = ['-DDSV2I_BUILD="gpu"', f'-DTEST_ROOT="{TESTS}"', f'-DMODEL="{ROOT / "examples" / "model"}"', "-D_GNU_SOURCE"]
        if self.toolkit.nvcc is None:
            names.append("-DDSV2I_EMULATED")
        optimize = "-O1" if self.toolkit.nvcc is None else "-O2"
        if source.suffix == ".cu" and self.toolkit.nvcc:
            return [self.toolkit.nvcc, "-std=c++17", "-O3", "-lineinfo", f"-arch={self.toolkit.architecture}", *includes(KERNELS, ROOT / "kernels"),
                    "-c", source]
        if source.suffix in (".cu", ".cc"):
            return ["g++", "-std=c++17", optimize, "-g1", "-Wno-unknown-pragmas", *names, *here, *system, *self.compile_args, "-x", "c++", "-c", source]
        own = ["-ffp-contract=off"] if source.parent in (LIB, CPU) else []
        if source.parent == CPU:
            own += ["-O3", "-DDSV2I_X86", *VARIANTS.get(source.name, [])]
        return ["gcc", "-std=c11", optimize, "-g1", *own, *names, *here, *system, *self.compile_args, "-c", source]

    def object(self, source: Path) -> Path:
        out = self.folder / "objects" / ("_".join(source.relative_to(ROOT).parts) + ".o")
        if not out.exists() or out.stat().st_mtime < max(source.stat().st_mtime, self.newest_header):
            run([*self.command(source), "-o", out])
        return out

    def sources(self) -> tuple[list[Path], dict[str, list[Path]]]:
        """Those that every program has, and of each program its own."""
        common = [*sorted(KERNELS.glob("*.cu")), *sorted(KERNELS.glob("*.c")), *sorted(LIB.glob("*.c")), *sorted(CPU.glob("*.c"))]
        if self.toolkit.nvcc is None:
            common += [p for p in sorted(EMULATION.glob("*.cc")) if not p.name.startswith("check_")]
        checks = [TESTS / "ops" / "reference64.c", *sorted((TESTS / "cuda").glob("cpu_*.c"))]
        gpu = TESTS / "gpu"
        programs = {p.stem: [p, *checks] for p in sorted((TESTS / "cuda").glob("check_*.cc"))}
        programs["check_backend"] = [TESTS / "cuda" / "check_backend.cc", TESTS / "api" / "api_test.c"]
        return common, {"gpu_bench": [gpu / "bench.cu", gpu / "fill.cu"], "gpu_model": [gpu / "model.c", gpu / "fill.cu"], **programs}

    def all(self, jobs: int) -> tuple[dict[str, Path], list[str]]:
        """The programs that could be built, and what went wrong with others."""
        common, programs = self.sources()
        wanted = sorted({*common, *(s for own in programs.values() for s in own)}, key=lambda s: (s.suffix != ".cu", -s.stat().st_size))
        objects: dict[Path, Path] = {}
        wrong: list[str] = []

        def compile_one(source: Path) -> None:
            try:
                objects[source] = self.object(source)
            except Failed as why:
                wrong.append(str(why))

        def link_one(name: str) -> tuple[str, Path | None]:
            out = self.folder / name
            if any(s not in objects for s in [*common, *programs[name]]):
                return name, None
            parts = [objects[s] for s in [*programs[name], *common]]
            if not out.exists() or out.stat().st_mtime < max(p.stat().st_mtime for p in parts):
                try:
                    run(["g++", *parts, "-o", out, *self.link_args, *self.toolkit.link, "-lpthread", "-ldl", "-lm"])
                except Failed as why:
                    wrong.append(str(why))
                    return name, None
            return name, out

        with ThreadPoolExecutor(jobs) as pool:  # the longest first
            list(pool.map(compile_one, wanted))
            linked = list(pool.map(link_one, programs))
        return {name: out for name, out in linked if out}, wrong
