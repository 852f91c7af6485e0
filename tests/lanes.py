"""The test runner: lanes, each a way to build and check the project, with time and counts.

SPDX-License-Identifier: MIT

A lane is a function that returns its Counts, or raises Skip with the reason.  Programs are counted by their cases where they
print them (cmocka, TAP, unittest), else as one.  tests/run starts this file after it has seen to the packages.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "model"
UBSAN = "print_stacktrace=1:halt_on_error=1"
# The emulated card's tests run once, under sanitizers, but for those that take too long with them; and everything both ways with --all.
EMULATED, EMULATED_LONG = ("emulation", "cuda", "gpu"), ("backend_golden", "prefill", "script")
SANITIZED_LONG = ("ops", "golden", "alloc", "model", "pool")  # of the others: under sanitizers only with --all
THREADS = ("threads", "session")                              # what ThreadSanitizer always sees; more of it with --all


class Skip(Exception):
    """Raised by a lane that cannot run here; the text says why."""


class Counts(NamedTuple):
    passed: int
    failed: int
    skipped: int = 0
    log: str = ""

    def __add__(self, other):
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped, self.log + other.log)


def count_cases(output: str, ok: bool) -> Counts:
    """Cases of one program from what it printed; a program that prints none, or dies, is one case itself."""
    def total(pattern: str) -> int:
        return sum(int(n) for n in re.findall(pattern, output, re.M))

    passed = total(r"^\[  PASSED  \] (\d+) test") + len(re.findall(r"^ok \d+(?!.*# SKIP)", output, re.M))
    failed = total(r"^\[  FAILED  \] (\d+) test") + len(re.findall(r"^not ok \d+", output, re.M))
    skipped = total(r"^\[  SKIPPED \] (\d+) test") + len(re.findall(r"^ok \d+.*# SKIP", output, re.M))
    if ran := re.search(r"^Ran (\d+) tests? in", output, re.M):  # unittest
        bad = sum(int(n) for n in re.findall(r"(?:failures|errors)=(\d+)", output))
        skipped += total(r"skipped=(\d+)")
        passed, failed = passed + int(ran[1]) - bad - total(r"skipped=(\d+)"), failed + bad
    passed += len(re.findall(r"^\S(?!.* \.\.\. ).* ok$", output, re.M))  # tests/ops
    failed += len(re.findall(r"^\S.* FAILED$", output, re.M))
    if not passed + failed + skipped:
        passed = int(ok)
    if not ok and not failed:
        failed = 1
    return Counts(passed, failed, skipped, "" if ok and not failed else output)


class Runner:
    def __init__(self, build: Path, fuzz_seconds: int):
        self.build = build
        self.fuzz_seconds = fuzz_seconds
        self.jobs = str(os.cpu_count() or 1)

    def sh(self, *command, timeout: int = 3600, **env: str) -> Counts:
        """Run a command and count its cases."""
        try:
            done = subprocess.run([str(c) for c in command], cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=timeout, errors="replace")
        except subprocess.TimeoutExpired:
            return Counts(0, 1, 0, f"no end after {timeout} s: {command}\n")
        return count_cases(done.stdout, done.returncode == 0)

    def setup(self, name: str, *options: str, compiler: str = "gcc", targets: tuple[str, ...] = ()) -> Counts:
        """Configure (once) and build build/NAME; one case."""
        folder = self.build / name
        if not (folder / "build.ninja").exists():
            done = self.sh("meson", "setup", folder, "--werror", *options, CC=compiler)
            if done.failed:
                return done
        return self.sh("ninja", "-C", folder, "-j", self.jobs, *targets)

    def tests(self, name: str) -> dict[str, str]:
        """Tests of build/NAME with their suites."""
        tests = json.loads(subprocess.check_output(["meson", "introspect", "--tests", self.build / name]))
        return {t["name"]: t["suite"][0].split(":")[-1] for t in tests}

    def meson_test(self, name: str, *options: str, wrapper: tuple[str, ...] = (), **env: str) -> Counts:
        """Run tests of build/NAME and count their cases."""
        folder = self.build / name
        log = folder / "meson-logs" / ("lane-valgrind.json" if "--wrap" in options else "lane.json")  # meson adds the wrapper's name
        log.unlink(missing_ok=True)
        done = self.sh(*wrapper, "meson", "test", "-C", folder, "--no-rebuild", "--logbase", "lane", *options, **env)
        if not log.exists():
            return done
        counts = Counts(0, 0)
        for line in log.read_text().splitlines():
            test = json.loads(line)
            if test["result"] == "SKIP":
                counts += Counts(0, 0, 1)
                continue
            one = count_cases(test.get("stdout", "") + "\n" + test.get("stderr", ""), test["result"] == "OK")
            if one.log:
                one = one._replace(log=f"--- {test['name']}: {test['result']}\n{one.log}\n")
            counts += one
        return counts

    # ---- lanes -------------------------------------------------------------------------------------------------------

    def prefix(self) -> Path:
        return self.build / "prefix"

    def library_folder(self) -> Path:
        found = sorted(self.prefix().rglob("libdsv2.so"))
        if not found:
            raise Skip("nothing is installed")
        return found[0].parent

    def build_gcc(self) -> Counts:
        return self.setup("gcc", f"--prefix={self.prefix()}")

    def build_clang(self) -> Counts:
        if not shutil.which("clang"):
            raise Skip("no clang")
        return self.setup("clang", "-Dbuildtype=debug", compiler="clang")  # for its warnings: nothing of it is run

    def suites(self, names: list[str], every: bool) -> Counts:
        return self.meson_test("gcc", *(t for t, suite in self.tests("gcc").items()
                                        if suite in names and (every or suite not in EMULATED or t in EMULATED_LONG)))

    def sanitizers(self, every: bool) -> Counts:
        built = self.setup("asan", "-Db_sanitize=address,undefined", "-Dbuildtype=debugoptimized")
        if built.failed:
            return built
        tests = self.tests("asan").items()
        # The emulated card: a stack for each of its threads, and a second for what returned is out of proportion; memory errors hardly
        # depend on what it does by chance.
        return (self.meson_test("asan", *(t for t, suite in tests if suite not in EMULATED and (every or t not in SANITIZED_LONG)),
                                "-t", "10", UBSAN_OPTIONS=UBSAN,
                                ASAN_OPTIONS="allocator_may_return_null=1:detect_stack_use_after_return=1")
                + self.meson_test("asan", *(t for t, suite in tests if suite in EMULATED and (every or t not in EMULATED_LONG)),
                                  "-t", "20", UBSAN_OPTIONS=UBSAN, DSV2_TEST_SEEDS="1",
                                  ASAN_OPTIONS="allocator_may_return_null=1:detect_stack_use_after_return=0"))

    def threads(self, every: bool) -> Counts:
        built = self.setup("tsan", "-Db_sanitize=thread", "-Dbuildtype=debugoptimized",
                           targets=() if every else tuple(f"tests/api/test_{t}" for t in THREADS))
        if built.failed:
            return built
        # Without address randomization: this ThreadSanitizer and newer kernels' layouts do not go together.
        wrapper = ("setarch", os.uname().machine, "-R")
        if subprocess.run([*wrapper, "true"], capture_output=True).returncode:
            raise Skip("setarch -R is not allowed here")
        tests = [t for t, suite in self.tests("tsan").items() if t in THREADS or (every and suite not in ("fuzz", *EMULATED))]
        return self.meson_test("tsan", *tests, "-t", "20", wrapper=wrapper, TSAN_OPTIONS="halt_on_error=1:allocator_may_return_null=1")

    def nvcc(self, every: bool) -> Counts:
        """The kernels for one architecture, or for all; none may spill."""
        if not shutil.which("g++"):
            raise Skip("no g++")
        if not importlib.util.find_spec("ensurepip") and not shutil.which("nvcc", path=f"{os.environ['PATH']}:/usr/local/cuda/bin"):
            raise Skip("no nvcc, and no python3-venv to install one")
        command = [sys.executable, "tests/cuda/build.py", self.build / "cuda", *(["--all"] if every else [])]
        done = subprocess.run([str(c) for c in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
        if done.returncode == 77:
            raise Skip(done.stdout.strip().splitlines()[-1])
        return count_cases(done.stdout, done.returncode == 0)

    def gpu_script(self) -> Counts:
        """tests/gpu/run.py builds all that a card runs; without one it says so, with one it runs it."""
        if not shutil.which("nvcc", path=f"{os.environ['PATH']}:/usr/local/cuda/bin"):
            raise Skip("no nvcc")
        command = [sys.executable, "tests/gpu/run.py", "--out", self.build / "gpu-report"]
        done = subprocess.run([str(c) for c in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", text=True)
        return count_cases(done.stdout, done.returncode == 0 or (done.returncode == 77 and "no CUDA device" in done.stdout))

    def header(self) -> Counts:
        counts = Counts(0, 0)
        for compiler, standard, language in (("gcc", "c99", "c"), ("g++", "c++11", "c++"), ("clang", "c99", "c"),
                                             ("clang++", "c++11", "c++")):
            if not shutil.which(compiler):
                counts += Counts(0, 0, 1)
                continue
            counts += self.sh(compiler, f"-std={standard}", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x",
                              language, ROOT / "include" / "dsv2.h", *(["-Wno-pragma-once-outside-header"] if "clang" in compiler else []))
        return counts

    def abi(self) -> Counts:
        return self.sh(sys.executable, "tests/abi/check.py", self.build / "gcc" / "lib")

    def install(self) -> Counts:
        if not (shutil.which("g++") and shutil.which("make")):
            raise Skip("no g++ or no make")
        done = self.sh("meson", "install", "-C", self.build / "gcc", "--no-rebuild")
        if done.failed:
            return done
        copy = self.build / "consumer"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(ROOT / "pkgconfig" / "consumer", copy)  # elsewhere, so that it sees the installed files only
        libs = self.library_folder()
        return self.sh("make", "-C", copy, "check", f"MODEL={MODEL}", PKG_CONFIG_PATH=str(libs / "pkgconfig"),
                       LD_LIBRARY_PATH=str(libs))

    def python(self) -> Counts:
        command = (sys.executable, "-m", "unittest", "discover", "-s", "tests/python", "-v")
        package = str(ROOT / "bindings" / "python")
        from_build = self.sh(*command, PYTHONPATH=package, DSV2_LIBRARY=str(self.build / "gcc" / "lib"))
        try:
            libs = self.library_folder()
        except Skip:
            return from_build + Counts(0, 0, 1)
        return from_build + self.sh(*command, PYTHONPATH=package, DSV2_LIBRARY="", LD_LIBRARY_PATH=str(libs))

    def fuzz(self) -> Counts:
        """Each target: its corpus, then a short run from it.  What is found stays in build/fuzz."""
        if not shutil.which("clang"):
            raise Skip("no clang")
        if subprocess.run(["clang", "-fsanitize=fuzzer", "-x", "c", "-", "-o", os.devnull], capture_output=True, text=True,
                          input="int LLVMFuzzerTestOneInput(void) { return 0; }").returncode:
            raise Skip("clang has no libFuzzer (libclang-rt-14-dev)")
        targets = sorted(p.stem for p in (ROOT / "tests" / "fuzz").glob("fuzz_*.c"))
        if not targets:
            raise Skip("no fuzz targets")
        counts = self.setup("fuzz", "-Dfuzzers=true", "-Db_sanitize=address,undefined", "-Db_lundef=false",
                            "-Dc_args=-fsanitize=fuzzer-no-link", compiler="clang",
                            targets=tuple(f"tests/fuzz/{t}" for t in targets))
        if counts.failed:
            return counts
        found = self.build / "fuzz" / "found"

        def one(target: str) -> Counts:
            work = found / target
            work.mkdir(parents=True, exist_ok=True)
            name = target.removeprefix("fuzz_")
            corpus, words = ROOT / "tests" / "fuzz" / "corpus" / name, ROOT / "tests" / "fuzz" / "dict" / f"{name}.dict"
            return self.sh(self.build / "fuzz" / "tests" / "fuzz" / target, f"-max_total_time={self.fuzz_seconds}",
                           f"-artifact_prefix={work}/", "-timeout=25", "-rss_limit_mb=4096", "-max_len=8192", "-verbosity=0",
                           *([f"-dict={words}"] if words.is_file() else []), work, *([corpus] if corpus.is_dir() else []),
                           timeout=self.fuzz_seconds + 600)

        with ThreadPoolExecutor(int(self.jobs)) as pool:  # a target uses one core
            return sum(pool.map(one, targets), counts)

    def fuzz_coverage(self) -> Counts:
        """What the committed corpora reach of each parser: 90% of its lines at least."""
        if not shutil.which("clang") or not shutil.which("llvm-cov"):
            raise Skip("no clang or no llvm-cov (llvm)")
        return self.sh("tests/fuzz/fuzz.sh", "coverage", BUILD=str(self.build / "fuzz"))

    def docs(self) -> Counts:
        return self.sh(sys.executable, "tests/docs/check.py", self.build / "gcc")

    # ---- only in --all -----------------------------------------------------------------------------------------------

    def level(self, level: str, flag: str) -> Callable[[], Counts]:
        """What computes with a model, on one instruction set.  (tests/ops runs every one by itself.)"""
        def lane() -> Counts:
            if flag and f" {flag} " not in Path("/proc/cpuinfo").read_text():
                raise Skip(f"this machine has no {flag}")
            return self.meson_test("gcc", "golden", "session", "step", "model", "-t", "10", DSV2_TEST_CPU=level)
        return lane

    def valgrind(self) -> Counts:
        if not shutil.which("valgrind"):
            raise Skip("no valgrind")
        # Level 1: valgrind knows no AVX-512.  No leak check of session: its forked child ends with what its parent owns.
        return (self.meson_test("gcc", "session", "-t", "60", "--wrap", "valgrind -q --error-exitcode=9", DSV2_TEST_CPU="1")
                + self.meson_test("gcc", "params", "loading_model", "loading_broken", "text", "chat", "-t", "60", "--wrap",
                                  "valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite",
                                  DSV2_TEST_CPU="1"))

    def long_context(self) -> Counts:
        """131,072 tokens on one layer of V2's shape."""
        return self.sh(self.build / "gcc" / "tests" / "api" / "long_context")

    def oracles(self) -> Counts:
        """What compares with the code of others, in an environment of its own; and mypy on the Python package."""
        if not importlib.util.find_spec("ensurepip"):
            raise Skip("no python3-venv")
        venv = self.build / "venv"
        if not (venv / "bin" / "python").exists():
            done = self.sh(sys.executable, "-m", "venv", venv)
            if done.failed:
                return done
        done = self.sh(venv / "bin" / "pip", "install", "-q", "-r", "tests/requirements.txt")
        if done.failed:
            return done
        env = {"PYTHONPATH": str(ROOT / "bindings" / "python"), "DSV2_LIBRARY": str(self.build / "gcc" / "lib"), "HF_HUB_OFFLINE": "1"}
        python = venv / "bin" / "python"
        return (self.sh(python, "examples/verify.py", MODEL, **env)
                + self.sh(python, "tests/golden/check_reference.py")
                + self.sh(python, "tests/tokenizer/oracle.py", self.build / "gcc" / "tests" / "tokenizer" / "encode_tool",
                          MODEL / "tokenizer.json")
                + self.sh(python, "tests/tokenizer/random_tokenizers.py", self.build / "gcc" / "tests" / "tokenizer" / "encode_tool")
                + self.sh(python, "tests/tokenizer/large.py", self.build / "gcc" / "tests" / "tokenizer" / "encode_tool",
                          self.build / "large-tokenizers")
                + self.sh(python, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "bindings/python/dsv2"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/run", description="Build libdsv2 and run its tests.")
    parser.add_argument("--all", action="store_true", help="also what takes long: oracles, every instruction set, valgrind, fuzzing")
    parser.add_argument("--only", metavar="WORD", help="only lanes whose name contains WORD (builds run always)")
    parser.add_argument("--build", type=Path, default=ROOT / "build", metavar="FOLDER", help="where to build (default: build)")
    parser.add_argument("--fuzz-seconds", type=int, metavar="N", help="per fuzz target (default 3; with --all 300)")
    args = parser.parse_args()
    run = Runner(args.build.resolve(), args.fuzz_seconds or (300 if args.all else 3))

    total, start = Counts(0, 0), time.monotonic()
    skipped_lanes = []

    def lane(name: str, function: Callable[[], Counts], always: bool = False) -> bool:
        nonlocal total
        if args.only and not always and args.only not in name:
            return True
        begin = time.monotonic()
        try:
            counts = function()
        except Skip as reason:
            skipped_lanes.append(f"{name}: {reason}")
            print(f"  skipped   {name}: {reason}", flush=True)
            total += Counts(0, 0, 1)
            return True
        total += counts._replace(log="")
        parts = [f"{counts.passed} passed"] + [f"{n} {word}" for n, word in ((counts.failed, "FAILED"), (counts.skipped, "skipped")) if n]
        print(f"  {time.monotonic() - begin:7.1f} s {name:34} {', '.join(parts)}", flush=True)
        if counts.failed:
            print(counts.log[-20000:], flush=True)
        return not counts.failed

    print(f"libdsv2: {'all tests' if args.all else 'tests'}, {run.jobs} cores", flush=True)
    if lane("build (gcc, -Werror)", run.build_gcc, always=True):
        suites = list(dict.fromkeys(run.tests("gcc").values()))
        for together in [s for s in suites if s not in EMULATED], [s for s in suites if s in EMULATED]:  # many at once: some are one long test
            lane(f"unit: {' '.join(together)}", lambda names=together: run.suites(names, args.all))
        lane("ABI: symbols and types", run.abi)
        lane("install and pkg-config consumer", run.install)
        lane("python bindings", run.python)
        lane("documentation", run.docs)
        if args.all:
            for level, name, flag in (("0", "plain C", ""), ("1", "AVX2", "avx2"), ("2", "AVX-512", "avx512bw")):
                lane(f"the model on {name}", run.level(level, flag))
            lane("long context", run.long_context)
            lane("valgrind", run.valgrind)
            lane("oracles (HF Transformers, Tokenizers)", run.oracles)
    lane("header alone: C99, C++11", run.header)
    lane("build (clang, -Werror)", run.build_clang)
    lane("kernels for cards (nvcc)", lambda: run.nvcc(args.all))
    lane("ASan and UBSan", lambda: run.sanitizers(args.all))
    lane("TSan", lambda: run.threads(args.all))
    lane("fuzz", run.fuzz)
    if args.all:
        lane("script for cards (nvcc)", run.gpu_script)
        lane("fuzz coverage", run.fuzz_coverage)
    print(f"{time.monotonic() - start:.0f} s in all")
    for line in skipped_lanes:
        print(f"skipped: {line}")
    print(f"{total.passed} passed, {total.failed} failed" + (f", {total.skipped} skipped" if total.skipped else ""))
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
