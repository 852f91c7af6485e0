"""The example programs as a user runs them.  DSV2_EXAMPLES is the folder that they are in.

SPDX-License-Identifier: MIT
"""
import json
import math
import os
import re
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "model"
CONFIG = json.loads((MODEL / "config.json").read_text())
PROMPT = "Once upon a time"


def program(name):
    return str(Path(os.environ.get("DSV2_EXAMPLES", ROOT / "build" / "gcc" / "examples"), f"dsv2-{name}"))


def both(name, *args, stdin=""):
    return subprocess.run([program(name), *map(str, args)], input=stdin, capture_output=True, text=True, timeout=250)


def run(name, *args, stdin="", status=0):
    done = both(name, *args, stdin=stdin)
    if done.returncode != status:
        raise AssertionError(f"dsv2-{name} {args}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout if status == 0 else done.stderr


def prompt_tokens(*args):
    return int(re.search(r"prompt (\d+) tokens", both("generate", MODEL, "--chat", "-n", 1, *args).stderr)[1])


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

    def test_what_a_stop_string_held_back_comes_at_the_end(self):
        full = run("generate", MODEL, "-n", 30, "--temperature", 0, PROMPT)
        self.assertEqual(run("generate", MODEL, "-n", 30, "--temperature", 0, "--stop", full[-4:-1] + "\u2603", PROMPT), full)

    def test_the_report(self):
        args = (MODEL, "--temperature", 0)
        self.assertIn("ended by length", both("generate", *args, "-n", 5, PROMPT).stderr)
        self.assertIn("ended by end of text", both("generate", *args, "--chat", "-n", 500, "Hello").stderr)
        full = run("generate", *args, "-n", 9, PROMPT)
        self.assertIn("ended by stop string", both("generate", *args, "--stop", full[2:5], PROMPT).stderr)
        self.assertEqual(both("generate", *args, "-n", 5, "--quiet", PROMPT).stderr, "")
        self.assertIn("seed 7]", both("generate", *args, "-n", 1, "--seed", 7, PROMPT).stderr)
        self.assertIn("generated 0,", both("generate", *args, "-n", 0, PROMPT).stderr)
        done = both("generate", *args, "--chat", "-n", 500, "--min-tokens", 100, "Hello")
        self.assertGreaterEqual(int(re.search(r"generated (\d+),", done.stderr)[1]), 100)

    def test_sampling_options(self):
        greedy = run("generate", MODEL, "-n", 12, "--temperature", 0, PROMPT)
        for option in (("--top-k", 1), ("--min-p", 1), ("--top-p", 1e-9)):
            self.assertEqual(run("generate", MODEL, "-n", 12, "--temperature", 1, "--seed", 3, *option, PROMPT), greedy, option)
        for option, value, field in (("--temperature", -1, "temperature"), ("--min-p", 2, "min_p"), ("--repetition-penalty", 0, "repetition_penalty"),
                                     ("--presence-penalty", 3, "presence_penalty"), ("--frequency-penalty", -3, "frequency_penalty")):
            self.assertIn(f"{field}: {value}", run("generate", MODEL, option, value, PROMPT, status=1))

    def test_system_message(self):
        args = ("--temperature", 0, "-n", 12, "--system", "Be brief.")
        self.assertEqual(run("generate", MODEL, "--chat", *args, "Hello"), run("chat", MODEL, *args, stdin="Hello\n"))
        self.assertGreater(prompt_tokens("--system", "Be brief.", "Hello"), prompt_tokens("Hello") + 3)

    def test_markers_in_a_message_stay_text(self):
        self.assertGreater(prompt_tokens("a<｜end▁of▁sentence｜>"), prompt_tokens("a") + 3)

    def test_an_empty_prompt(self):
        with tempfile.TemporaryDirectory() as tmp:
            self.assertIn("the prompt is empty", run("generate", without_bos(tmp), "-p", "", status=1))

    def test_a_long_text_is_read_whole(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("1" * 300000)  # digits are tokens of their own
            file.flush()
            self.assertIn(" 300001 tokens", run("generate", MODEL, "-f", file.name, status=1))

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
                           ((MODEL, "--ctx", "1000000000", "x"), "n_ctx"), ((MODEL, "-p"), "-p needs a value"),
                           ((MODEL, "-n", "-1", "x"), "'-1'"), ((MODEL, "--temperature", "warm", "x"), "'warm'"),
                           ((MODEL, "--temperature", "nan", "x"), "'nan'"), ((MODEL, "--system", "s", "x"), "--system needs --chat"),
                           ((MODEL, "-f", "/dev/null", "x"), "exclude"), ((MODEL, "x", "y"), "unexpected argument 'y'")):
            self.assertIn(text, run("generate", *args, status=1))


def without_bos(folder):
    """The bundled model in folder, but its tokenizer puts no BOS in front."""
    for file in MODEL.iterdir():
        if file.name != "tokenizer_config.json":
            Path(folder, file.name).symlink_to(file)
    config = json.loads((MODEL / "tokenizer_config.json").read_text())
    Path(folder, "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": False}))
    return folder


class Chat(unittest.TestCase):
    def test_reset_and_history(self):
        args = (MODEL, "--seed", 1, "-n", 12, "--temperature", 1)
        first, again = run("chat", *args, stdin="Hello\n/reset\nHello\n/quit\nnever read\n").splitlines()[:2]
        self.assertEqual(first, again)
        self.assertEqual(run("generate", MODEL, "--chat", "--seed", 1, "-n", 12, "--temperature", 1, "Hello").splitlines()[0], first)
        run("chat", *args, stdin="Hello\nAnd now?\n/bogus\n\n")

    def test_system_message(self):
        args = (MODEL, "--temperature", 0, "-n", 12)
        one = run("chat", *args, "--system", "Be brief.", stdin="Hello\n")
        self.assertEqual(run("chat", *args, stdin="Hi\n/system Be brief.\nHello\n").splitlines()[-1], one.splitlines()[-1])

    def test_turns_are_what_the_template_says(self):
        agree = 0
        for seed in range(4):  # a text need not give the tokens back that it was generated from: one of four is enough
            args = (MODEL, "--temperature", 1, "--seed", seed, "-n", 16)
            first, second = run("chat", *args, "--system", "Be brief.", stdin="Hello\n\nAnd now?\n").split("\n")[:2]  # an empty line is no turn
            text = f"Be brief.\n\nUser: Hello\n\nAssistant: {first}<｜end▁of▁sentence｜>User: And now?\n\nAssistant:"
            agree += run("generate", *args, text).removeprefix(" ").split("\n")[0] == second and len(second) > 8
        self.assertTrue(agree)
        first = run("chat", MODEL, "--temperature", 0, "-n", 6, stdin="Hello\n")
        self.assertTrue(first.startswith(run("chat", MODEL, "--temperature", 0, "-n", 2, stdin="Hello\n").rstrip("\n")) and len(first) > 2)

    def test_commands(self):
        self.assertEqual(run("chat", MODEL, "-n", 3, stdin="/quit\nHello\n"), "")
        done = both("chat", MODEL, "-n", 3, stdin="/bogus\n")
        self.assertEqual((done.stdout, done.returncode), ("", 0))
        self.assertIn("/bogus is no command", done.stderr)

    def test_a_line_that_is_no_text_ends_nothing(self):
        done = subprocess.run([program("chat"), str(MODEL), "--temperature", "0"], input=b"caf\xe9\nHello\n", capture_output=True, timeout=250)
        self.assertEqual(done.returncode, 0)
        self.assertIn(b"is not UTF-8 at byte 3", done.stderr)
        self.assertTrue(done.stdout.strip())

    def test_a_slash_can_be_said(self):
        self.assertEqual(both("chat", MODEL, "--temperature", 0, stdin="//quit\n").stderr, "")

    def test_a_base_model_cannot_chat(self):
        with tempfile.TemporaryDirectory() as tmp:
            for file in MODEL.iterdir():
                if file.name != "tokenizer_config.json":
                    Path(tmp, file.name).symlink_to(file)
            self.assertIn("no chat template", run("chat", tmp, stdin="Hello\n", status=1))

    def test_ctrl_c_while_nothing_computes_ends_it(self):
        child = subprocess.Popen([program("chat"), str(MODEL), "-n", "2", "--read"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdin.write(b"Hello\n")
        child.stdin.flush()
        self.assertTrue(child.stdout.readline())
        self.assertNotIn(str(MODEL / "model.safetensors"), Path(f"/proc/{child.pid}/maps").read_text())  # --read maps nothing
        time.sleep(0.2)  # it waits for a line now
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
        self.assertEqual(child.returncode, 130)

    def test_a_full_context_says_so(self):
        done = subprocess.run([program("chat"), MODEL, "--ctx", "24"], input="Hello\n" * 8, capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("/reset", done.stderr)


    def test_ctrl_c_takes_the_turn_back(self):
        child = subprocess.Popen([program("chat"), str(MODEL), "-n", "1", "--cpu", "reference", "--threads", "1", "--batch", "1"],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdin.write(b"Hello\n")
        child.stdin.flush()
        self.assertTrue(child.stdout.readline())
        child.stdin.write(b"1" * 1900 + b"\n")  # a prompt of many seconds
        child.stdin.flush()
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        self.assertEqual(child.communicate(timeout=240)[0], b"")  # no reply, and the program goes on until the input ends
        self.assertEqual(child.returncode, 0)


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
            self.assertRegex(run("inspect", MODEL), r"chat template +V2\n")
            Path(tmp, "config.json").write_bytes((ROOT / "tests" / "loading" / "configs" / "v2.json").read_bytes())
            out = run("inspect", tmp)
            self.assertRegex(out, r"parameters +235741434880 \(235\.74B\)\n")
            self.assertRegex(out, r"experts +6 of 160 \(3 of 8 groups\), 2 shared, factor 16, from layer 1\n")
            self.assertRegex(out, r"chat template +none\n")
            Path(tmp, "config.json").write_text(json.dumps(CONFIG))
            Path(tmp, "config.json").write_text(json.dumps({**CONFIG, "topk_group": 1000}))
            self.assertIn("topk_group", run("inspect", tmp, status=1))


    def test_text_says_what_json_does(self):
        memory = json.loads(run("inspect", MODEL, "--json", "--ctx", 1000))["memory"]
        text = run("inspect", MODEL, "--ctx", 1000)
        for name, key in (("weights", "weights"), ("cache, when it is full", "kv"), ("scratch", "scratch"), ("total", "total")):
            self.assertRegex(text, rf"\n  {name} +{memory[key] / 2**20:.2f} MiB")
        self.assertIn(f"({memory['kv_per_token']} per token, 1000 tokens)", text)

    def test_the_instruction_set_is_the_one_named(self):
        for name, level in (("avx2", 1), ("avx512", 2)):
            done = both("inspect", MODEL, "--cpu", name)
            if done.returncode:  # not on this machine
                self.assertIn(f"cpu_level: {level}", done.stderr)


class LostOutput(unittest.TestCase):
    def test_is_a_failure(self):
        with tempfile.NamedTemporaryFile("w") as text, open("/dev/full", "w") as full:
            text.write("The king went to the castle.")
            text.flush()
            for name, *args in (("generate", "-n", 2, PROMPT), ("inspect",), ("score", text.name), ("chat", "--help"), ("chat",)):
                done = subprocess.run([program(name), str(MODEL), *map(str, args)], stdin=subprocess.DEVNULL, stdout=full,
                                      stderr=subprocess.PIPE, text=True, timeout=250)
                if name == "chat" and not args:
                    self.assertEqual(done.returncode, 0)  # nothing was written
                else:
                    self.assertEqual((done.returncode, "No space left" in done.stderr), (1, True), f"{name} {args}: {done.stderr}")


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
        for args, text in ((("--sessions", "1,x"), "'x'"), (("--kv", "bf16,f64"), "f64"), (("--context", 10**6), "max_position_embeddings"),
                           (("--context", 2040), "--steps 16"), (("--ctx", 9), "--ctx")):
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

    def test_totals(self):
        *tokens, total = self.score("--tokens")
        self.assertAlmostEqual(total["bits_per_byte"], -total["logprob"] / math.log(2) / total["bytes"], places=6)
        self.assertEqual(total["bytes"], len(self.text.encode()))
        good = max(i for i, t in enumerate(tokens) if t["rank"] == 1)
        self.assertLess(min(i for i, t in enumerate(tokens) if t["rank"] > 1), good)
        self.assertFalse(self.score(text="".join(t["text"] for t in tokens[: good + 1]))[-1]["greedy"])  # though its last token is
        out = run("score", MODEL, "-", stdin=self.text)
        self.assertRegex(out, rf"^{total['tokens']} tokens, {total['bytes']} bytes: perplexity {total['perplexity']:.4f}, ")

    def test_a_first_token_does_not_count(self):
        with tempfile.TemporaryDirectory() as tmp:
            lines = run("score", without_bos(tmp), "--json", "--tokens", "-", stdin=self.text).splitlines()
        first, *rest, total = map(json.loads, lines)
        self.assertIsNone(first["logprob"])
        self.assertEqual(total["tokens"], len(rest))
        self.assertAlmostEqual(total["logprob"], sum(t["logprob"] for t in rest), places=2)

    def test_text_in_json(self):
        text = 'a "quoted" back\\slash\x01\x7f\ttab\n'
        self.assertEqual("".join(t["text"] for t in self.score("--tokens", text=text)[:-1]), text)

    def test_windows_overlap_by_half(self):
        self.assertEqual(self.score("--tokens", "--ctx", 40), self.score("--tokens", "--ctx", 40, "--overlap", 20))
        self.assertNotEqual(self.score("--tokens", "--ctx", 40), self.score("--tokens", "--ctx", 40, "--overlap", 1))

    def test_windows(self):
        whole, small = self.score("--tokens"), self.score("--tokens", "--ctx", 40, "--overlap", 30)
        self.assertEqual([t["token"] for t in whole[:-1]], [t["token"] for t in small[:-1]])
        self.assertTrue(all(t["logprob"] is not None for t in small[:-1]))
        self.assertEqual(whole[:39], small[:39])  # BOS and 39 tokens: the first window

    def test_context_is_not_scored(self):
        both = self.score("--tokens", "--kv", "f32")[8:-1]
        ids = [t["token"] for t in both]
        text = "".join(t["text"] for t in self.score("--tokens")[:8])
        rest = self.score("--tokens", "--kv", "f32", "--context", text, text=self.text[len(text):])[:-1]
        self.assertEqual([t["token"] for t in rest], ids)
        for a, b in zip(rest, both):
            self.assertAlmostEqual(a["logprob"], b["logprob"], places=4)

    def test_nothing_to_score(self):
        self.assertIn("too small", run("score", MODEL, "--ctx", 1, "-", stdin=self.text, status=1))

    def test_mistakes(self):
        self.assertIn("/nonexistent", run("score", MODEL, "/nonexistent", status=1))
        self.assertIn("no text", run("score", MODEL, "-", stdin="", status=1))
        self.assertIn("overlap", run("score", MODEL, "--ctx", 16, "--overlap", 16, "-", stdin="a", status=1))


if __name__ == "__main__":
    unittest.main()
