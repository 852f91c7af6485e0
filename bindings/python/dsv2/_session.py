"""Session: reading and writing one sequence of tokens.

SPDX-License-Identifier: MIT
"""
from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from . import _lib
from ._errors import CancelledError, ContextFullError, check, exception
from ._lib import lib
from ._model import (Callback, Handle, Memory, Message, Model, PathLike, Pool, Progress, TextStream, c_path, id_array, int32, interruptible,
                     progress_callback, session_params, take_memory)

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Logits = NDArray[numpy.float32]


class TokenScore(NamedTuple):
    """How well a token was foretold by those before it."""

    token: int
    logprob: float  #: natural log; NaN for the first token of a sequence: nothing foretold it
    rank: int  #: 1 = most likely; 0 with a NaN logprob
    top_token: int  #: the most likely token there; -1 with a NaN logprob
    top_logprob: float


class Logprob(NamedTuple):
    """A candidate for the next token."""

    token: int
    rank: int
    logprob: float


def take_scores(ids: Sequence[int], scores: Any) -> List[TokenScore]:
    return [TokenScore(t, s.logprob, s.rank, s.top_token, s.top_logprob) for t, s in zip(ids, scores)]


@dataclass(frozen=True)
class Score:
    """Score of a text."""

    tokens: List[TokenScore] = field(repr=False)

    @property
    def scored(self) -> List[TokenScore]:
        """Without a first token that nothing foretold."""
        return [t for t in self.tokens if not math.isnan(t.logprob)]

    @property
    def logprob(self) -> float:
        """Log-probability of the whole text."""
        return math.fsum(t.logprob for t in self.scored)

    @property
    def perplexity(self) -> float:
        return math.exp(-self.logprob / len(self.scored)) if self.scored else math.nan

    @property
    def greedy(self) -> bool:
        """Was every token the most likely one?"""
        return all(t.rank == 1 for t in self.scored)


@dataclass
class Sampling:
    """How the next token is chosen.  None: what the model's generation_config.json says, or off."""

    temperature: Optional[float] = None  #: 0 = always the most likely token
    top_p: Optional[float] = None
    min_p: Optional[float] = None
    top_k: Optional[int] = None  #: 0 or -1 = off
    repetition_penalty: Optional[float] = None
    presence_penalty: Optional[float] = None
    frequency_penalty: Optional[float] = None
    min_tokens: Optional[int] = None
    seed: int = 0  #: draws depend on seed, position and logits only
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_tokens: Sequence[int] = ()  #: besides EOS; only min_tokens looks at them
    callback: Optional[Callable[[Logits], Optional[bool]]] = None  #: may edit the logits; False cancels

    def params(self, model: Model, state: Callback) -> _lib.SampleParams:
        p = _lib.SampleParams()
        lib().dsv2_sample_params_init(p, ctypes.sizeof(p), model.pointer)
        for name in ("temperature", "top_p", "min_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty",
                     "min_tokens"):
            value = getattr(self, name)
            if value is not None:
                setattr(p, name, value)
        p.seed = self.seed
        p.logit_bias = (_lib.LogitBias * len(self.logit_bias))(*(_lib.LogitBias(t, b) for t, b in self.logit_bias.items()))
        p.n_logit_bias, p.logit_bias_size = len(self.logit_bias), ctypes.sizeof(_lib.LogitBias)
        p.stop_tokens, p.n_stop_tokens = id_array(self.stop_tokens), len(self.stop_tokens)
        if self.callback is not None:
            from numpy.ctypeslib import as_array
            call = self.callback
            p.callback = _lib.LogitsFn(lambda _user, logits, n: state.guard(lambda: call(as_array(logits, (n,)))))
        return p


class Session(Handle):
    """One sequence of tokens: its cache, position and logits.  Used by one thread at a time.

    n_ctx: context length; 0 is the smaller of the model's and what memory allows.  kv: how the cache is stored, "bf16", "f32", "f8_e4m3",
    "f8_e5m2", "int8" or "6bit"; with a pool as the pool does.  attention: "absorbed" (the same bits however a prompt is cut),
    "expanded" or "auto".  n_batch: prompt tokens computed at a time.  progress is called between batches of a prompt with the tokens
    done and their total.  pool: where its pages come from; None: pages of its own.  cache_namespace: prefixes are shared only between
    sessions of the same one.
    """

    def __init__(self, model: Model, *, n_ctx: int = 0, kv: str = "bf16", attention: str = "absorbed", n_batch: int = 256,
                 progress: Optional[Progress] = None, pool: Optional[Pool] = None, cache_namespace: int = 0,
                 _fork_of: Optional[Session] = None):
        pointer = ctypes.c_void_p()
        self.model = model
        if _fork_of is None:
            params = session_params(n_ctx, kv, attention, n_batch)
            self._state = Callback()
            params.progress = progress_callback(progress, self._state)
            self._progress = params.progress  # called as long as the session lives
            params.pool, params.cache_namespace = pool.pointer if pool else None, cache_namespace
            check(lib().dsv2_session_create(model.pointer, params, ctypes.byref(pointer)))
        else:
            self._state, self._progress = _fork_of._state, _fork_of._progress
            check(lib().dsv2_session_fork(_fork_of.pointer, ctypes.byref(pointer)))
        super().__init__(pointer, lib().dsv2_session_free)

    # ---- the calls of dsv2.h

    @property
    def position(self) -> int:
        """Tokens evaluated so far."""
        return int(lib().dsv2_session_position(self.pointer))

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return int(lib().dsv2_session_capacity(self.pointer))

    @property
    def tokens(self) -> List[int]:
        """The evaluated tokens."""
        n = self.position
        return list(lib().dsv2_session_tokens(self.pointer)[:n]) if n else []

    @property
    def memory(self) -> Memory:
        """Memory that this session and its model take when the context is full."""
        memory = _lib.Memory(struct_size=ctypes.sizeof(_lib.Memory))
        check(lib().dsv2_session_memory(self.pointer, memory))
        return take_memory(memory)

    def _compute(self, n: int, call: Callable[[], int]) -> None:
        if n <= 16:  # over in an instant
            self._state.check(call())
        else:
            self._state.check(*interruptible(call, self.cancel))

    def prefill(self, ids: Sequence[int]) -> None:
        """Append prompt tokens and compute the logits after the last.  An error leaves the session as it was."""
        array = id_array(ids)
        self._compute(len(ids), lambda: lib().dsv2_session_prefill(self.pointer, array, len(ids)))

    def decode(self, token: int) -> None:
        """Append one generated token and compute the logits after it."""
        self._state.check(lib().dsv2_session_decode(self.pointer, int32("token", token)))

    def score(self, ids: Sequence[int]) -> List[TokenScore]:
        """Prefill that also scores every one of its tokens."""
        array, scores = id_array(ids), (_lib.TokenScore * len(ids))()
        size = ctypes.sizeof(_lib.TokenScore)
        self._compute(len(ids), lambda: lib().dsv2_session_score(self.pointer, array, len(ids), scores, size))
        return take_scores(ids, scores)

    @property
    def logits(self) -> Logits:
        """Logits after the last token: a read-only NumPy view of the session's own memory, not a copy.

        Its values are good until the session's next prefill, decode, score or truncate, which may overwrite them: copy() what must
        last.  The view keeps the memory alive, so reading it later is safe, even after close().
        """
        import numpy
        data, n = ctypes.c_void_p(), ctypes.c_size_t()
        check(lib().dsv2_session_logits(self.pointer, ctypes.byref(data), ctypes.byref(n)))
        buffer: Any = (ctypes.c_float * n.value).from_address(data.value or 0)
        buffer.owner = self.owner
        view = numpy.frombuffer(buffer, dtype=numpy.float32)
        view.flags.writeable = False
        return view

    def logprobs(self, n_top: int, also: Optional[int] = None) -> List[Logprob]:
        """The n_top most likely next tokens, best first; then the token also, unless it is among them."""
        out, n = (_lib.Logprob * (n_top + 1))(), ctypes.c_size_t()
        check(lib().dsv2_session_logprobs(self.pointer, n_top, -1 if also is None else int32("also", also), out, ctypes.sizeof(_lib.Logprob), n_top + 1,
                                          ctypes.byref(n)))
        return [Logprob(x.token, x.rank, x.logprob) for x in out[: n.value]]

    def truncate(self, n: int) -> None:
        """Keep the first n tokens; logits are gone unless n is the position."""
        if n < 0:
            raise ValueError(f"n: {n} is negative")
        check(lib().dsv2_session_truncate(self.pointer, n))

    def fork(self) -> Session:
        """A second session with the same past; later changes to one do not touch the other."""
        return Session(self.model, _fork_of=self)

    def save(self, path: PathLike) -> None:
        """Save tokens, cache and logits in a file.  An older one at path stays whole until the new one is complete."""
        check(lib().dsv2_session_save(self.pointer, c_path(path)))

    def restore(self, path: PathLike) -> None:
        """Go on where a saved session of the same model and kv was.  An error leaves the session as it was."""
        check(lib().dsv2_session_restore(self.pointer, c_path(path)))

    def to_bytes(self) -> bytes:
        """What save() would write."""
        n = ctypes.c_size_t()
        lib().dsv2_session_export(self.pointer, None, 0, ctypes.byref(n))  # asks for the size
        buffer = ctypes.create_string_buffer(n.value)
        check(lib().dsv2_session_export(self.pointer, buffer, n.value, ctypes.byref(n)))
        return buffer.raw

    def from_bytes(self, data: bytes) -> None:
        """restore() from to_bytes()."""
        check(lib().dsv2_session_import(self.pointer, data, len(data)))

    def cancel(self) -> None:
        """Ask the computing call to stop, from any thread: it, or the next one, raises CancelledError."""
        lib().dsv2_session_cancel(self.pointer)

    def sample(self, sampling: Optional[Sampling] = None) -> Tuple[int, float]:
        """Choose the next token: (token, its log-probability by the raw logits).  The session does not change."""
        state, token, logprob = Callback(), ctypes.c_int32(), ctypes.c_float()
        params = (sampling or Sampling()).params(self.model, state)
        state.check(lib().dsv2_sample(self.pointer, params, ctypes.byref(token), ctypes.byref(logprob)))
        return token.value, logprob.value

    # ---- made of them

    def generate(self, prompt: Union[str, bytes, Sequence[int]] = (), *, max_tokens: int = 256, stop: Union[str, Sequence[str]] = (),
                 sampling: Optional[Sampling] = None, skip_special: bool = True, include_stop: bool = False,
                 **options: Any) -> Generation:
        """Append a prompt, then generate: an iterator of text pieces as they become certain.

        A text begins with BOS if the session is empty.  With no prompt generation goes on where the session is.  Generated tokens
        stay in the session, except an EOS.  Sampling's fields can be given by name: generate("Hi", temperature=0).
        """
        if isinstance(prompt, (str, bytes)):
            prompt = self.model.tokenize(prompt, bos=self.position == 0)
        if sampling is not None and options:
            raise TypeError("sampling and its fields by name exclude each other")
        text = TextStream(self.model, stop=stop, skip_special=skip_special, include_stop=include_stop)
        return Generation(self, list(prompt), text, sampling or Sampling(**options), max_tokens)

    def chat(self, messages: Iterable[Message], **options: Any) -> Generation:
        """Generate the assistant's answer to a conversation; options as in generate().

        What the session already holds of the conversation is not computed again.  A space that the answer begins with is left out where
        the template itself writes one (V2's "Assistant: "), so that the answer can be appended to the messages as it is.
        """
        ids = self.model.chat_tokens(messages)
        have, same = self.tokens, 0
        while same < min(len(have), len(ids) - 1) and have[same] == ids[same]:  # the last token's logits are needed
            same += 1
        self.truncate(same)
        answer = self.generate(ids[same:], **options)
        answer.strip_space = self.model.info.chat_template == "V2"
        return answer

    def score_text(self, text: Union[str, bytes, Sequence[int]], *, context: Union[str, bytes, Sequence[int]] = "",
                   overlap: Optional[int] = None) -> Score:
        """Score a text after BOS and context, which are not scored.  Whatever the session held is gone.

        A text beyond the capacity is scored in windows; each token then sees at least overlap (half the capacity) tokens before it.
        """
        before = self.model.tokenize(context, bos=True) if isinstance(context, (str, bytes)) else list(context)
        ids = before + (self.model.tokenize(text) if isinstance(text, (str, bytes)) else list(text))
        capacity = self.capacity
        keep = capacity // 2 if overlap is None else overlap
        if not 1 <= keep < capacity:
            raise ValueError(f"overlap: {keep} is not in 1..{capacity - 1}")
        scores: List[TokenScore] = []
        while len(scores) < len(ids):
            at = len(scores)
            past = min(at, keep)
            self.truncate(0)
            if past:
                self.prefill(ids[at - past:at])
            scores += self.score(ids[at:at + capacity - past])
        return Score(scores[len(before):])


class Generation(Iterator[str]):
    """Text pieces of a running generation.  After its end finish_reason says why: "eos", "stop", "length", "context", "cancelled"."""

    def __init__(self, session: Session, prompt: List[int], text: TextStream, sampling: Sampling, max_tokens: int):
        self.tokens: List[int] = []  #: generated so far, without an EOS
        self.finish_reason: Optional[str] = None
        self.strip_space = False  #: leave out a space in front of the first text
        self._pieces = self._run(session, prompt, text, sampling, max_tokens)

    def __next__(self) -> str:
        piece = next(self._pieces)
        if self.strip_space:
            self.strip_space, piece = False, piece[1:] if piece[0] == " " else piece
        return piece or next(self)

    def text(self) -> str:
        """All that is left, in one piece."""
        return "".join(self)

    def _run(self, session: Session, prompt: List[int], text: TextStream, sampling: Sampling, max_tokens: int) -> Iterator[str]:
        if prompt:
            session.prefill(prompt)
        reason = "length"
        while len(self.tokens) < max_tokens:
            token, _ = session.sample(sampling)
            if session.model.is_eos(token):
                reason = "eos"
                break
            self.tokens.append(token)
            piece = text.push(token)
            if piece:
                yield piece
            try:
                session.decode(token)
            except ContextFullError:
                reason = "context"
            except CancelledError:
                reason = "cancelled"
            if text.stopped:
                reason = "stop"
            if reason != "length":
                break
        rest = text.finish()
        text.close()
        self.finish_reason = reason
        if rest:
            yield rest


class StepMember(NamedTuple):
    """One session's part of a step."""

    session: Session
    tokens: Sequence[int]  #: a prompt, a piece of one, a generated token
    decoded: bool = False  #: the tokens are output of the session, not prompt
    score: bool = False  #: score the tokens, as Session.score
    logits: bool = True  #: False: no logits are wanted after the last token; the session has none then
    sampling: Optional[Sampling] = None  #: choose the token after the last one, as Session.sample would after the step


class StepResult(NamedTuple):
    """What became of a member."""

    error: Optional[Exception]  #: why it failed: its session is as it was.  None: it went well
    scores: Optional[List[TokenScore]]  #: where they were wanted and nothing failed
    token: Optional[int] = None  #: the choice, where one was wanted and nothing failed, and
    logprob: Optional[float] = None  #: its log-probability by the raw logits


def cancel_all(members: Iterable[StepMember]) -> None:
    for member in members:
        member.session.cancel()


def step(members: Iterable[StepMember]) -> List[StepResult]:
    """Append tokens to many sessions of one model at once; the weights are read once for all.  Results are in the members' order.

    A member that fails does not disturb the others, and raises nothing: look at its error.  One that makes no sense (no tokens, a session
    that is in the step twice or has another model) raises, and nothing is done.  A session's results do not depend on its company.
    """
    members = list(members)
    array = (_lib.StepMember * len(members))()
    size = ctypes.sizeof(_lib.TokenScore)
    for c, m in zip(array, members):
        c.session, c.tokens, c.n_tokens = m.session.pointer, id_array(m.tokens), len(m.tokens)
        if m.score:
            c.scores, c.score_size = (_lib.TokenScore * len(m.tokens))(), size
        c.flags = m.decoded * _lib.STEP_DECODED | (not m.logits) * _lib.STEP_NO_LOGITS
        if m.sampling is not None:
            c.sample = ctypes.pointer(m.sampling.params(m.session.model, m.session._state))
    status, last = interruptible(lambda: lib().dsv2_step(array, ctypes.sizeof(_lib.StepMember), len(members)),
                                 lambda: cancel_all(members))
    if status and not any(c.status for c in array):
        raise exception(status, last)
    text = last if [c.status for c in array].count(status) == 1 else ""  # the library has that of one failure only
    results = []
    for i, (c, m) in enumerate(zip(array, members)):
        error: Optional[Exception] = None
        if c.status:
            raised = m.session._state.take()
            if raised is not None and not isinstance(raised, Exception):
                raise raised  # Ctrl-C in a progress callback
            error = raised or exception(c.status, text if c.status == status and text else "")
            if not str(error):
                error.args = (f"member {i} of the step ({len(m.tokens)} tokens, at {m.session.position} of {m.session.capacity}): "
                              f"{type(error).__doc__}",)
        sampled = m.sampling is not None and error is None
        results.append(StepResult(error, take_scores(m.tokens, c.scores) if m.score and error is None else None,
                                  c.token if sampled else None, c.logprob if sampled else None))
    return results
