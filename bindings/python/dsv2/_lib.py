"""The C interface as ctypes sees it, in the order of dsv2.h, and where the library is found.

SPDX-License-Identifier: MIT
"""
from __future__ import annotations

import ctypes
import os
import subprocess
from ctypes import (CFUNCTYPE, POINTER, Structure, c_char, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint32, c_uint64,
                    c_void_p)
from pathlib import Path
from typing import Any, List, Optional, Tuple, Union

SONAME = "libdsv2.so.0"
VERSION = (0, 1)  # the header that this file follows

OK = 0
ERR_BUFFER = -11

LOG_WARNING, LOG_INFO = 1, 2
BACKEND_CPU, BACKEND_CUDA = 0, 1
CPU_BEST, CPU_REFERENCE, CPU_AVX2, CPU_AVX512 = -1, 0, 1, 2
LOAD_MMAP, LOAD_READ = 0, 1
TOKENIZE_BOS, TOKENIZE_NO_MARKERS, TOKENIZE_REPLACE = 1, 2, 4
DETOKENIZE_SKIP_SPECIAL = 1
CHAT_NONE, CHAT_V2, CHAT_V25, CHAT_UNKNOWN = 0, 1, 2, 3
CHAT_GENERATE, CHAT_NO_MARKERS = 1, 2
KV_BF16, KV_F32, KV_F8_E4M3, KV_F8_E5M2, KV_INT8, KV_6BIT = 0, 1, 2, 3, 4, 5
STEP_DECODED, STEP_NO_LOGITS = 1, 2
ATTENTION_ABSORBED, ATTENTION_EXPANDED, ATTENTION_AUTO = 0, 1, 2

LogFn = CFUNCTYPE(None, c_void_p, c_int32, c_char_p)
ProgressFn = CFUNCTYPE(c_int32, c_void_p, c_uint64, c_uint64)
LogitsFn = CFUNCTYPE(c_int32, c_void_p, POINTER(c_float), c_size_t)


class _Struct(Structure):
    """A number that a field cannot hold is an error, where ctypes alone would cut it down."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        got = getattr(self, name)
        if isinstance(value, int) and isinstance(got, int) and got != value:
            raise ValueError(f"{name}: {value} is out of range")


def _fields(kind: Any, names: str) -> List[Tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class ContextParams(_Struct):
    _fields_ = [("struct_size", c_size_t), *_fields(c_int32, "n_threads cpu_level"), ("memory_bytes", c_uint64), ("log", LogFn),
                *_fields(c_void_p, "log_user alloc free alloc_user"), *_fields(c_int32, "backend device"), ("cuda_module", c_char_p),
                ("cuda_stream", c_void_p), *_fields(c_int32, "invariant reserved")]


class BackendInfo(_Struct):
    _fields_ = [("struct_size", c_size_t), *_fields(c_int32, "backend available n_devices reserved"), ("name", c_char * 16),
                ("reason", c_char * 240)]


class ModelParams(_Struct):
    _fields_ = [("struct_size", c_size_t), *_fields(c_int32, "load_mode reserved"), ("reader", c_void_p),
                ("progress", ProgressFn), ("progress_user", c_void_p)]


class ModelInfo(_Struct):
    _fields_ = [("struct_size", c_size_t),
                *_fields(c_int32, "vocab_size hidden_size num_hidden_layers num_attention_heads q_lora_rank kv_lora_rank "
                                  "qk_nope_head_dim qk_rope_head_dim v_head_dim intermediate_size moe_intermediate_size "
                                  "n_routed_experts n_shared_experts num_experts_per_tok n_group topk_group "
                                  "first_k_dense_replace moe_layer_freq max_position_embeddings bos_token_id eos_token_id "
                                  "n_tokens has_tokenizer chat_template"),
                *_fields(c_double, "routed_scaling_factor rope_theta softmax_scale"),
                *_fields(c_uint64, "parameters active_parameters weight_bytes kv_elements_per_token"),
                ("weight_dtype", c_char * 8)]


class Memory(_Struct):
    _fields_ = [("struct_size", c_size_t), *_fields(c_uint64, "weights kv kv_per_token scratch other total"),
                *_fields(c_int32, "n_ctx reserved")]


class TextParams(_Struct):
    _fields_ = [("struct_size", c_size_t), ("stop", POINTER(c_char_p)), ("n_stop", c_size_t),
                *_fields(c_int32, "skip_special include_stop")]


class ToolCall(_Struct):
    _fields_ = _fields(c_char_p, "type name arguments")


class ChatMessage(_Struct):
    _fields_ = [("role", c_char_p), ("content", c_char_p), ("n_content", c_size_t), ("tool_calls", POINTER(ToolCall)),
                *_fields(c_size_t, "n_tool_calls tool_call_size")]


class PoolParams(_Struct):
    _fields_ = [("struct_size", c_size_t), *_fields(c_int32, "kv_type reserved"), *_fields(c_uint64, "tokens bytes prefix_cache_bytes")]


class PoolInfo(_Struct):
    _fields_ = [("struct_size", c_size_t), *_fields(c_int32, "kv_type page_tokens"),
                *_fields(c_uint64, "page_bytes pages pages_used pages_cached pages_idle prompt_tokens reused_tokens entered evicted")]


class SessionParams(_Struct):
    _fields_ = [("struct_size", c_size_t), *_fields(c_int32, "n_ctx kv_type attention n_batch"), ("progress", ProgressFn),
                *_fields(c_void_p, "progress_user pool"), ("cache_namespace", c_uint64)]


class TokenScore(_Struct):
    _fields_ = [("logprob", c_float), ("rank", c_int32), ("top_token", c_int32), ("top_logprob", c_float)]


class Logprob(_Struct):
    _fields_ = [("token", c_int32), ("rank", c_int32), ("logprob", c_float)]


class LogitBias(_Struct):
    _fields_ = [("token", c_int32), ("bias", c_float)]


class SampleParams(_Struct):
    _fields_ = [("struct_size", c_size_t), *_fields(c_float, "temperature top_p min_p"), ("top_k", c_int32),
                *_fields(c_float, "repetition_penalty presence_penalty frequency_penalty"), ("min_tokens", c_int32),
                ("seed", c_uint64), ("logit_bias", POINTER(LogitBias)), *_fields(c_size_t, "n_logit_bias logit_bias_size"),
                ("stop_tokens", POINTER(c_int32)), ("n_stop_tokens", c_size_t), ("callback", LogitsFn),
                ("callback_user", c_void_p)]


class StepMember(_Struct):
    _fields_ = [("session", c_void_p), ("tokens", POINTER(c_int32)), ("n_tokens", c_size_t), ("scores", POINTER(TokenScore)),
                ("score_size", c_size_t), ("flags", c_uint32), ("status", c_int32), ("sample", POINTER(SampleParams)),
                ("token", c_int32), ("logprob", c_float)]


# Struct of the header -> class here, for the test that compares their layouts.
STRUCTS = {"dsv2_context_params": ContextParams, "dsv2_backend_info": BackendInfo, "dsv2_model_params": ModelParams, "dsv2_model_info": ModelInfo,
           "dsv2_memory": Memory, "dsv2_text_params": TextParams, "dsv2_tool_call": ToolCall, "dsv2_chat_message": ChatMessage,
           "dsv2_pool_params": PoolParams, "dsv2_pool_info": PoolInfo, "dsv2_session_params": SessionParams,
           "dsv2_token_score": TokenScore, "dsv2_step_member": StepMember, "dsv2_logprob": Logprob,
           "dsv2_logit_bias": LogitBias, "dsv2_sample_params": SampleParams}

_status, _handle, _size_out, _ids = c_int32, c_void_p, POINTER(c_size_t), POINTER(c_int32)

# name: (result, arguments...)
PROTOTYPES = {
    "dsv2_version": (c_uint32,),
    "dsv2_status_name": (c_char_p, _status),
    "dsv2_last_error": (c_char_p,),
    "dsv2_context_params_init": (None, POINTER(ContextParams), c_size_t),
    "dsv2_context_create": (_status, POINTER(ContextParams), POINTER(_handle)),
    "dsv2_context_free": (None, _handle),
    "dsv2_backend_list": (_status, c_char_p, POINTER(BackendInfo), c_size_t, c_size_t, _size_out),
    "dsv2_model_params_init": (None, POINTER(ModelParams), c_size_t),
    "dsv2_model_load": (_status, _handle, c_char_p, POINTER(ModelParams), POINTER(_handle)),
    "dsv2_model_retain": (None, _handle),
    "dsv2_model_free": (None, _handle),
    "dsv2_model_get_info": (_status, _handle, POINTER(ModelInfo)),
    "dsv2_model_inspect": (_status, _handle, c_char_p, POINTER(ModelParams), POINTER(SessionParams), POINTER(ModelInfo),
                           POINTER(Memory)),
    "dsv2_tokenize": (_status, _handle, c_char_p, c_size_t, c_uint32, _ids, c_size_t, _size_out),
    "dsv2_detokenize": (_status, _handle, _ids, c_size_t, c_uint32, c_void_p, c_size_t, _size_out),
    "dsv2_token_bytes": (_status, _handle, c_int32, POINTER(c_void_p), _size_out),
    "dsv2_token_find": (_status, _handle, c_char_p, c_size_t, POINTER(c_int32)),
    "dsv2_token_is_eos": (c_int32, _handle, c_int32),
    "dsv2_text_params_init": (None, POINTER(TextParams), c_size_t),
    "dsv2_text_create": (_status, _handle, POINTER(TextParams), POINTER(_handle)),
    "dsv2_text_push": (_status, _handle, c_int32, POINTER(c_void_p), _size_out, POINTER(c_int32)),
    "dsv2_text_finish": (_status, _handle, POINTER(c_void_p), _size_out),
    "dsv2_text_free": (None, _handle),
    "dsv2_chat_apply": (_status, _handle, POINTER(ChatMessage), c_size_t, c_size_t, c_uint32, c_void_p, c_size_t, _size_out),
    "dsv2_chat_tokenize": (_status, _handle, POINTER(ChatMessage), c_size_t, c_size_t, c_uint32, _ids, c_size_t, _size_out),
    "dsv2_pool_params_init": (None, POINTER(PoolParams), c_size_t),
    "dsv2_pool_create": (_status, _handle, POINTER(PoolParams), POINTER(_handle)),
    "dsv2_pool_free": (None, _handle),
    "dsv2_pool_get_info": (_status, _handle, POINTER(PoolInfo)),
    "dsv2_session_params_init": (None, POINTER(SessionParams), c_size_t),
    "dsv2_session_create": (_status, _handle, POINTER(SessionParams), POINTER(_handle)),
    "dsv2_session_free": (None, _handle),
    "dsv2_session_memory": (_status, _handle, POINTER(Memory)),
    "dsv2_step": (_status, POINTER(StepMember), c_size_t, c_size_t),
    "dsv2_session_prefill": (_status, _handle, _ids, c_size_t),
    "dsv2_session_decode": (_status, _handle, c_int32),
    "dsv2_session_score": (_status, _handle, _ids, c_size_t, POINTER(TokenScore), c_size_t),
    "dsv2_session_logits": (_status, _handle, POINTER(c_void_p), _size_out),
    "dsv2_session_logprobs": (_status, _handle, c_int32, c_int32, POINTER(Logprob), c_size_t, c_size_t, _size_out),
    "dsv2_session_position": (c_size_t, _handle),
    "dsv2_session_capacity": (c_size_t, _handle),
    "dsv2_session_tokens": (_ids, _handle),
    "dsv2_session_truncate": (_status, _handle, c_size_t),
    "dsv2_session_fork": (_status, _handle, POINTER(_handle)),
    "dsv2_session_save": (_status, _handle, c_char_p),
    "dsv2_session_restore": (_status, _handle, c_char_p),
    "dsv2_session_export": (_status, _handle, c_void_p, c_size_t, _size_out),
    "dsv2_session_import": (_status, _handle, c_void_p, c_size_t),
    "dsv2_session_cancel": (None, _handle),
    "dsv2_sample_params_init": (None, POINTER(SampleParams), c_size_t, _handle),
    "dsv2_sample": (_status, _handle, POINTER(SampleParams), POINTER(c_int32), POINTER(c_float)),
}

_library: Optional[ctypes.CDLL] = None


def _candidates(path: Optional[Union[str, "os.PathLike[str]"]]) -> List[str]:
    """What to hand to the dynamic loader, in this order."""
    path = path or os.environ.get("DSV2_LIBRARY")
    if path:
        given = Path(path)
        if not given.is_dir():
            return [str(given)]
        return [str(p) for p in (given / SONAME, given / "lib" / SONAME) if p.exists()] or [str(given / SONAME)]
    names = [SONAME]
    try:
        libdir = subprocess.run(["pkg-config", "--variable=libdir", "dsv2"], capture_output=True, text=True, check=True).stdout
        names.append(str(Path(libdir.strip()) / SONAME))
    except (OSError, subprocess.CalledProcessError):
        pass
    return names


def load_library(path: Optional[Union[str, "os.PathLike[str]"]] = None) -> None:
    """Load libdsv2 from path: the library file, or a folder that has it (an installed lib folder or a build folder).

    Without a path: the environment variable DSV2_LIBRARY, a path of the same kind; else wherever the system's loader finds
    libdsv2.so.0; else where pkg-config says that dsv2 is installed.  One library per process: the first one stays.  Creating
    a Context calls this when nobody has.
    """
    global _library
    if _library:
        return
    problems = []
    for name in _candidates(path):
        try:
            loaded = ctypes.CDLL(name)
        except OSError as e:
            problems.append(str(e))
            continue
        for function, (result, *arguments) in PROTOTYPES.items():
            entry = getattr(loaded, function)
            entry.restype, entry.argtypes = result, arguments
        version = divmod(loaded.dsv2_version() // 1000, 1000)
        if version[0] != VERSION[0] or version < VERSION:
            raise ImportError(f"{name} is libdsv2 {version[0]}.{version[1]}; this package needs {VERSION[0]}.{VERSION[1]} or a later "
                              f"{VERSION[0]}.x")
        _library = loaded
        return
    raise ImportError("libdsv2 was not found: " + "; ".join(problems))


def lib() -> Any:
    """The loaded library."""
    if not _library:
        load_library()
    return _library
