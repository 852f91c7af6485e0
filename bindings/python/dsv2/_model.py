"""Context and Model: loading, tokens and text, chat templates.

SPDX-License-Identifier: MIT
"""
from __future__ import annotations

import ctypes
import os
import threading
import weakref
from dataclasses import dataclass
from typing import (TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Type, TypeVar, Union)

from . import _lib
from ._errors import check, exception, last_error
from ._lib import lib

if TYPE_CHECKING:
    from ._session import Score, Session

Message = Mapping[str, Any]
"""A chat message as everywhere in the Hugging Face world: {"role": "user", "content": "Hello"}.  Contents are strings, or
None in a message with "tool_calls": [{"type": "function", "function": {"name": "...", "arguments": "{...}"}}], arguments being a string."""

Progress = Callable[[int, int], Optional[bool]]
"""Called with (done, total); returning False cancels, as does an exception, which then comes out of the call."""

PathLike = Union[str, "os.PathLike[str]"]
_Self = TypeVar("_Self", bound="Handle")

BACKENDS = {"cpu": _lib.BACKEND_CPU, "cuda": _lib.BACKEND_CUDA}
CPU_LEVELS = {"best": _lib.CPU_BEST, "reference": _lib.CPU_REFERENCE, "avx2": _lib.CPU_AVX2, "avx512": _lib.CPU_AVX512}
KV_TYPES = {"bf16": _lib.KV_BF16, "f32": _lib.KV_F32, "f8_e4m3": _lib.KV_F8_E4M3, "f8_e5m2": _lib.KV_F8_E5M2,
            "int8": _lib.KV_INT8, "6bit": _lib.KV_6BIT}
"""How a cache may be stored: name, number in dsv2.h."""
ATTENTION = {"absorbed": _lib.ATTENTION_ABSORBED, "expanded": _lib.ATTENTION_EXPANDED, "auto": _lib.ATTENTION_AUTO}
CHAT_TEMPLATES = {_lib.CHAT_NONE: None, _lib.CHAT_V2: "V2", _lib.CHAT_V25: "V2.5", _lib.CHAT_UNKNOWN: "unknown"}


def c_string(name: str, text: object) -> bytes:
    """Text that C reads up to a NUL, which must therefore not be inside."""
    data = text.encode() if isinstance(text, str) else text
    if not isinstance(data, bytes):
        raise TypeError(f"{name}: {text!r} is not a string")
    if b"\0" in data:
        raise ValueError(f"{name}: {text!r} has a NUL in it")
    return data


def int32(name: str, value: int) -> int:
    """A number for C, which ctypes alone would cut down to 32 bits."""
    if not -(1 << 31) <= value < 1 << 31:
        raise ValueError(f"{name}: {value} is out of range")
    return value


def id_array(ids: Sequence[int]) -> Any:
    if isinstance(ids, (str, bytes)):
        raise TypeError(f"ids: {ids!r} is a text: tokenize it first")
    return (ctypes.c_int32 * len(ids))(*(int32(f"ids[{i}]", t) for i, t in enumerate(ids)))


def c_path(path: PathLike) -> bytes:
    return c_string("path", os.fsencode(path))


def choose(name: str, value: str, table: Mapping[str, int]) -> int:
    """The number of a named choice."""
    if value not in table:
        raise ValueError(f"{name}: {value!r} is none of {', '.join(table)}")
    return table[value]


class Owner:
    """What frees a C object: it lives as long as anything that points into the object's memory."""

    def __init__(self, pointer: ctypes.c_void_p, free: Callable[[ctypes.c_void_p], None]):
        self.pointer = pointer
        weakref.finalize(self, free, pointer)


class Handle:
    """A C object, freed when closed or collected.  A context manager."""

    def __init__(self, pointer: ctypes.c_void_p, free: Callable[[ctypes.c_void_p], None]):
        self._owner: Optional[Owner] = Owner(pointer, free)

    @property
    def owner(self) -> Owner:
        if self._owner is None:
            raise ValueError(f"this {type(self).__name__} is closed")
        return self._owner

    @property
    def pointer(self) -> ctypes.c_void_p:
        """The C object, for calling functions of dsv2.h that this package does not wrap."""
        return self.owner.pointer

    def close(self) -> None:
        """Give the object up; it goes when nothing else uses it.  Closing twice is allowed."""
        self._owner = None

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Any) -> None:
        self.close()


def interruptible(call: Callable[[], int], cancel: Callable[[], object]) -> Tuple[int, str]:
    """The status of a call that may take long, and the library's text.  Python handles Ctrl-C on the main thread and not within C: there the
    call runs on a thread of its own, which Ctrl-C cancels."""
    results: List[Tuple[int, str]] = []
    done = threading.Event()

    def run() -> None:
        try:
            status = call()
            results.append((status, last_error() if status else ""))
        finally:
            done.set()

    if threading.current_thread() is not threading.main_thread():
        run()
        return results[0]
    threading.Thread(target=run).start()
    interrupt: Optional[BaseException] = None
    while not done.is_set():  # whatever comes: what the call uses must outlive it
        try:
            done.wait()
        except BaseException as e:
            interrupt = interrupt or e
            cancel()
    if interrupt is not None:
        raise interrupt
    return results[0]


class Callback:
    """A Python function as a C callback that cancels: an exception is kept, and raised after the call that it ended."""

    def __init__(self) -> None:
        self.raised: Optional[BaseException] = None

    def guard(self, function: Callable[[], Optional[bool]]) -> int:
        try:
            return int(function() is False)
        except BaseException as e:  # it must not travel through C
            self.raised = e
            return 1

    def take(self) -> Optional[BaseException]:
        """The exception that is kept, if any; it is kept no longer."""
        raised, self.raised = self.raised, None
        return raised

    def check(self, status: int, text: Optional[str] = None) -> None:
        raised = self.take()
        if raised is not None:
            raise raised
        if status and text is not None:
            raise exception(status, text)
        check(status)


def progress_callback(progress: Optional[Progress], state: Callback) -> Any:
    if progress is None:
        return _lib.ProgressFn()
    call = progress
    return _lib.ProgressFn(lambda _user, done, total: state.guard(lambda: call(done, total)))


@dataclass(frozen=True)
class ModelInfo:
    """Facts of a model.  Names are those of config.json; None where the model has no such thing."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: Optional[int]
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    first_k_dense_replace: int
    moe_layer_freq: int
    max_position_embeddings: int
    bos_token_id: Optional[int]
    eos_token_id: Optional[int]
    n_tokens: int  #: ids below have a token; from here to vocab_size - 1 are padding rows
    has_tokenizer: bool
    chat_template: Optional[str]  #: "V2", "V2.5", "unknown", or None
    routed_scaling_factor: float
    rope_theta: float
    softmax_scale: float
    parameters: int
    active_parameters: int  #: used per token
    weight_bytes: int
    kv_elements_per_token: int
    weight_dtype: str  #: of most weights: "BF16", "F16", "F32", "F8_E4M3"


@dataclass(frozen=True)
class Memory:
    """Memory in bytes of one model with one session whose context is full."""

    weights: int
    kv: int
    kv_per_token: int
    scratch: int
    other: int
    total: int
    n_ctx: int  #: the context length that this is for


def take_info(c: _lib.ModelInfo) -> ModelInfo:
    values = {f[0]: getattr(c, f[0]) for f in c._fields_ if f[0] != "struct_size"}
    values["q_lora_rank"] = c.q_lora_rank or None
    for name in ("bos_token_id", "eos_token_id"):
        values[name] = None if values[name] < 0 else values[name]
    values["has_tokenizer"] = bool(c.has_tokenizer)
    values["chat_template"] = CHAT_TEMPLATES[c.chat_template]
    values["weight_dtype"] = c.weight_dtype.decode()
    return ModelInfo(**values)


def take_memory(c: _lib.Memory) -> Memory:
    return Memory(**{f[0]: getattr(c, f[0]) for f in c._fields_ if f[0] not in ("struct_size", "reserved")})


def version() -> Tuple[int, int, int]:
    """Version of the loaded library."""
    v = lib().dsv2_version()
    return v // 1000000, v // 1000 % 1000, v % 1000


class Context(Handle):
    """Threads, instruction set, log.  Usually there is one per program; Model makes one if it is given none.

    n_threads: worker threads; 0 is one per core.  cpu: "best", "reference", "avx2" or "avx512".  memory_bytes: memory that default
    context lengths may count on; 0 is three quarters of the machine's.  log: called with (level, text), from any thread; level 1 is a
    warning, 2 a note; an exception that it raises is lost.

    backend: "cpu" or "cuda"; see backends().  device, cuda_module (the file libdsv2-cuda.so, if it is not beside the library) and invariant
    (the bits of a session do not depend on what else is in a step) are for CUDA.
    """

    def __init__(self, *, n_threads: int = 0, cpu: str = "best", memory_bytes: int = 0,
                 log: Optional[Callable[[int, str], None]] = None, backend: str = "cpu", device: int = 0,
                 cuda_module: Optional[PathLike] = None, invariant: bool = False):
        params, pointer = _lib.ContextParams(), ctypes.c_void_p()
        lib().dsv2_context_params_init(params, ctypes.sizeof(params))
        params.n_threads, params.cpu_level, params.memory_bytes = n_threads, choose("cpu", cpu, CPU_LEVELS), memory_bytes
        params.backend, params.device, params.invariant = choose("backend", backend, BACKENDS), device, invariant
        params.cuda_module = None if cuda_module is None else c_path(cuda_module)
        if log is not None:
            call = log
            # Kept with the object that frees the context: models keep the context alive after this handle is closed.
            params.log = _lib.LogFn(lambda _user, level, text: call(level, text.decode(errors="replace")))
        check(lib().dsv2_context_create(params, ctypes.byref(pointer)))
        super().__init__(pointer, lib().dsv2_context_free)
        self.log_callback = params.log


def backends(cuda_module: Optional[PathLike] = None) -> Dict[str, str]:
    """The backends and why each is not available here; "" for those that are."""
    n = ctypes.c_size_t()
    path = None if cuda_module is None else c_path(cuda_module)
    infos = (_lib.BackendInfo * len(BACKENDS))()
    check(lib().dsv2_backend_list(path, infos, ctypes.sizeof(_lib.BackendInfo), len(infos), ctypes.byref(n)))
    return {i.name.decode(): "" if i.available else i.reason.decode(errors="replace") for i in infos}


class Model(Handle):
    """Weights, tokenizer and chat template of the checkpoint in folder; shared by any number of sessions.

    read=True reads the weights into memory instead of mapping them, so that the files may change afterwards.  progress is called with
    the bytes done and their total.
    """

    def __init__(self, folder: PathLike, context: Optional[Context] = None, *, read: bool = False,
                 progress: Optional[Progress] = None):
        self.context = context or Context()
        params, pointer, state = _lib.ModelParams(), ctypes.c_void_p(), Callback()
        lib().dsv2_model_params_init(params, ctypes.sizeof(params))
        params.load_mode = _lib.LOAD_READ if read else _lib.LOAD_MMAP
        interrupted = threading.Event()
        params.progress = progress_callback(lambda *of: not interrupted.is_set() and (progress is None or progress(*of)), state)
        path = c_path(folder)
        state.check(*interruptible(lambda: lib().dsv2_model_load(self.context.pointer, path, params, ctypes.byref(pointer)), interrupted.set))
        super().__init__(pointer, lib().dsv2_model_free)
        info = _lib.ModelInfo(struct_size=ctypes.sizeof(_lib.ModelInfo))
        check(lib().dsv2_model_get_info(pointer, info))
        self.info: ModelInfo = take_info(info)

    # ---- tokens and text

    def tokenize(self, text: Union[str, bytes], *, bos: bool = False, markers: bool = True, replace: bool = False) -> List[int]:
        """Encode text.  bos: put the BOS in front, if the model's tokenizer does.  markers=False: text such as "<｜end▁of▁sentence｜>"
        stays text.  replace: invalid UTF-8 becomes U+FFFD instead of an error."""
        data = text.encode() if isinstance(text, str) else text
        flags = bos * _lib.TOKENIZE_BOS | (not markers) * _lib.TOKENIZE_NO_MARKERS | replace * _lib.TOKENIZE_REPLACE
        return self._ids(lambda *out: lib().dsv2_tokenize(self.pointer, data, len(data), flags, *out), len(data) + 1)

    def detokenize(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Decode ids; invalid sequences become U+FFFD."""
        array = id_array(ids)
        flags = skip_special * _lib.DETOKENIZE_SKIP_SPECIAL
        return self._text(lambda *out: lib().dsv2_detokenize(self.pointer, array, len(ids), flags, *out), 16 * len(ids))

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; they may be a part of a UTF-8 sequence."""
        data, n = ctypes.c_void_p(), ctypes.c_size_t()
        check(lib().dsv2_token_bytes(self.pointer, int32("token", token), ctypes.byref(data), ctypes.byref(n)))
        return take_bytes(data, n)

    def token_id(self, text: str) -> int:
        """Id of the token whose text is exactly text."""
        data, token = text.encode(), ctypes.c_int32()
        check(lib().dsv2_token_find(self.pointer, data, len(data), ctypes.byref(token)))
        return token.value

    def is_eos(self, token: int) -> bool:
        """Does this token end generation?"""
        return bool(lib().dsv2_token_is_eos(self.pointer, int32("token", token)))

    # ---- chat

    def chat_text(self, messages: Iterable[Message], *, generate: bool = True) -> str:
        """Messages as the checkpoint's chat template renders them; generate: with the assistant's prompt at the end."""
        array, n = chat_messages(messages)
        flags = generate * _lib.CHAT_GENERATE
        room = 256 + sum(2 * m.n_content + 128 for m in array)
        return self._text(lambda *out: lib().dsv2_chat_apply(self.pointer, array, ctypes.sizeof(_lib.ChatMessage), n, flags, *out), room)

    def chat_tokens(self, messages: Iterable[Message], *, generate: bool = True, markers: bool = False) -> List[int]:
        """The same as ids, with exactly one BOS.  Markers inside of contents stay text unless markers is True."""
        array, n = chat_messages(messages)
        flags = generate * _lib.CHAT_GENERATE | (not markers) * _lib.CHAT_NO_MARKERS
        room = 64 + sum(m.n_content + 64 for m in array)
        return self._ids(lambda *out: lib().dsv2_chat_tokenize(self.pointer, array, ctypes.sizeof(_lib.ChatMessage), n, flags, *out), room)

    # ---- what else there is to do with a model

    def session(self, *, n_ctx: int = 0, kv: str = "bf16", attention: str = "absorbed", n_batch: int = 256,
                progress: Optional[Progress] = None, pool: Optional[Pool] = None, cache_namespace: int = 0) -> Session:
        """A new, empty Session; see there."""
        from ._session import Session
        return Session(self, n_ctx=n_ctx, kv=kv, attention=attention, n_batch=n_batch, progress=progress, pool=pool,
                       cache_namespace=cache_namespace)

    def score(self, text: Union[str, Sequence[int]], *, context: Union[str, Sequence[int]] = "", n_ctx: int = 0,
              overlap: Optional[int] = None) -> Score:
        """How well the model foretells text after BOS and context; in overlapping windows where it does not fit n_ctx."""
        with self.session(n_ctx=n_ctx) as session:
            return session.score_text(text, context=context, overlap=overlap)

    # Both ask again with the size needed when the guess was too small.
    def _ids(self, call: Callable[..., int], room: int) -> List[int]:
        n = ctypes.c_size_t()
        while True:
            array = (ctypes.c_int32 * room)()
            status = call(array, room, ctypes.byref(n))
            if status != _lib.ERR_BUFFER:
                check(status)
                return array[: n.value]
            room = n.value

    def _text(self, call: Callable[..., int], room: int) -> str:
        n = ctypes.c_size_t()
        while True:
            buffer = ctypes.create_string_buffer(max(room, 1))
            status = call(buffer, room, ctypes.byref(n))
            if status != _lib.ERR_BUFFER:
                check(status)
                return buffer.raw[: n.value].decode()
            room = n.value


def take_bytes(data: ctypes.c_void_p, n: ctypes.c_size_t) -> bytes:
    return ctypes.string_at(data, n.value) if n.value else b""


def chat_messages(messages: Iterable[Message]) -> Tuple[Any, int]:
    rows = []
    for i, message in enumerate(messages):
        calls = tool_calls(f"messages[{i}]: tool_calls", message.get("tool_calls") or [])
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and len(calls)):
            raise TypeError(f"messages[{i}]: content: {content!r} is not a string")
        data = None if content is None else content.encode()
        rows.append(_lib.ChatMessage(c_string(f"messages[{i}]: role", message.get("role")), data, len(data or b""),
                                     calls, len(calls), ctypes.sizeof(_lib.ToolCall)))
    return (_lib.ChatMessage * len(rows))(*rows), len(rows)


def tool_calls(name: str, calls: Iterable[Mapping[str, Any]]) -> Any:
    rows = []
    for i, call in enumerate(calls):
        function = call.get("function") or {}
        rows.append(_lib.ToolCall(c_string(f"{name}[{i}]: type", call.get("type")), c_string(f"{name}[{i}]: function: name", function.get("name")),
                                  c_string(f"{name}[{i}]: function: arguments", function.get("arguments"))))
    return (_lib.ToolCall * len(rows))(*rows)


def session_params(n_ctx: int, kv: str, attention: str, n_batch: int) -> _lib.SessionParams:
    params = _lib.SessionParams()
    lib().dsv2_session_params_init(params, ctypes.sizeof(params))
    params.n_ctx, params.n_batch = n_ctx, n_batch
    params.kv_type, params.attention = choose("kv", kv, KV_TYPES), choose("attention", attention, ATTENTION)
    return params


def inspect(folder: PathLike, context: Optional[Context] = None, *, n_ctx: int = 0, kv: str = "bf16", attention: str = "absorbed",
            n_batch: int = 256) -> Tuple[ModelInfo, Memory]:
    """What loading folder would give and take, without reading weights.  A folder with only config.json is enough."""
    ctx = context or Context()
    info, memory = _lib.ModelInfo(struct_size=ctypes.sizeof(_lib.ModelInfo)), _lib.Memory(struct_size=ctypes.sizeof(_lib.Memory))
    check(lib().dsv2_model_inspect(ctx.pointer, c_path(folder), None, session_params(n_ctx, kv, attention, n_batch), info, memory))
    return take_info(info), take_memory(memory)


@dataclass(frozen=True)
class PoolInfo:
    """State of a pool, and counts since its creation."""

    kv: str  #: how its pages store tokens, one of KV_TYPES
    page_tokens: int
    page_bytes: int
    pages: Optional[int]  #: in all; None: unbounded
    pages_used: int  #: held by sessions; a page that several share counts once
    pages_cached: int  #: in the prefix cache
    pages_idle: int  #: of these held by no session: to be had like free ones
    prompt_tokens: int  #: tokens of prompts that were looked for in the cache
    reused_tokens: int  #: of these found
    entered: int  #: pages into the cache
    evicted: int  #: and out of it


class Pool(Handle):
    """KV pages that sessions of one model share; it bounds them all together, and may keep the pages of prompts for later ones.

    tokens or bytes: the size, whose memory is taken at once; neither: unbounded.  prefix_cache_bytes: pages that the prefix cache may
    hold; 0: there is none.  With one, a prompt that begins as an earlier one of the pool did is computed only from where they part,
    for sessions of the same cache_namespace and attention.  Any thread may use a pool.
    """

    def __init__(self, model: Model, *, kv: str = "bf16", tokens: int = 0, bytes: int = 0, prefix_cache_bytes: int = 0):
        params, pointer = _lib.PoolParams(), ctypes.c_void_p()
        lib().dsv2_pool_params_init(params, ctypes.sizeof(params))
        params.kv_type, params.tokens, params.bytes = choose("kv", kv, KV_TYPES), tokens, bytes
        params.prefix_cache_bytes = prefix_cache_bytes
        check(lib().dsv2_pool_create(model.pointer, params, ctypes.byref(pointer)))
        super().__init__(pointer, lib().dsv2_pool_free)

    @property
    def info(self) -> PoolInfo:
        """As it is now."""
        c = _lib.PoolInfo(struct_size=ctypes.sizeof(_lib.PoolInfo))
        check(lib().dsv2_pool_get_info(self.pointer, c))
        values = {f[0]: getattr(c, f[0]) for f in c._fields_ if f[0] not in ("struct_size", "kv_type")}
        values["kv"] = next(name for name, number in KV_TYPES.items() if number == c.kv_type)
        values["pages"] = c.pages or None
        return PoolInfo(**values)


class TextStream(Handle):
    """Text from tokens as they come: incomplete UTF-8, and what may still become a stop string, is held back until it is certain.

    stop: stop strings.  skip_special: leave out special tokens.  include_stop: cut behind the stop string instead of before it.
    """

    def __init__(self, model: Model, *, stop: Union[str, Sequence[str]] = (), skip_special: bool = True, include_stop: bool = False):
        stop = (stop,) if isinstance(stop, str) else stop
        params, pointer = _lib.TextParams(), ctypes.c_void_p()
        lib().dsv2_text_params_init(params, ctypes.sizeof(params))
        params.stop = (ctypes.c_char_p * len(stop))(*(c_string(f"stop[{i}]", s) for i, s in enumerate(stop)))
        params.n_stop, params.skip_special, params.include_stop = len(stop), skip_special, include_stop
        check(lib().dsv2_text_create(model.pointer, params, ctypes.byref(pointer)))
        super().__init__(pointer, lib().dsv2_text_free)
        self.model = model
        self.stopped: bool = False  #: a stop string is complete; later tokens are ignored

    def push(self, token: int) -> str:
        """Add a token; returns the text that can be shown now."""
        data, n, stopped = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_int32()
        check(lib().dsv2_text_push(self.pointer, int32("token", token), ctypes.byref(data), ctypes.byref(n), ctypes.byref(stopped)))
        self.stopped = bool(stopped.value)
        return take_bytes(data, n).decode()

    def finish(self) -> str:
        """The rest.  The stream can be used again afterwards."""
        data, n = ctypes.c_void_p(), ctypes.c_size_t()
        check(lib().dsv2_text_finish(self.pointer, ctypes.byref(data), ctypes.byref(n)))
        self.stopped = False
        return take_bytes(data, n).decode()
