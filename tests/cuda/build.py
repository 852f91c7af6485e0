#!/usr/bin/env python3
"""Build every kernel for cards and look at what it takes: no spills, no products that ptxas makes wait for each other, and a table of
registers, stack and shared memory.

    python3 tests/cuda/build.py FOLDER              # sm_90a
    python3 tests/cuda/build.py FOLDER --all        # every architecture
    python3 tests/cuda/build.py FOLDER --all --table docs/kernels/resources.md

Uses the nvcc of PATH or of /usr/local/cuda; where there is none, one from PyPI (requirements.txt), installed in FOLDER/nvcc.  Status 77
when that cannot be had.

Sources of the host are compiled against the toolkit's headers, too, and what tests/emulation calls by the same name is compared with them.
Not with a toolkit from PyPI: there the headers of cuBLASLt come with the whole library.

SPDX-License-Identifier: MIT
"""
from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
EMULATED = HERE.parent / "emulation" / "include"
KERNELS = HERE.parents[1] / "kernels" / "cuda"
# The last also as PTX, for cards to come.
ARCHITECTURES = {"sm_80": "-gencode=arch=compute_80,code=sm_80", "sm_89": "-gencode=arch=compute_89,code=sm_89",
                 "sm_90a": "-gencode=arch=compute_90a,code=sm_90a", "sm_100": "-gencode=arch=compute_100,code=sm_100",
                 "sm_120": "-gencode=arch=compute_120,code=[sm_120,compute_120]"}
# The slow path of sine and cosine for large angles keeps its digits in an array.
STACK_ALLOWED = {"rope_kernel"}


def find_nvcc(folder: Path) -> Path:
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found:
        return Path(found)
    home = folder / "nvcc"
    for _ in range(2):
        inside = sorted(home.rglob("bin/nvcc"))
        if inside:
            return inside[0]
        try:
            venv.create(home, with_pip=True)
            subprocess.run([home / "bin" / "pip", "install", "-q", "-r", HERE / "requirements.txt"], check=True)
        except subprocess.CalledProcessError:
            break
    print("no nvcc, and none from PyPI")
    sys.exit(77)


class Kernel(NamedTuple):
    name: str
    registers: int
    stack: int

    def __str__(self) -> str:
        return f"{self.name}: {self.registers} registers, {self.stack} bytes of stack, no spills"


def check_pragmas(source: Path) -> None:
    """nvcc 13.0 skips more than the statement behind an `if constexpr` that is not taken, if that begins with a pragma and has no braces:
    what follows is missing from the kernel, without a word."""
    text = source.read_text()
    for found in re.finditer(r"(if constexpr \([^\n]*\)|\belse)[ \t]*\n[ \t]*#pragma", text):
        line = text.count("\n", 0, found.start()) + 1
        raise ValueError(f"{source.name}:{line}: {found[1]} without braces before a pragma")


def build(nvcc: Path, source: Path, architecture: str, folder: Path) -> list[Kernel]:
    """What each kernel takes; raises ValueError with what is wrong."""
    for file in [source, *sorted(KERNELS.glob("*.cuh"))]:
        check_pragmas(file)
    command = [nvcc, "-std=c++17", "-O3", "-lineinfo", "-Werror=all-warnings", ARCHITECTURES[architecture], "-Xptxas=-v", "-c", source,
               "-o", folder / f"{source.stem}.{architecture}.o"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or "wgmma.mma_async instructions are serialized" in done.stdout:
        raise ValueError(done.stdout)
    if re.search(r"\bU exit$", subprocess.run(["nm", "-u", command[-1]], stdout=subprocess.PIPE, text=True, check=True).stdout, re.M):
        raise ValueError(f"{source.name}: the host calls a function that is __device__ only, for which nvcc, without a word in templates, calls exit")
    kernels = []
    for entry in re.split(r"Compiling entry function ", done.stdout)[1:]:
        name = re.match(r"'(\w+)'", entry)[1]
        name = subprocess.run(["c++filt", "-p", name], stdout=subprocess.PIPE, text=True).stdout.strip() if shutil.which("c++filt") else name
        stack, stores, loads = map(int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry).groups())
        if stores or loads or (stack and not any(allowed in name for allowed in STACK_ALLOWED)):
            raise ValueError(f"{name}: {stack} bytes of stack, {stores + loads} bytes of spills")
        kernels.append(Kernel(name, int(re.search(r"Used (\d+) registers", entry)[1]), stack))
    if not kernels:
        raise ValueError(f"no kernel found in what ptxas said of {source.name}")
    return kernels


def table(nvcc: Path, found: dict[tuple[str, str], list[Kernel]]) -> str:
    """The registers of each kernel by architecture, of its instances the fewest and the most."""
    release = re.search(r"release ([\d.]+)", subprocess.run([nvcc, "--version"], stdout=subprocess.PIPE, text=True).stdout)[1]
    lines = ["# Registers", "", f"Of each kernel's instances the fewest and the most, a thread, as nvcc {release} builds them (at the launch: warpgroups of",
             "`_sm90` kernels then give and take). No kernel spills, and none has a stack but rope_kernel, for angles that are too large for the fast",
             "way. Kernels that a card lacks the instructions for are empty there. Shared memory is dynamic, and given by the launchers.", "",
             "Made by `python3 tests/cuda/build.py FOLDER --all --table docs/kernels/resources.md`.", "",
             f"| kernel | instances | {' | '.join(ARCHITECTURES)} |", "| --- | --- |" + " --- |" * len(ARCHITECTURES)]
    rows: dict[str, dict[str, list[int]]] = {}
    for (source, architecture), kernels in found.items():
        for kernel in kernels:
            name = f"{source}: {re.sub('<.*', '', kernel.name).split()[-1]}"
            rows.setdefault(name, {}).setdefault(architecture, []).append(kernel.registers)
    for name, by in sorted(rows.items()):
        spans = (f"{min(by[a])} to {max(by[a])}" if min(by[a]) < max(by[a]) else str(by[a][0]) for a in ARCHITECTURES)
        lines.append(f"| {name} | {len(by['sm_80'])} | {' | '.join(spans)} |")
    return "\n".join(lines) + "\n"


def compile_c(source: Path, include: Path, folder: Path) -> None:
    """Raises ValueError with what is wrong."""
    command = [os.environ.get("CC", "cc"), "-std=c11", '-DDSV2I_BUILD=""', "-O2", "-Wall", "-Wextra", "-Werror", f"-I{KERNELS}",
               f"-isystem{include}", "-c", source, "-o", folder / f"{source.stem}.host.o"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise ValueError(done.stdout)


def same_values(folder: Path) -> Path:
    """A source that holds when the emulation's constants are those of the real headers."""
    source = folder / "same_values.c"
    lines = ["#include <cublasLt.h>"]
    for header in ["cublasLt.h", "cuda_runtime_api.h"]:
        for name, value in re.findall(r"\b((?:CUBLAS|CUDA_R|cuda)\w+) = (\d+)", (EMULATED / header).read_text()):
            lines.append(f'_Static_assert({name} == {value}, "{name}");')
    source.write_text("\n".join(lines) + "\n")
    return source


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--all", action="store_true", help="every architecture")
    parser.add_argument("--table", type=Path, metavar="FILE", help="with --all: write what kernels take there")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    nvcc = find_nvcc(args.folder)
    os.environ["PATH"] = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
    failed = count = 0
    found = {}
    cases = [(s, a) for a in (ARCHITECTURES if args.all else ["sm_90a"]) for s in sorted(KERNELS.glob("*.cu"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        builds = [pool.submit(build, nvcc, source, architecture, args.folder) for source, architecture in cases]
        for (source, architecture), done in zip(cases, builds):
            count += 1
            try:
                kernels = found[source.name, architecture] = done.result()
            except ValueError as wrong:
                failed += 1
                print(f"not ok {count} - {source.name} for {architecture}\n{wrong}", flush=True)
                continue
            print(f"ok {count} - {source.name} for {architecture}", *(f"#   {kernel}" for kernel in kernels), sep="\n", flush=True)
    if args.table and not failed:
        args.table.write_text(table(nvcc, found))
    include = nvcc.resolve().parents[1] / "include"
    for source in [*sorted(KERNELS.glob("*.c")), same_values(args.folder)]:
        count += 1
        if not (include / "cublasLt.h").exists():
            print(f"ok {count} - {source.name} for the host # SKIP the toolkit has no cuBLASLt", flush=True)
            continue
        try:
            compile_c(source, include, args.folder)
        except ValueError as wrong:
            failed += 1
            print(f"not ok {count} - {source.name} for the host\n{wrong}", flush=True)
            continue
        print(f"ok {count} - {source.name} for the host", flush=True)
    return 1 if failed or not count else 0


if __name__ == "__main__":
    sys.exit(main())
