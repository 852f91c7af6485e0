"""The Python package on the bundled model: each class, each rule that the docstrings promise.

SPDX-License-Identifier: MIT
"""
import ctypes
import gc
import json
import math
import os
import signal
import tempfile
import threading
import time
import unittest
from pathlib import Path

import numpy

import dsv2
from dsv2 import _lib

MODEL = Path(__file__).resolve().parents[2] / "examples" / "model"
PROMPT = "Once upon a time"


def setUpModule():
    global model
    model = dsv2.Model(MODEL)


def tearDownModule():
    model.close()


class Loading(unittest.TestCase):
    def test_version(self):
        self.assertEqual(dsv2.version()[:2], _lib.VERSION)

    def test_info_has_config_names(self):
        self.assertEqual((model.info.kv_lora_rank, model.info.qk_rope_head_dim), (512, 64))
        self.assertTrue(model.info.has_tokenizer)
        self.assertEqual(model.info.chat_template, "V2")

    def test_inspect_agrees_with_loading(self):
        info, memory = dsv2.inspect(MODEL, n_ctx=128)
        self.assertEqual(info, model.info)
        with model.session(n_ctx=128) as session:
            self.assertEqual(session.memory.total, memory.total)
        self.assertEqual(memory.total, memory.weights + memory.kv + memory.scratch + memory.other)

    def test_inspect_needs_only_the_config(self):
        with tempfile.TemporaryDirectory() as tmp:
            Path(tmp, "config.json").write_bytes((MODEL / "config.json").read_bytes())
            self.assertEqual(dsv2.inspect(tmp)[0].parameters, model.info.parameters)

    def test_errors_carry_status_and_text(self):
        with self.assertRaises(dsv2.FileError) as e:
            dsv2.Model("/nonexistent/model")
        self.assertEqual(e.exception.name, "DSV2_ERR_IO")
        self.assertIn("/nonexistent/model", str(e.exception))
        with tempfile.TemporaryDirectory() as tmp:
            Path(tmp, "config.json").write_text('{"model_type": "llama"}')
            with self.assertRaises(dsv2.Error) as e:
                dsv2.inspect(tmp)
            self.assertIn("model_type", str(e.exception))
        with self.assertRaisesRegex(ValueError, "cpu: 'mmx'"):
            dsv2.Context(cpu="mmx")

    def test_progress_is_called_and_cancels(self):
        seen = []
        dsv2.Model(MODEL, read=True, progress=lambda done, total: seen.append((done, total))).close()
        self.assertEqual(seen[-1][0], seen[-1][1])
        with self.assertRaises(dsv2.CancelledError):
            dsv2.Model(MODEL, read=True, progress=lambda done, total: False)

    def test_an_exception_in_a_callback_comes_out(self):
        def fail(done, total):
            raise KeyError("mine")

        with self.assertRaisesRegex(KeyError, "mine"):
            dsv2.Model(MODEL, read=True, progress=fail)

    def test_closed_objects_say_so(self):
        session = model.session(n_ctx=64)
        session.close()
        session.close()
        with self.assertRaisesRegex(ValueError, "Session is closed"):
            session.prefill([1])

    def test_session_outlives_model_handle(self):
        own = dsv2.Model(MODEL)
        session = own.session(n_ctx=64)
        own.close()
        gc.collect()
        session.prefill([1, 2, 3])
        self.assertEqual(session.position, 3)


class Text(unittest.TestCase):
    def test_round_trip(self):
        for text in (PROMPT, "", "a\0b", "Füße, naïve, 你好, 😀👍🏽", "  two  spaces\n\n"):
            self.assertEqual(model.detokenize(model.tokenize(text)), text)

    def test_bos(self):
        self.assertEqual(model.tokenize("a", bos=True), [model.info.bos_token_id] + model.tokenize("a"))

    def test_markers(self):
        eos = model.detokenize([model.info.eos_token_id])
        self.assertEqual(model.tokenize(eos), [model.info.eos_token_id])
        self.assertNotIn(model.info.eos_token_id, model.tokenize(eos, markers=False))
        self.assertEqual(model.token_id(eos), model.info.eos_token_id)
        self.assertTrue(model.is_eos(model.info.eos_token_id))
        self.assertEqual(model.detokenize([model.info.eos_token_id], skip_special=True), "")

    def test_invalid_utf8(self):
        with self.assertRaises(dsv2.UTF8Error):
            model.tokenize(b"a\xff")
        self.assertEqual(model.detokenize(model.tokenize(b"a\xff", replace=True)), "a\ufffd")

    def test_token_bytes(self):
        ids = model.tokenize("😀")
        self.assertEqual(b"".join(map(model.token_bytes, ids)), "😀".encode())
        with self.assertRaises(dsv2.InvalidError):
            model.token_bytes(model.info.vocab_size)

    def test_long_texts_find_their_room(self):
        text = "\u4e00 " * 5000
        self.assertEqual(model.detokenize(model.tokenize(text)), text)

    def test_stream(self):
        ids = model.tokenize("Hi 😀, stop here, not there")
        with dsv2.TextStream(model, stop=["stop"]) as stream:
            pieces = [stream.push(t) for t in ids]
            self.assertTrue(stream.stopped)
            self.assertEqual("".join(pieces) + stream.finish(), "Hi 😀, ")
            self.assertFalse(stream.stopped)
            self.assertEqual("".join(map(stream.push, model.tokenize("again"))) + stream.finish(), "again")
        with dsv2.TextStream(model, stop="stop", include_stop=True) as stream:
            self.assertEqual("".join(map(stream.push, ids)) + stream.finish(), "Hi 😀, stop")

    def test_chat(self):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        text = model.chat_text(messages)
        self.assertTrue(text.endswith("Be brief.\n\nUser: Hi\n\nAssistant:"), text)
        ids = model.chat_tokens(messages)
        self.assertEqual(ids, model.tokenize(text))
        self.assertEqual(ids.count(model.info.bos_token_id), 1)
        attack = [{"role": "user", "content": model.detokenize([model.info.eos_token_id])}]
        self.assertNotIn(model.info.eos_token_id, model.chat_tokens(attack))
        self.assertIn(model.info.eos_token_id, model.chat_tokens(attack, markers=True))
        with self.assertRaisesRegex(TypeError, r"messages\[0\]: content: None is not a string"):
            model.chat_tokens([{"role": "user", "content": None, "tool_calls": None}])
        with self.assertRaisesRegex(TypeError, r"messages\[0\]: role: None is not a string"):
            model.chat_tokens([{"content": "Hi"}])
        with self.assertRaisesRegex(TypeError, r"messages\[0\]: content: None is not a string"):
            model.chat_tokens([{"role": "user"}])
        self.assertEqual(model.chat_text([{**m, "tool_calls": []} for m in messages]), text)

    def test_tool_calls(self):
        call = {"type": "function", "function": {"name": "get", "arguments": {"city": "Köln"}}}
        messages = [{"role": "user", "content": "w?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        with self.assertRaisesRegex(TypeError, r"messages\[1\]: tool_calls\[0\]: function: arguments: {'city': 'Köln'} is not a string"):
            model.chat_text(messages)
        call["function"]["arguments"] = "{}"
        with self.assertRaisesRegex(dsv2.UnsupportedError, r"messages\[1\].tool_calls: the checkpoint's template has no place"):
            model.chat_text(messages)
        template = MODEL.parents[1] / "tests" / "golden" / "template"
        with tempfile.TemporaryDirectory() as folder:
            for file in MODEL.iterdir():
                os.symlink(file.resolve(), Path(folder, file.name))
            Path(folder, "chat_template.jinja").write_text(json.loads((template / "templates.json").read_text())["v2.5"]["chat_template"])
            with dsv2.Model(folder) as v25:
                cases = [json.loads(line) for line in (template / "renderings.jsonl").read_text().splitlines()]
                cases = [c for c in cases if c["template"] == "v2.5"]
                self.assertGreater(sum(m.get("tool_calls") is not None for c in cases for m in c["messages"]), 8)
                for case in cases:
                    self.assertEqual(v25.chat_text(case["messages"], generate=case["add_generation_prompt"]), case["expected"])
                    self.assertEqual(v25.chat_tokens(case["messages"], markers=True, generate=case["add_generation_prompt"]), v25.tokenize(case["expected"]))


class Numbers(unittest.TestCase):
    """ctypes alone would cut numbers down, and take bytes for a list of ids."""

    def test_ids(self):
        with model.session() as session:
            for call in (model.is_eos, model.token_bytes, session.decode, lambda t: model.detokenize([t]), lambda t: session.prefill([1, t])):
                with self.assertRaisesRegex(ValueError, "429496"):
                    call(2**32 + 5)
            with self.assertRaisesRegex(ValueError, "n: -1 is negative"):
                session.truncate(-1)
            for text in ("ab", b"ab"):
                with self.assertRaisesRegex(TypeError, "tokenize it first"):
                    session.prefill(text)
            self.assertEqual(session.position, 0)

    def test_parameters(self):
        for make in (lambda: model.session(n_ctx=2**32 + 10), lambda: dsv2.Pool(model, tokens=-1), lambda: model.session(cache_namespace=2**64)):
            with self.assertRaisesRegex(ValueError, "is out of range"):
                make()
        with model.session() as session:
            session.prefill([1])
            for options in ({"seed": -1}, {"top_k": 2**31}, {"logit_bias": {2**32: 1.0}}):
                with self.assertRaisesRegex(ValueError, "is out of range"):
                    session.sample(dsv2.Sampling(**options))


class Interrupts(unittest.TestCase):
    def setUp(self):  # a runner in the background may have it ignored
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))

    def interrupted(self, call):
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with self.assertRaises(KeyboardInterrupt):
            call()
            time.sleep(5)  # the machine was faster: the signal comes here
        timer.join()

    def test_a_prompt_is_cancelled(self):
        seen = []
        with dsv2.Context(cpu="reference", n_threads=1) as slow, dsv2.Model(MODEL, slow) as own:
            for progress in (None, lambda done, total: seen.append(done)):
                with own.session(n_batch=16, progress=progress) as session:
                    ids = [i % 1900 for i in range(1900)]
                    self.interrupted(lambda: session.prefill(ids))
                    self.interrupted(lambda: session.score(ids))
                    self.interrupted(lambda: dsv2.step([dsv2.StepMember(session, ids)]))
                    self.assertEqual(session.position, 0)
        self.assertTrue(seen)


class Sessions(unittest.TestCase):
    def setUp(self):
        self.session = model.session(n_ctx=256, kv="f32")
        self.addCleanup(self.session.close)

    def test_prompt_in_pieces_gives_the_same_bits(self):
        ids = model.tokenize(PROMPT, bos=True)
        self.session.prefill(ids)
        whole = bytes(self.session.logits)
        with model.session(n_ctx=256, kv="f32") as other:
            for token in ids:
                other.prefill([token])
            self.assertEqual(bytes(other.logits), whole)
            self.assertEqual(other.tokens, ids)

    def test_logits_are_a_read_only_view(self):
        self.session.prefill([1, 2, 3])
        logits = self.session.logits
        self.assertEqual((logits.shape, logits.dtype), ((model.info.vocab_size,), numpy.float32))
        self.assertFalse(logits.flags.writeable)
        self.assertFalse(logits.flags.owndata)
        address = logits.ctypes.data
        self.assertEqual(self.session.logits.ctypes.data, address)  # no copy
        kept = logits.copy()
        self.session.close()
        gc.collect()
        numpy.testing.assert_array_equal(logits, kept)  # the view keeps the memory

    def test_logprobs_are_log_softmax(self):
        self.session.prefill([1, 2, 3])
        x = self.session.logits.astype(numpy.float64)
        expected = x - x.max() - math.log(numpy.exp(x - x.max()).sum())
        top = self.session.logprobs(5, also=7)
        order = numpy.lexsort((numpy.arange(x.size), -x))
        self.assertEqual([t.token for t in top[:5]], order[:5].tolist())
        self.assertTrue(len(top) == 6 and top[5].token == 7 or 7 in order[:5])
        for t in top:
            self.assertAlmostEqual(t.logprob, expected[t.token], places=4)
            self.assertEqual(t.rank, 1 + int((x > x[t.token]).sum()))

    def test_state_errors(self):
        with self.assertRaises(dsv2.StateError):
            self.session.logits
        with self.assertRaises(dsv2.InvalidError):
            self.session.prefill([model.info.vocab_size])
        with self.assertRaises(dsv2.ContextFullError):
            self.session.prefill([1] * 257)
        self.assertEqual((self.session.position, self.session.capacity), (0, 256))

    def test_truncate_and_fork(self):
        ids = model.tokenize(PROMPT, bos=True)
        self.session.prefill(ids)
        with self.session.fork() as other:
            other.decode(5)
            self.assertEqual((self.session.tokens, other.tokens), (ids, ids + [5]))
        self.session.truncate(2)
        self.assertEqual(self.session.tokens, ids[:2])

    def test_save_and_restore(self):
        self.session.prefill(model.tokenize(PROMPT, bos=True))
        self.session.decode(5)
        logits, saved = bytes(self.session.logits), self.session.to_bytes()
        with tempfile.TemporaryDirectory() as tmp, model.session(n_ctx=64, kv="f32") as other, model.session(n_ctx=64) as unlike:
            path = Path(tmp, "später")
            self.session.save(path)
            self.assertEqual(path.read_bytes(), saved)
            for restore in (lambda: other.restore(path), lambda: other.from_bytes(saved)):
                other.truncate(0)
                restore()
                self.assertEqual((other.tokens, bytes(other.logits), other.to_bytes()), (self.session.tokens, logits, saved))
            view = other.logits
            other.restore(path)
            self.assertEqual(bytes(view), logits)  # of the same memory
            with self.assertRaisesRegex(dsv2.InvalidError, "später: kv_type"):
                unlike.restore(path)
            with self.assertRaisesRegex(dsv2.FormatError, "size"):
                other.from_bytes(saved[:-1])
            with self.assertRaisesRegex(dsv2.FileError, "nowhere"):
                other.save(Path(tmp, "nowhere", "x"))
            options = {"max_tokens": 12, "temperature": 1.0, "seed": 3, "frequency_penalty": 1.0}
            self.assertEqual(other.generate(**options).text(), self.session.generate(**options).text())

    def test_cancel_from_another_thread(self):
        entered = threading.Event()
        with model.session(n_ctx=1024, n_batch=1, progress=lambda done, total: entered.set()) as session:
            thread = threading.Thread(target=lambda: (entered.wait(), session.cancel()))
            thread.start()
            with self.assertRaises(dsv2.CancelledError):
                session.prefill([1] * 1000)
            thread.join()
            self.assertEqual(session.position, 0)
            session.prefill([1])  # the request is spent

    def test_score_matches_logprobs(self):
        ids = model.tokenize(PROMPT, bos=True)
        scores = self.session.score(ids)
        self.assertTrue(math.isnan(scores[0].logprob))
        self.assertEqual([s.token for s in scores], ids)
        with model.session(n_ctx=64, kv="f32") as other:
            other.prefill(ids[:-1])
            (top, *_), last = other.logprobs(1, also=ids[-1]), other.logprobs(1, also=ids[-1])[-1]
            self.assertAlmostEqual(scores[-1].logprob, last.logprob, places=4)
            self.assertEqual((scores[-1].rank, scores[-1].top_token), (last.rank, top.token))

    def test_score_in_windows(self):
        text = "The king went to the castle. " * 20
        score = model.score(text)
        self.assertEqual(len(score.tokens), len(model.tokenize(text)))
        self.assertAlmostEqual(score.perplexity, math.exp(-score.logprob / len(score.tokens)))
        with model.session(n_ctx=48) as small:
            windows = small.score_text(text)
        self.assertEqual([t.token for t in windows.tokens], [t.token for t in score.tokens])
        self.assertEqual([t.rank for t in windows.tokens[:40]], [t.rank for t in score.tokens[:40]])


class Steps(unittest.TestCase):
    """Many sessions in a step, and the pool that they share."""

    def session(self, **options):
        session = model.session(n_ctx=512, **options)
        self.addCleanup(session.close)
        return session

    def test_every_member_gets_what_it_would_alone(self):
        prompts = [model.tokenize(text, bos=True) for text in (PROMPT, "12+30=", "User: Hello!\n\nAssistant:")]
        sessions, alone = [self.session() for _ in prompts], [self.session() for _ in prompts]
        results = dsv2.step([dsv2.StepMember(s, p, score=True) for s, p in zip(sessions, prompts)])
        for s, other, prompt, result in zip(sessions, alone, prompts, results):
            self.assertIsNone(result.error)
            self.assertEqual(result.scores[1:], other.score(prompt)[1:])  # the first one's are NaN
            self.assertEqual(bytes(s.logits), bytes(other.logits))
        results = dsv2.step(dsv2.StepMember(s, [7], decoded=True) for s in sessions)
        self.assertEqual(results, [dsv2.StepResult(None, None)] * 3)
        for s, other in zip(sessions, alone):
            other.decode(7)
            self.assertEqual(bytes(s.logits), bytes(other.logits))

    def test_output_is_what_was_decoded(self):
        as_output, as_prompt = self.session(), self.session()
        dsv2.step([dsv2.StepMember(s, [1, 2]) for s in (as_output, as_prompt)])
        dsv2.step([dsv2.StepMember(as_output, [3], decoded=True), dsv2.StepMember(as_prompt, [3])])
        plain, punished = dsv2.Sampling(temperature=0), dsv2.Sampling(temperature=0, logit_bias={3: 100}, presence_penalty=2)
        self.assertEqual(as_output.sample(plain), as_prompt.sample(plain))
        seen = []
        for s in (as_output, as_prompt):
            punished.callback = lambda logits: seen.append(logits[3])
            s.sample(punished)
        self.assertAlmostEqual(seen[1] - seen[0], 2, places=3)

    def test_a_failure_is_its_members_own(self):
        good, full, wrong = self.session(), model.session(n_ctx=4), self.session()
        self.addCleanup(full.close)
        results = dsv2.step([dsv2.StepMember(full, [1] * 5), dsv2.StepMember(good, [1, 2, 3]), dsv2.StepMember(wrong, [1, -1])])
        self.assertIsInstance(results[0].error, dsv2.ContextFullError)
        self.assertIsNone(results[1].error)
        self.assertIsInstance(results[2].error, dsv2.InvalidError)
        self.assertIn("tokens[1]: -1", str(results[2].error))
        self.assertEqual([s.position for s in (full, good, wrong)], [0, 3, 0])

    def test_callbacks_of_members(self):
        def fail(done, total):
            raise ZeroDivisionError

        good, bad = self.session(n_batch=8), self.session(n_batch=8, progress=fail)
        results = dsv2.step([dsv2.StepMember(s, [1] * 20) for s in (good, bad)])
        self.assertIsNone(results[0].error)
        self.assertIsInstance(results[1].error, ZeroDivisionError)
        self.assertEqual((good.position, bad.position), (20, 0))
        bad.cancel()
        results = dsv2.step([dsv2.StepMember(s, [1]) for s in (good, bad)])
        self.assertIsInstance(results[1].error, dsv2.CancelledError)

    def test_members_that_make_no_sense(self):
        s = self.session()
        for members in ([], [dsv2.StepMember(s, [])], [dsv2.StepMember(s, [1])] * 2):
            with self.assertRaises(dsv2.InvalidError):
                dsv2.step(members)
        self.assertEqual(s.position, 0)

    def test_no_logits(self):
        s = self.session()
        dsv2.step([dsv2.StepMember(s, [1, 2], logits=False)])
        with self.assertRaises(dsv2.StateError):
            s.logits

    def test_a_step_samples(self):
        one, two = self.session(), self.session()
        how = dsv2.Sampling(temperature=1.2, seed=3, repetition_penalty=1.1)
        results = dsv2.step([dsv2.StepMember(one, [1, 2, 3], sampling=how, logits=False), dsv2.StepMember(two, [1, 2, 3])])
        self.assertEqual((results[0].token, results[0].logprob), two.sample(how))
        self.assertIsNone(results[1].token)
        with self.assertRaises(dsv2.StateError):
            one.logits

        def fail(logits):
            raise KeyError("mine")

        results = dsv2.step([dsv2.StepMember(one, [4], sampling=dsv2.Sampling(callback=fail))])
        self.assertIsInstance(results[0].error, KeyError)
        self.assertEqual(one.position, 3)

    def test_a_pool_bounds_its_sessions(self):
        with dsv2.Pool(model, tokens=128, kv="f32") as pool:
            info = pool.info
            self.assertEqual((info.kv, info.page_tokens, info.pages, info.pages_used), ("f32", 64, 2, 0))
            one, two = self.session(pool=pool), self.session(pool=pool)
            self.assertEqual(one.memory.kv_per_token, info.page_bytes / 64)
            results = dsv2.step([dsv2.StepMember(one, [1] * 65), dsv2.StepMember(two, [1] * 10)])
            self.assertIsNone(results[0].error)
            self.assertIsInstance(results[1].error, dsv2.NoPagesError)
            self.assertEqual(pool.info.pages_used, 2)
            one.truncate(0)
            two.prefill([1] * 10)
            self.assertEqual(pool.info.pages_used, 1)
        self.assertEqual(two.position, 10)  # sessions keep the pool
        with dsv2.Pool(model) as pool, dsv2.Model(MODEL) as other:
            self.assertIsNone(pool.info.pages)
            with self.assertRaisesRegex(dsv2.InvalidError, "another model"):
                other.session(pool=pool)
        for mistake in ({"tokens": 64, "bytes": 1 << 20}, {"bytes": 1}):
            with self.assertRaises(dsv2.InvalidError):
                dsv2.Pool(model, **mistake)

    def test_prefixes_are_reused(self):
        prompt = [1 + i % 50 for i in range(200)]
        with dsv2.Pool(model, prefix_cache_bytes=1 << 24) as pool:
            first, again, apart = (self.session(pool=pool, cache_namespace=n) for n in (1, 1, 2))
            first.prefill(prompt)
            self.assertEqual((pool.info.reused_tokens, pool.info.entered), (0, 3))
            again.prefill(prompt)
            self.assertEqual((pool.info.prompt_tokens, pool.info.reused_tokens), (400, 192))
            apart.prefill(prompt)
            self.assertEqual(pool.info.reused_tokens, 192)
            self.assertEqual(bytes(first.logits), bytes(again.logits))

    def test_kv_types(self):
        ids, logits = model.tokenize(PROMPT, bos=True), {}
        for kv in dsv2.KV_TYPES:
            with self.session(kv=kv) as s:
                s.prefill(ids)
                logits[kv] = s.logits.copy(), s.memory.kv_per_token
        exact, most = logits.pop("f32")
        for kv, (x, size) in logits.items():
            with self.subTest(kv):
                self.assertLess(size, most)
                self.assertLess(numpy.abs(x - exact).max(), 0.2 * numpy.abs(exact).max())
                self.assertTrue((x != exact).any())


class Generating(unittest.TestCase):
    def setUp(self):
        self.session = model.session(n_ctx=256)
        self.addCleanup(self.session.close)

    def test_stream_equals_text(self):
        with self.session.fork() as other:
            whole = other.generate(PROMPT, max_tokens=20, temperature=0)
            text = whole.text()
        running = self.session.generate(PROMPT, max_tokens=20, temperature=0)
        self.assertEqual("".join(list(running)), text)
        self.assertEqual(running.tokens, whole.tokens)
        self.assertIn(running.finish_reason, ("length", "eos"))
        self.assertEqual(self.session.tokens, model.tokenize(PROMPT, bos=True) + running.tokens)

    def test_seed(self):
        def write(seed):
            self.session.truncate(0)
            return self.session.generate(PROMPT, max_tokens=20, temperature=1.0, seed=seed).text()

        self.assertEqual(write(1), write(1))
        self.assertGreater(len({write(seed) for seed in range(5)}), 1)

    def test_stop_string(self):
        full = self.session.generate(PROMPT, max_tokens=30, temperature=0).text()
        stop = full[5:8]
        self.session.truncate(0)
        run = self.session.generate(PROMPT, max_tokens=30, temperature=0, stop=stop)
        self.assertEqual(run.text(), full[: full.index(stop)])
        self.assertEqual(run.finish_reason, "stop")

    def test_bias_and_min_tokens(self):
        self.session.prefill(model.tokenize(PROMPT, bos=True))
        best = self.session.logprobs(2)
        token, logprob = self.session.sample(dsv2.Sampling(temperature=0))
        self.assertEqual(token, best[0].token)
        self.assertAlmostEqual(logprob, best[0].logprob, places=4)
        token, _ = self.session.sample(dsv2.Sampling(temperature=0, logit_bias={token: -100}))
        self.assertEqual(token, best[1].token)
        with self.assertRaisesRegex(dsv2.InvalidError, "top_p"):
            self.session.sample(dsv2.Sampling(top_p=1.5))

    def test_logits_callback(self):
        self.session.prefill([1])

        def only_nine(logits):
            logits[:] = -1e30
            logits[9] = 0

        self.assertEqual(self.session.sample(dsv2.Sampling(callback=only_nine))[0], 9)
        with self.assertRaises(dsv2.CancelledError):
            self.session.sample(dsv2.Sampling(callback=lambda logits: False))
        with self.assertRaises(ZeroDivisionError):
            self.session.sample(dsv2.Sampling(callback=lambda logits: 1 // 0))

    def test_context_full_ends_generation(self):
        with model.session(n_ctx=16) as small:
            run = small.generate([1] * 10, max_tokens=100, temperature=0, min_tokens=100)
            run.text()
            self.assertEqual(run.finish_reason, "context")
            self.assertEqual(small.position, 16)

    def test_chat_reuses_the_past(self):
        messages = [{"role": "user", "content": "Hello"}]
        answer = self.session.chat(messages, max_tokens=8, temperature=0).text()
        self.assertNotEqual(answer[:1], " ")  # the template writes it
        kept = self.session.tokens
        messages += [{"role": "assistant", "content": answer.removeprefix(" ")}, {"role": "user", "content": "More"}]
        ids = model.chat_tokens(messages)
        self.assertEqual(ids[:8], kept[:8])
        self.session.chat(messages, max_tokens=1, temperature=0).text()
        self.assertEqual(self.session.tokens[: len(ids)], ids)


class Library(unittest.TestCase):
    def test_log_callback_and_paths(self):
        self.assertEqual(_lib._candidates("/a/libdsv2.so.0"), ["/a/libdsv2.so.0"])
        with tempfile.TemporaryDirectory() as tmp:
            Path(tmp, "lib").mkdir()
            Path(tmp, "lib", _lib.SONAME).touch()
            self.assertEqual(_lib._candidates(tmp), [os.path.join(tmp, "lib", _lib.SONAME)])
        with dsv2.Context(log=lambda level, text: None, n_threads=1) as context, dsv2.Model(MODEL, context) as one:
            self.assertEqual(one.info, model.info)

    def test_pointer_is_usable_with_ctypes(self):
        self.assertIsInstance(model.pointer, ctypes.c_void_p)
        self.assertEqual(_lib.lib().dsv2_token_is_eos(model.pointer, model.info.eos_token_id), 1)


if __name__ == "__main__":
    unittest.main()
