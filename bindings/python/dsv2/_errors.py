"""A failed call as an exception: one class per status, each with the library's own text.

SPDX-License-Identifier: MIT
"""
from __future__ import annotations

from typing import Dict, Type

from ._lib import lib


class Error(Exception):
    """A call of libdsv2 failed.  str() is the library's text, which names file, field and value where there is one."""

    status: int = 0

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status

    @property
    def name(self) -> str:
        """Name of the status in C, such as "DSV2_ERR_IO"."""
        return bytes(lib().dsv2_status_name(self.status)).decode()


class InvalidError(Error, ValueError):
    """An argument is out of range, or an id does not exist."""


class StateError(Error):
    """The call does not fit the object's state, e.g. logits before any token."""


class OutOfMemoryError(Error, MemoryError):
    """Memory could not be had."""


class FileError(Error):
    """A file could not be opened, read or written."""


class FormatError(Error):
    """A file is malformed or contradicts itself or another."""


class UnsupportedError(Error):
    """Well-formed, but outside of what this library runs."""


class UTF8Error(Error, ValueError):
    """Text is not valid UTF-8."""


class LimitError(Error):
    """A matching or size limit was reached."""


class ContextFullError(Error):
    """The tokens do not fit the session's context; nothing was evaluated."""


class NoPagesError(Error):
    """The page pool has none left; nothing was evaluated."""


class CancelledError(Error):
    """A callback or Session.cancel() asked to stop."""


class NumericError(Error):
    """NaN among the logits, or no token left to choose from."""


class ForkedError(Error):
    """The context belongs to another process."""


class DeviceError(Error):
    """The GPU failed or was lost."""


class InternalError(Error):
    """A bug in libdsv2; please report it."""


BY_STATUS: Dict[int, Type[Error]] = {
    -10: InvalidError, -12: StateError, -20: OutOfMemoryError, -30: FileError, -40: FormatError, -41: UnsupportedError,
    -42: UTF8Error, -43: LimitError, -50: ContextFullError, -51: NoPagesError, -60: CancelledError, -70: NumericError,
    -80: ForkedError, -81: DeviceError, -90: InternalError,
}


def exception(status: int, text: str) -> Error:
    return BY_STATUS.get(status, Error)(text, status)


def last_error() -> str:
    """The library's text of the last failure on this thread."""
    return bytes(lib().dsv2_last_error()).decode(errors="replace")


def check(status: int) -> None:
    """Raise the exception of a status, unless it is success."""
    if status:
        raise exception(status, last_error())
