"""The example programs as a user runs them.  DSV2_EXAMPLES is the folder that they are in.

SPDX-License-Identifier: MIT
"""
import json
import math
import os
import signal
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "model"
CONFIG = json.loads((MODEL / "config.json").read_text())
PROMPT = "Once upon a time"


def program(name):
    return str(Path(os.environ.get("DSV2_EXAMPLES", ROOT / "build" / "gcc" / "examples"), f"dsv2-{name}"))


def run(name, *args, stdin="", status=0):
    done = subprocess.run([program(name), *map(str, args)], input=stdin, capture_output=True, text=True, timeout=250)
    if done.returncode != status:
        raise AssertionError(f"dsv2-{name} {args}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout if status == 0 else done.stderr


class Generate(unittest.TestCase):
    def test_seed_decides(self):
        args = (MODEL, "-n", 20, "--temperature", 1, PROMPT)
        one = run("generate", *args, "--seed", 1)
        self.assertEqual(one, run("generate", *args, "--seed", 1))
        self.assertGreater(len({run("generate", *args, "--seed", seed) for seed in range(5)}), 1)

    def test_prompt_from_anywhere(self):
        args = (MODEL, "-n", 8, "--temperature", 0)
        expected = run("generate", *args, PROMPT)
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(PROMPT)
            file.flush()
            for given in (("-p", PROMPT), (f"--prompt={PROMPT}",), ("-f", file.name)):
                self.assertEqual(run("generate", *args, *given), expected)
        self.assertEqual(run("generate", *args, stdin=PROMPT), expected)
        self.assertEqual(run("generate", *args, "--echo", PROMPT), PROMPT + expected)

    def test_settings_of_the_machine_do_not_change_the_text(self):
        expected = run("generate", MODEL, "-n", 16, "--temperature", 0, "--kv", "f32", PROMPT)
        for options in (("--threads", 1), ("--threads", 3), ("--read",), ("--batch", 1), ("--attention", "expanded"), ("--cpu", "reference")):
            self.assertEqual(run("generate", MODEL, "-n", 16, "--temperature", 0, "--kv", "f32", *options, PROMPT), expected, options)

    def test_stop_string(self):
        full = run("generate", MODEL, "-n", 30, "--temperature", 0, PROMPT)
        stop = full[4:7]
        self.assertEqual(run("generate", MODEL, "-n", 30, "--temperature", 0, "--stop", stop, PROMPT), full[: full.index(stop)] + "\n")

    def test_context_full_is_no_failure(self):
        out = subprocess.run([program("generate"), MODEL, "--ctx", "16", "--min-tokens", "100", PROMPT], capture_output=True, text=True)
        self.assertEqual(out.returncode, 0)
        self.assertIn("context full", out.stderr)

    def test_ctrl_c(self):
        child = subprocess.Popen([program("generate"), MODEL, "-n", "1000000", "--min-tokens", "1000000", PROMPT],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        child.stdout.read(1)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=120)
        self.assertIn(child.returncode, (0, 130))  # 0: the context was full first
        self.assertIn(b"cancelled" if child.returncode else b"context full", err)
        self.assertTrue(out.endswith(b"\n"))

    def test_mistakes(self):
        for args, text in (((), "which model"), (("/nonexistent", "x"), "/nonexistent"), ((MODEL, "--top-p", "2", "x"), "top_p"),
                           ((MODEL, "--frobnicate"), "--frobnicate"), ((MODEL, "-n", "x"), "'x'"), ((MODEL, "--kv", "f64"), "f64"),
                           ((MODEL, "--ctx", "1000000000", "x"), "n_ctx"), ((MODEL, "-p"), "-p needs a value")):
            self.assertIn(text, run("generate", *args, status=1))


class Chat(unittest.TestCase):
    def test_reset_and_history(self):
        args = (MODEL, "--seed", 1, "-n", 12)
        first, again = run("chat", *args, stdin="Hello\n/reset\nHello\n/quit\nnever read\n").splitlines()[:2]
        self.assertEqual(first, again)
        self.assertEqual(run("generate", MODEL, "--chat", "--seed", 1, "-n", 12, "Hello").splitlines()[0], first)
        run("chat", *args, stdin="Hello\nAnd now?\n/bogus\n\n")

    def test_system_message(self):
        args = (MODEL, "--temperature", 0, "-n", 12)
        one = run("chat", *args, "--system", "Be brief.", stdin="Hello\n")
        self.assertEqual(run("chat", *args, stdin="Hi\n/system Be brief.\nHello\n").splitlines()[-1], one.splitlines()[-1])

    def test_a_full_context_says_so(self):
        done = subprocess.run([program("chat"), MODEL, "--ctx", "24"], input="Hello\n" * 8, capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("/reset", done.stderr)


class Inspect(unittest.TestCase):
    def test_json_has_the_config(self):
        info = json.loads(run("inspect", MODEL, "--json", "--ctx", 128))
        for key in ("hidden_size", "kv_lora_rank", "q_lora_rank", "n_routed_experts", "topk_group", "routed_scaling_factor", "vocab_size"):
            self.assertEqual(info[key], CONFIG[key], key)
        memory = info["memory"]
        self.assertEqual(memory["kv_per_token"], 2 * (CONFIG["kv_lora_rank"] + CONFIG["qk_rope_head_dim"]) * CONFIG["num_hidden_layers"])
        self.assertEqual(memory["kv"], 128 * memory["kv_per_token"])
        self.assertEqual(memory["total"], sum(memory[k] for k in ("weights", "kv", "scratch", "other")))
        self.assertEqual(info["weight_bytes"], 2 * info["parameters"])

    def test_cache_of_every_type(self):
        info = json.loads(run("inspect", MODEL, "--json", "--kv", "int8"))
        sizes, layers = info["kv_bytes_per_token"], CONFIG["num_hidden_layers"]
        self.assertEqual({kv: n / layers for kv, n in sizes.items()},
                         {"bf16": 1152, "f32": 2304, "f8_e4m3": 592, "f8_e5m2": 592, "int8": 592, "6bit": 400})  # as dsv2.h says
        self.assertEqual(info["memory"]["kv_per_token"], sizes["int8"])
        self.assertRegex(run("inspect", MODEL), r"6bit +1600 B +5\.56 bits per element\n")

    def test_config_alone(self):
        with tempfile.TemporaryDirectory() as tmp:
            Path(tmp, "config.json").write_text(json.dumps(CONFIG))
            out = run("inspect", tmp)
            self.assertRegex(out, r"tokenizer +none\n(.*\n)*Memory")
            Path(tmp, "config.json").write_text(json.dumps({**CONFIG, "topk_group": 1000}))
            self.assertIn("topk_group", run("inspect", tmp, status=1))


class Bench(unittest.TestCase):
    args = (MODEL, "--sessions", "1,3", "--context", "16,80", "--steps", 2, "--repeats", 2, "--kv", "bf16,6bit")

    def test_json(self):
        out = json.loads(run("bench", *self.args, "--json"))
        self.assertEqual([(x["kv"], x["context"]) for x in out["speed"]], [("bf16", 16), ("6bit", 16), ("bf16", 80), ("6bit", 80)])
        for x in out["speed"]:
            self.assertTrue(x["prefill"] > 0 and set(x["decode"]) == {"1", "3"} and min(x["decode"].values()) > 0)
        self.assertEqual([x["reused"] for x in out["prefix"]], [0, 64] * 2)  # whole pages, and at least one token is computed
        for x in out["memory"]:  # nothing is taken that was not foretold but page tables, tokens and logits
            self.assertLess(x["one_taken"], x["one_foretold"] + 100_000)
            self.assertLess(x["many_taken"], x["many_foretold"] + 3 * 100_000)
            self.assertGreater(x["many_taken"], 0.9 * x["many_foretold"])

    def test_text_and_mistakes(self):
        self.assertRegex(run("bench", *self.args), r"6bit +80 +\d+ +\d+ +\d+\n")
        for args, text in ((("--sessions", "1,x"), "'x'"), (("--kv", "bf16,f64"), "f64"), (("--context", 10**6), "n_ctx")):
            self.assertIn(text, run("bench", MODEL, *args, status=1))


class Score(unittest.TestCase):
    text = "The king went to the castle. The queen was there. " * 8

    def score(self, *options, text=None):
        return [json.loads(line) for line in run("score", MODEL, "--json", *options, "-", stdin=text or self.text).splitlines()]

    def test_tokens_add_up(self):
        *tokens, total = self.score("--tokens", "--kv", "f32")
        self.assertEqual(len(tokens), total["tokens"])
        self.assertEqual("".join(t["text"] for t in tokens), self.text)
        self.assertAlmostEqual(sum(t["logprob"] for t in tokens), total["logprob"], places=2)
        self.assertAlmostEqual(math.log(total["perplexity"]), -total["logprob"] / total["tokens"], places=6)
        self.assertEqual(total["greedy"], all(t["rank"] == 1 for t in tokens))
        for t in tokens:
            self.assertTrue(t["top_logprob"] >= t["logprob"] and (t["rank"] == 1) == (t["top_logprob"] == t["logprob"]), t)

    def test_windows(self):
        whole, small = self.score("--tokens"), self.score("--tokens", "--ctx", 40, "--overlap", 30)
        self.assertEqual([t["token"] for t in whole[:-1]], [t["token"] for t in small[:-1]])
        self.assertEqual(whole[:39], small[:39])  # BOS and 39 tokens: the first window

    def test_context_is_not_scored(self):
        both = self.score("--tokens", "--kv", "f32")[8:-1]
        ids = [t["token"] for t in both]
        text = "".join(t["text"] for t in self.score("--tokens")[:8])
        rest = self.score("--tokens", "--kv", "f32", "--context", text, text=self.text[len(text):])[:-1]
        self.assertEqual([t["token"] for t in rest], ids)
        for a, b in zip(rest, both):
            self.assertAlmostEqual(a["logprob"], b["logprob"], places=4)

    def test_mistakes(self):
        self.assertIn("/nonexistent", run("score", MODEL, "/nonexistent", status=1))
        self.assertIn("no text", run("score", MODEL, "-", stdin="", status=1))
        self.assertIn("overlap", run("score", MODEL, "--ctx", 16, "--overlap", 16, "-", stdin="a", status=1))


if __name__ == "__main__":
    unittest.main()
