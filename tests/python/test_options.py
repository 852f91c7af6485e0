"""What each argument does, and each way a generation can end: a value that goes nowhere must be noticed.

SPDX-License-Identifier: MIT
"""
import json
import math
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import dsv2
from dsv2 import _errors, _lib
from dsv2._model import Callback

MODEL = Path(__file__).resolve().parents[2] / "examples" / "model"
PROMPT = "Once upon a time"


def setUpModule():
    global model, ids
    model = dsv2.Model(MODEL)
    ids = model.tokenize(PROMPT, bos=True)


def tearDownModule():
    model.close()


def mapped(path):
    return str(path.resolve()) in Path("/proc/self/maps").read_text()


class Arguments(unittest.TestCase):
    def test_context(self):
        memory = dsv2.inspect(MODEL)[1]
        with dsv2.Context(memory_bytes=memory.total - memory.kv // 2) as small:
            self.assertLess(dsv2.inspect(MODEL, small)[1].n_ctx, memory.n_ctx)
        seen = []
        with dsv2.Context(log=lambda *line: seen.append(line)) as context:
            context.log_callback(None, _lib.LOG_INFO, "naïve".encode())
        self.assertEqual(seen, [(2, "naïve")])

    @unittest.skipUnless(Path("/proc/self/maps").exists(), "no /proc")
    def test_read_maps_nothing(self):
        with tempfile.TemporaryDirectory() as tmp:
            for file in MODEL.iterdir():
                Path(tmp, file.name).write_bytes(file.read_bytes())
            weights = Path(tmp, "model.safetensors")
            with dsv2.Model(tmp, read=True):
                self.assertFalse(mapped(weights))
            with dsv2.Model(tmp):
                self.assertTrue(mapped(weights))

    def test_kv_and_attention(self):
        per_token, logits = {}, {}
        for kv in ("bf16", "f32"):
            with model.session(n_ctx=64, kv=kv) as session:
                per_token[kv] = session.memory.kv_per_token
        self.assertEqual(per_token["f32"], 2 * per_token["bf16"])
        self.assertEqual(dsv2.inspect(MODEL, n_ctx=64, kv="f32")[1].kv_per_token, per_token["f32"])
        for attention in ("absorbed", "expanded"):
            with model.session(n_ctx=64, attention=attention) as session:
                session.prefill(ids)
                logits[attention] = session.logits.copy()
        self.assertNotEqual(logits["absorbed"].tobytes(), logits["expanded"].tobytes())

    def test_n_batch_and_forks_report_progress(self):
        seen = []
        with model.session(n_ctx=64, n_batch=4, progress=lambda *at: seen.append(at)) as session:
            session.prefill(ids[:1] * 12)
            self.assertEqual(seen, [(4, 12), (8, 12)])
            with session.fork() as other:
                other.prefill(ids[:1] * 8)
            self.assertEqual(seen[2:], [(4, 8)])

        def fail(done, total):
            raise KeyError("mine")

        with model.session(n_ctx=64, n_batch=4, progress=fail) as session, session.fork() as other:
            with self.assertRaisesRegex(KeyError, "mine"):
                other.prefill(ids[:1] * 12)

    def test_absent_facts_are_none(self):
        config = json.loads((MODEL / "config.json").read_text())
        with tempfile.TemporaryDirectory() as tmp:
            Path(tmp, "config.json").write_text(json.dumps({**config, "bos_token_id": None, "eos_token_id": None, "q_lora_rank": None}))
            info = dsv2.inspect(tmp)[0]
        self.assertEqual((info.bos_token_id, info.eos_token_id, info.q_lora_rank), (None, None, None))

    def test_sampling_reaches_the_library(self):
        given = {"temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "top_k": 7, "repetition_penalty": 1.5, "presence_penalty": 0.75,
                 "frequency_penalty": -0.5, "min_tokens": 9, "seed": 11}
        params = dsv2.Sampling(**given, logit_bias={5: -1.5, 6: 2}, stop_tokens=[8, 9, 10]).params(model, Callback())
        self.assertEqual({name: getattr(params, name) for name in given}, given)
        self.assertEqual([(b.token, b.bias) for b in params.logit_bias[: params.n_logit_bias]], [(5, -1.5), (6, 2)])
        self.assertEqual(params.logit_bias_size, 8)
        self.assertEqual(params.stop_tokens[: params.n_stop_tokens], [8, 9, 10])
        defaults = dsv2.Sampling().params(model, Callback())
        generation = json.loads((MODEL / "generation_config.json").read_text())
        self.assertAlmostEqual(defaults.temperature, generation["temperature"], places=6)
        self.assertAlmostEqual(defaults.top_p, generation["top_p"], places=6)


    def test_text_that_ends_in_nul_has_no_nul_inside(self):
        for call in (lambda: dsv2.TextStream(model, stop=["a", "b\0c"]), lambda: model.chat_text([{"role": "us\0er", "content": ""}]),
                     lambda: dsv2.Model(f"{MODEL}\0x"), lambda: dsv2.inspect(f"{MODEL}\0x")):
            with self.assertRaisesRegex(ValueError, "NUL"):
                call()
        self.assertIn("a\0b", model.chat_text([{"role": "user", "content": "a\0b"}]))


class Scoring(unittest.TestCase):
    def test_a_window_sees_the_overlap(self):
        row = model.tokenize("The king went to the castle. The queen was there. " * 3, bos=True)
        with model.session(n_ctx=16, kv="f32") as small, model.session(n_ctx=64, kv="f32") as other:
            scores = small.score_text(row[1:], context=row[:1], overlap=10).tokens
            for at in (15, 21, 27):  # the first tokens of the windows behind the first: 10 before them, 6 of them
                other.truncate(0)
                other.prefill(row[at + 1 - 10:at + 1])
                self.assertAlmostEqual(scores[at].logprob, other.score(row[at + 1:at + 2])[0].logprob, places=4)
            for overlap in (0, 16):
                with self.assertRaisesRegex(ValueError, f"overlap: {overlap}"):
                    small.score_text(row, overlap=overlap)

    def test_a_first_token_does_not_count(self):
        score = model.score(ids, context=[])
        self.assertTrue(math.isnan(score.tokens[0].logprob))
        self.assertEqual(len(score.scored), len(ids) - 1)
        self.assertAlmostEqual(score.logprob, sum(t.logprob for t in score.tokens[1:]), places=4)
        self.assertTrue(math.isnan(dsv2.Score(score.tokens[:1]).perplexity))
        self.assertFalse(score.greedy)
        self.assertTrue(dsv2.Score([t for t in score.tokens if t.rank == 1]).greedy)


class Ends(unittest.TestCase):
    def setUp(self):
        self.session = model.session(n_ctx=128)
        self.addCleanup(self.session.close)

    def generate(self, **options):
        self.session.truncate(0)
        return self.session.generate(PROMPT, **{"max_tokens": 12, "temperature": 0, **options})

    def test_eos(self):
        left = 4

        def then_eos(logits):
            nonlocal left
            left -= 1
            logits[model.info.eos_token_id] = -1e30 if left >= 0 else 1e30

        run = self.generate(callback=then_eos)
        run.text()
        self.assertEqual((run.finish_reason, len(run.tokens)), ("eos", 4))
        self.assertEqual(self.session.tokens, ids + run.tokens)

    def test_stop_ends_at_once(self):
        full = self.generate().text()
        run = self.generate(stop=[full[3:6]], max_tokens=50)
        run.text()
        self.assertEqual(run.finish_reason, "stop")
        self.assertLess(len(run.tokens), 12)

    def test_what_was_held_back_comes_at_the_end(self):
        full = self.generate().text()
        run = self.generate(stop=full[-2:] + "\u2603")
        pieces = list(run)
        self.assertEqual("".join(pieces), full)
        self.assertTrue(pieces[-1].endswith(full[-2:]))
        self.assertEqual(run.finish_reason, "length")

    def test_cancel(self):
        run = self.generate(max_tokens=50)
        next(run)
        self.session.cancel()
        run.text()
        self.assertEqual(run.finish_reason, "cancelled")
        self.assertLess(len(run.tokens), 50)

    def test_more_text_gets_no_bos(self):
        self.generate(max_tokens=1).text()
        self.session.generate(" and", max_tokens=1, temperature=0).text()
        self.assertEqual(self.session.tokens.count(model.info.bos_token_id), 1)

    def test_sampling_is_given_in_one_way(self):
        with self.assertRaisesRegex(TypeError, "exclude"):
            self.session.generate(PROMPT, sampling=dsv2.Sampling(), temperature=0)

    def test_the_same_chat_again(self):
        messages = [{"role": "user", "content": "Hello"}]
        one, again = (self.session.chat(messages, max_tokens=6, temperature=0).text() for _ in range(2))
        self.assertEqual(one, again)


class Library(unittest.TestCase):
    def test_one_library_stays(self):
        before = _lib.lib()
        dsv2.load_library("/nonexistent/libdsv2.so.0")
        self.assertIs(_lib.lib(), before)

    def test_what_cannot_be_loaded_is_named(self):
        with mock.patch.object(_lib, "_library", None), self.assertRaisesRegex(ImportError, "/nonexistent/libdsv2.so.0"):
            dsv2.load_library("/nonexistent/libdsv2.so.0")

    def test_other_versions_are_refused(self):
        major, minor = _lib.VERSION
        for needed in ((major, minor + 1), (major + 1, 0)):
            with mock.patch.object(_lib, "_library", None), mock.patch.object(_lib, "VERSION", needed), \
                    self.assertRaisesRegex(ImportError, f"needs {needed[0]}.{needed[1]}"):
                dsv2.load_library(_lib.lib()._name)

    def test_exceptions_have_the_names_of_their_statuses(self):
        other = {"NOMEM": "OUTOFMEMORY", "IO": "FILE"}
        for status, kind in _errors.BY_STATUS.items():
            name = _lib.lib().dsv2_status_name(status).decode().removeprefix("DSV2_ERR_")
            self.assertEqual(other.get(name, name.replace("_", "")), kind.__name__.removesuffix("Error").upper())


if __name__ == "__main__":
    unittest.main()
