"""Run DeepSeek-V2 models: V2, V2-Lite, Coder-V2, V2.5, straight from their Hugging Face checkpoint folders.

    import dsv2

    with dsv2.Model("path/to/checkpoint") as model, model.session() as session:
        for piece in session.generate("Story: One day", max_tokens=100):
            print(piece, end="", flush=True)

The package is a thin layer over libdsv2's C interface (dsv2.h), whose rules hold here as well: contexts and models may be used
by any thread, a session by one thread at a time, with Session.cancel() as the only exception.  Long calls release the GIL.

SPDX-License-Identifier: MIT
"""
from ._errors import (CancelledError, ContextFullError, DeviceError, Error, FileError, ForkedError, FormatError, InternalError,
                     InvalidError, LimitError, NoPagesError, NumericError, OutOfMemoryError, StateError, UTF8Error,
                     UnsupportedError)
from ._lib import load_library
from ._model import KV_TYPES, Context, Memory, Message, Model, ModelInfo, Pool, PoolInfo, TextStream, backends, inspect, version
from ._session import Generation, Logprob, Sampling, Score, Session, StepMember, StepResult, TokenScore, step

__version__ = "0.1.0"

__all__ = [
    "KV_TYPES", "CancelledError", "Context", "ContextFullError", "DeviceError", "Error", "FileError", "ForkedError", "FormatError", "Generation",
    "InternalError", "InvalidError", "LimitError", "Logprob", "Memory", "Message", "Model", "ModelInfo", "NoPagesError", "NumericError",
    "OutOfMemoryError", "Pool", "PoolInfo", "Sampling", "Score", "Session", "StateError", "StepMember", "StepResult", "TextStream",
    "TokenScore", "UTF8Error", "UnsupportedError", "backends", "inspect", "load_library", "step", "version",
]
