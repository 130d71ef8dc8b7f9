"""Bytes from where they lie: a file, a URL, or what a command prints. What fails on its way is tried again."""

import http.client
import logging
import re
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import webdataset as wds
from webdataset.gopen import gopen_schemes, set_options

from dicenet.errors import DataError

T = TypeVar("T")
#: A local file as Path; as text a URL (``https://...``, or another scheme that webdataset knows) or ``pipe:COMMAND``.
Address = Path | str
#: Reads something from an open stream.
Read = Callable[[IO[bytes]], Iterator[T]]

#: How often a stream is opened that gives nothing new.
TRIES = 5
#: Seconds to wait before the second try; twice as many before each further one.
PAUSE = 1.0
_TIMEOUT = 60
_PIPE = "pipe:"
_PLACE = "{}"
_FAULTS = (OSError, http.client.HTTPException, tarfile.TarError, EOFError, zlib.error)
#: Answers of servers that another request may not get: timeout, too early, too many requests.
_PASSING = (408, 425, 429)
_log = logging.getLogger(__name__)


class NotThereError(DataError):
    """There is no such file, or the server says so."""


def is_remote(text: str) -> bool:
    """Whether it is a URL or a command, not a path."""
    return text.startswith(_PIPE) or "://" in text


def below(base: str, name: str) -> str:
    """Address of a file in a remote folder: its name takes the place of ``{}``, or follows the URL.

    Raises:
        DataError: webdataset knows no such scheme, or a command has no ``{}``.
    """
    scheme = base.partition(":")[0]
    if scheme != "file" and (scheme not in gopen_schemes or scheme.startswith("_")):
        raise DataError(f"{base}: {scheme} is no scheme that can be read: https://, or pipe: with a command")
    if _PLACE in base:
        return base.replace(_PLACE, name)
    if scheme == "pipe":
        raise DataError(f"{base} needs {{}} where the name of a file is to stand, as in 'pipe:cat /folder/{{}}'")
    return f"{base.rstrip('/')}/{name}"


def beside(address: Address, name: str, up: int = 0) -> Address:
    """Address of a file in the folder of another, or so many folders above it."""
    if isinstance(address, Path):
        return address.parents[up] / name
    return "/".join([*address.split("/")[: -1 - up], name])


@contextmanager
def opened(address: Address) -> Iterator[IO[bytes]]:
    """Open for reading; a command may be stopped before it has printed all."""
    stream: Any
    if isinstance(address, Path):
        stream = address.open("rb")
    elif address.startswith(("http:", "https:")):
        stream = urllib.request.urlopen(address, timeout=_TIMEOUT)
    else:
        stream = wds.gopen(address)
    try:
        yield stream
    finally:
        set_options(stream, ignore_errors=True)  # one that is stopped ends with an error
        stream.close()


def items_of(address: Address, read: Read[T]) -> Iterator[T]:
    """What ``read`` yields from a stream, each item once.

    If a remote stream breaks off, it is opened anew, and what was given already is passed over. ``read`` raises
    EOFError with the reason if a stream ends too early.

    Raises:
        NotThereError: there is no such file.
        DataError: it cannot be opened or ends early, at all of several tries; the message names the address.
    """
    given = failed = 0
    while True:
        before = given
        try:
            with opened(address) as stream:
                for item in islice(read(stream), given, None):
                    given += 1
                    yield item
            return
        except _FAULTS as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is the server's answer
            failed = 1 if given > before else failed + 1
            if isinstance(address, Path) or failed >= TRIES or _lasting(error):
                raise _refusal(address, error, failed) from error
            pause = PAUSE * 2 ** (failed - 1)
            _log.warning("dicenet: %s: %s; trying again in %g s", address, _reason(error), pause)
        time.sleep(pause)


def read_bytes(address: Address) -> bytes:
    """All that is there. Errors as of :func:`items_of`."""
    (content,) = items_of(address, _whole)
    return content


def _whole(stream: IO[bytes]) -> Iterator[bytes]:
    content = stream.read()
    if wait := getattr(stream, "wait_for_child", None):  # of a command: raises OSError if it failed
        wait()
    yield content


def _lasting(error: Exception) -> bool:
    """Whether a server's answer will not change."""
    return isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in _PASSING


def _refusal(address: Address, error: Exception, tries: int) -> DataError:
    gone = isinstance(error, FileNotFoundError) or (
        isinstance(error, urllib.error.HTTPError) and error.code in (404, 410)
    )
    times = f" (tried {tries} times)" if tries > 1 else ""
    return (NotThereError if gone else DataError)(f"{address} cannot be read: {_reason(error)}{times}")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(getattr(error.reason, "strerror", None) or error.reason)
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended early"
    if isinstance(error, tarfile.TarError | zlib.error):
        return "it is damaged, cut off or no tar archive"
    if isinstance(error, OSError) and (status := re.search(r": exit (-?\d+) \(read\)", str(error.args[:1]))):
        return f"the command failed with exit code {status[1]}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
