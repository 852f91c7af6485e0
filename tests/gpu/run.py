#!/usr/bin/env python3
"""One command for a machine with a card: build, check, measure, report.

    python3 tests/gpu/run.py [--out FOLDER] [--seconds N] [--steps NAME..]
    python3 tests/gpu/run.py --vendor [FOLDER]     # beforehand, elsewhere: libraries for a machine that has none
    python3 tests/gpu/run.py --emulated            # try the script itself: times mean nothing

It needs nvcc with cuBLASLt, gcc and g++, and cJSON, utf8proc, PCRE2 and cmocka, installed or in FOLDER (build-gpu/vendor).  Within N
seconds it does, each as far as time allows, and none is stopped by another's failure:

    build        for the card's architecture
    checks       tests/cuda/check_*.cc on the card, and the library there against float64 and the CPU
    limits       what the card can do: copy, read, matrix units, launches
    models       V2-Lite's shape with random weights: decode, prompts
    kernels      each at shapes of V2-Lite and V2, against the limits (roofline.py)
    peer         V2-Lite's shape with random weights in HF Transformers, where the machine has it
    sanitizer    compute-sanitizer's four tools on some checks

FOLDER/report.json and FOLDER/report.md are written after each of them.  Status: 0 if all checks passed, 1 if not, 77 without a card.

SPDX-License-Identifier: MIT
"""
from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build
import report
import roofline

BUILD = build.ROOT / "build-gpu"
KV_BF16 = 0
DECODE = {"name": "V2-Lite", "batches": [1, 8, 32, 128], "context": 1024, "prompt": 2048}
STEPS = ("checks", "limits", "models", "kernels", "peer", "sanitizer")
# Tool, program, and a word of the names of its cases.
SANITIZED = (
    ("memcheck", "check_kernels", "dtype 2"), ("memcheck", "check_attention", "16 heads, rows of several"),
    ("memcheck", "check_experts", "a few rows"), ("memcheck", "check_prefill", "one row"), ("memcheck", "check_sample", "vocabulary of 700"),
    ("racecheck", "check_attention", "16 heads, one row"), ("racecheck", "check_experts", "experts_many, odd widths"),
    ("racecheck", "check_prefill", "one row"), ("racecheck", "check_kernels", "experts_few, dtype 2"),
    ("racecheck", "check_sample", "vocabulary of 700"), ("synccheck", "check_attention", "128 heads, one row"),
    ("synccheck", "check_experts", "a few rows, bf16"), ("initcheck", "check_kernels", "experts_few, dtype 2"),
)


class Run:
    def __init__(self, args: argparse.Namespace):
        self.steps = [s for s in STEPS if s in args.steps]
        self.out, self.emulated, self.end = args.out, args.emulated, time.monotonic() + args.seconds
        self.folder = BUILD / ("emulated" if args.emulated else "card")
        self.programs: dict[str, Path] = {}
        self.failed = False
        self.report: dict = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "emulated": args.emulated,
                             "card": None, "clocks": None, "limits": [], "kernels": [], "models": [], "peer": [], "checks": [], "notes": [],
                             "seconds": {}}
        self.out.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        return self.end - time.monotonic()

    def note(self, text: str, wrong: bool = True) -> None:
        self.failed |= wrong
        self.report["notes"].append(text)
        print(f"  note: {text}", flush=True)

    def write(self) -> None:
        (self.out / "report.json").write_text(json.dumps(self.report, indent=1) + "\n")
        (self.out / "report.md").write_text(report.markdown(self.report))

    def step(self, name: str, function, *args) -> None:
        begin = time.monotonic()
        if self.left() < 5:
            self.note(f"{name}: no time is left", False)
            return
        try:
            function(*args)
        except Exception as wrong:  # pylint: disable=broad-except
            self.note(f"{name}: {type(wrong).__name__}: {wrong}")
        self.report["seconds"][name] = round(time.monotonic() - begin, 1)
        print(f"{name}: {self.report['seconds'][name]} s", flush=True)
        self.write()

    def call(self, command: list, limit: float, given: str = "", **env: str) -> tuple[int | None, str]:
        """Status (None: stopped at the limit) and output."""
        process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, errors="replace", env={**os.environ, **env}, start_new_session=True)
        try:
            output, _ = process.communicate(given, timeout=max(1, min(limit, self.left())))
            return process.returncode, output
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            output, _ = process.communicate()
            return None, output

    # ---- steps ------------------------------------------------------------------------------------------------------------------------

    def build(self, vendored: Path) -> None:
        toolkit = build.emulated() if self.emulated else build.find_toolkit()
        self.report["architecture"] = toolkit.architecture
        self.programs, wrong = build.Build(self.folder, toolkit, vendored).all(os.cpu_count() or 1)
        for text in wrong:
            self.note(f"build: {text[-3000:]}")
        for name in sorted({p.stem for p in (build.TESTS / "cuda").glob("check_*.cc")} - set(self.programs)):
            self.report["checks"].append({"name": name, "only": "", "ok": False, "passed": 0, "failed": 0, "seconds": 0, "status": "not built"})

    def run_check(self, command: list, limit: float, env: dict[str, str]) -> tuple[int | None, str]:
        """As call; a check of kernels that one case has ended goes on behind that one."""
        end, whole, failed = time.monotonic() + limit, "", 0
        while True:
            status, output = self.call(command, max(1, end - time.monotonic()), **env)
            whole += output
            seen = re.findall(r"^# case (\d+)", output, re.M)
            if status in (0, None) or not seen or re.search(r"^1\.\.\d+", output, re.M):
                return failed or status, whole
            if not re.search(rf"^(not )?ok {seen[-1]} ", output, re.M):
                whole += f"not ok {seen[-1]} - ended by status {status}\n"
            env, failed = {**env, "DSV2_TEST_SKIP": seen[-1]}, status

    def check(self, name: str, limit: float, only: str = "", wrapper: tuple = (), label: str = "") -> None:
        begin = time.monotonic()
        command = [*wrapper, self.programs[name], *([only] if only and name == "check_backend" else [])]
        env = {"DSV2_TEST_ONLY": only} if only else {}
        status, output = self.run_check(command, limit, env)
        if status is None and wrapper:  # these tools are slow
            self.note(f"{label}, {only}: stopped after {time.monotonic() - begin:.0f} s", False)
            return
        passed = len(re.findall(r"^ok \d+|^\[       OK \]", output, re.M))
        failed = len(re.findall(r"^not ok \d+|^\[  FAILED  \] (?!\d+ test)\S*$", output, re.M)) if status else 0
        ok = status == 0 and passed > 0
        result = {"name": label or name, "only": only, "ok": ok, "passed": passed, "failed": failed, "seconds": round(time.monotonic() - begin, 1)}
        if not ok:
            result["status"] = "stopped at its time limit" if status is None else f"status {status}"
            result["output"] = output[-20000:]
        self.report["checks"].append(result)
        print(f"  {'ok    ' if ok else 'FAILED'} {result['name']} {only}: {passed} passed", flush=True)

    def checks(self, limit: float) -> None:
        """Of the library each test in a process of its own, as one can break what the next needs."""
        if self.emulated:
            plan = [("check_kernels", "rms_norm 37")]
        else:
            plan = [(n, "") for n in self.programs if n.startswith("check_") and n != "check_backend"]
            if "check_backend" in self.programs:
                plan += [("check_backend", test) for test in self.call([self.programs["check_backend"], "--list"], 20)[1].split()]
        with ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2)) as pool:
            list(pool.map(lambda one: self.check(one[0], limit, one[1]), plan))

    def bench(self, cases: list[roofline.Case], into: str, limit: float) -> None:
        """Cases in their order as far as the limit allows; after one that ends the program, those behind it."""
        end = time.monotonic() + min(limit, self.left())
        if self.emulated:
            cases = list({c.line(): c for c in map(roofline.tiny, cases)}.values())
        while cases and time.monotonic() < end - 1:
            status, output = self.call([self.programs["gpu_bench"]], end - time.monotonic(), "".join(c.line() + "\n" for c in cases))
            seen = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
            results = [r for r in seen if "case" in r]
            for r in results:
                case = next(c for c in cases if c.line() == r["case"])
                moved, flops = case.facts()
                self.report[into].append({**r, "kernel": case.kernel, "shape": case.shape, "what": case.what, "bytes": moved, "flops": flops,
                                          "target": case.target, "against": case.against, "like": [c.line() for c in case.like]})
                if "error" in r:
                    print(f"  FAILED {r['case']}: {r['error']}", flush=True)
            cases = cases[len(results):]
            if status == 0:
                break
            if status is not None and cases:  # it died in this one
                self.note(f"bench: status {status} at '{cases[0].line()}': {output[-500:]}")
                cases = cases[1:]
        if cases:
            self.note(f"{into}: no time for {len(cases)} cases, from '{cases[0].line()}' on", False)

    def models(self, limit: float) -> None:
        c = roofline.TINY if self.emulated else roofline.MODELS[DECODE["name"]]
        plan = {"batches": [1, 2], "context": 8, "prompt": 9} if self.emulated else DECODE
        config = self.out / "config.json"
        config.write_text(json.dumps(c))
        for dtype in ("bf16", "f8"):
            status, output = self.call([self.programs["gpu_model"], config, dtype, KV_BF16, plan["context"], plan["prompt"], *plan["batches"]], limit)
            for line in output.splitlines():
                result = json.loads(line) if line.startswith("{") else {}
                if "error" in result:
                    self.note(f"model, {dtype}: {result['error']}")
                if "model" not in result:
                    continue
                n = result["n"]
                moved, flops = (roofline.model_prefill(c, n) if result["model"] == "prompt"
                                else roofline.model_step(c, n, result["context"], dtype))
                target = 0.55 if result["model"] == "prompt" else 0.85 if n == 1 else 0
                self.report["models"].append({**result, "dtype": dtype, "bytes": moved, "flops": flops, "target": target if dtype == "bf16" else 0,
                                              "against": "matrix" if result["model"] == "prompt" else "copy"})
            if status:
                self.note(f"model, {dtype}: status {status}: {output[-500:]}")
            elif status is None:
                self.note(f"model, {dtype}: stopped at its time limit", False)

    def peer(self, limit: float) -> None:
        batches = [n for n in DECODE["batches"] if n <= 32]
        status, output = self.call([sys.executable, build.TESTS / "gpu" / "peer.py", self.out / "config.json", DECODE["context"], DECODE["prompt"],
                                    *batches], limit)
        self.report["peer"] = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        if status:
            self.note(f"peer: status {status}: {output[-500:]}", False)

    def sanitize(self) -> None:
        tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=":".join(map(str, Path("/usr/local").glob("cuda*/bin"))))
        if not tool:
            self.note("no compute-sanitizer", False)
            return
        for what, name, only in SANITIZED:
            if self.left() < 10:
                self.note(f"sanitizer: no time for {what} of {name} and what follows", False)
                return
            self.check(name, 45, only, (tool, "--tool", what, "--error-exitcode", "9", "--print-limit", "10"), f"{what}: {name}")

    # ---- all of it ----------------------------------------------------------------------------------------------------------------------

    def card(self) -> bool:
        done = subprocess.run([self.programs["gpu_bench"]], input="", capture_output=True, text=True, timeout=100)  # however long building took
        status, output = done.returncode, done.stdout
        if status == 77 or not output.startswith("{"):
            self.note(output.strip() or f"gpu_bench: status {status}")
            return False
        self.report["card"] = json.loads(output.splitlines()[0])
        if not self.emulated and shutil.which("nvidia-smi"):
            asked = "clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,driver_version"
            _, said = self.call(["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader", "-i", "0"], 20)
            self.report["clocks"] = dict(zip(asked.split(","), (word.strip() for word in said.strip().split(","))))
        return True

    def all(self, vendored: Path, programs: list[Path]) -> int:
        if programs:
            self.programs = {p.name: p for p in programs}
        else:
            self.step("build", self.build, vendored)
        if "gpu_bench" not in self.programs:
            self.note("there is no program 'gpu_bench'")
            self.write()
            return 1
        if not self.card():
            self.write()
            return 77 if self.report["notes"][-1] == "no CUDA device" else 1
        steps = {"checks": (self.checks, 150), "limits": (self.bench, roofline.limits(), "limits", 40), "models": (self.models, 75),
                 "kernels": (self.bench, roofline.cases(), "kernels", 150), "peer": (self.peer, 75), "sanitizer": (self.sanitize,)}
        for name in self.steps:
            if not self.emulated or name not in ("peer", "sanitizer"):
                self.step(name, *steps[name])
        self.write()
        print(f"{self.out / 'report.md'}")
        bad = [r for r in self.report["checks"] if not r["ok"]] + [r for r in self.report["limits"] + self.report["kernels"] if "error" in r]
        return 1 if bad or self.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BUILD / "report", metavar="FOLDER", help="for the report (default: build-gpu/report)")
    parser.add_argument("--seconds", type=int, default=480, metavar="N", help="for all of it (default: 480)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, help="only these, after building (default: all)")
    parser.add_argument("--vendor", type=Path, nargs="?", const=BUILD / "vendor", metavar="FOLDER", help="only copy libraries of others there")
    parser.add_argument("--vendored", type=Path, default=BUILD / "vendor", metavar="FOLDER", help="where they are (default: build-gpu/vendor)")
    parser.add_argument("--emulated", action="store_true", help="on the emulated card, with tiny shapes")
    parser.add_argument("--programs", type=Path, nargs="+", default=[], metavar="PROGRAM", help="build nothing: these are all programs")
    args = parser.parse_args()
    args.out, args.vendored = args.out.resolve(), args.vendored.resolve()
    if args.vendor:
        try:
            build.vendor(args.vendor)
        except build.Failed as wrong:
            print(wrong)
            return 1
        print(args.vendor)
        return 0
    return Run(args).all(args.vendored, args.programs)


if __name__ == "__main__":
    sys.exit(main())
