"""Files: downloaded and verified, read safely, written whole."""

import hashlib
import http.client
import json
import os
import pickle
import secrets
import urllib.error
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dicenet.errors import DicenetError, WeightsError

#: Key of the JSON text that describes a network in the metadata of our own files.
METADATA_KEY = "dicenet"
#: Of that description; raised when older versions could no longer read it.
FILE_FORMAT = 1
#: What its parts must be, where they are there: files may come from anywhere.
_DESCRIPTION_TYPES = {
    "format": int,
    "architecture": str,
    "model_args": dict,
    "input_size": list,
    "class_names": list,
    "preprocessing": dict,
    "head": dict,
    "task": str,
}
#: Wrappers around state dicts: of training programs, and of DDP, compile and our own training task.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "net.", "model.")
#: First bytes of torch's formats: a zip archive, a pickle.
_TORCH_MARKS = (b"PK", b"\x80")


def _sync_folder(folder: Path) -> None:
    """Have the new name of a file on disk too."""
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that gets its name when the block ends well and vanishes when it does not.

    Raises DicenetError, naming the file, when it cannot be written (no space left, no permission).
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DicenetError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    # names of files may hold bytes that are no text: shown escaped
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def git_blob_sha1(path: Path) -> str:
    """The hash that git gives a file: SHA-1 of ``blob <size>`` and a zero byte, then the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def download_verified(url: str, path: Path, sha1: str, progress: bool = True) -> Path:
    """Download ``url`` to ``path`` unless it is there; either way its git blob SHA-1 must be ``sha1``.

    Raises:
        WeightsError: no connection, or another hash. A file that was there stays; a wrong download gets no name.
    """
    if path.exists():
        found = git_blob_sha1(path)
        if found != sha1:
            raise WeightsError(
                f"{path} has git blob SHA-1 {found}, expected {sha1}: it is another file or damaged; move it away "
                "to download it again"
            )
        return path
    with atomic_path(path) as temporary:
        try:
            torch.hub.download_url_to_file(url, str(temporary), progress=progress)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise WeightsError(
                f"cannot download {url}: {reason}; without a connection, place the file at {path}"
            ) from error
        found = git_blob_sha1(temporary)
        if found != sha1:
            raise WeightsError(f"{url} gave a file with git blob SHA-1 {found}, expected {sha1}: not kept, try again")
    return path


class Checkpoint(NamedTuple):
    """A state dict as it was stored, and what our own files say of their network (empty for others)."""

    state: dict[str, Tensor]
    metadata: dict[str, Any]
    name: str


def _metadata(text: Any, path: Path) -> dict[str, Any]:
    """The description of a network that a file of ours holds; empty for files of others."""
    if not isinstance(text, str):
        return {}
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{path} has a damaged description of its network: {error}") from error
    if not isinstance(metadata, dict) or not {"architecture", "model_args"} <= metadata.keys():
        raise WeightsError(
            f"{path} has an incomplete description of its network: architecture or model_args is missing"
        )
    for key, kind in _DESCRIPTION_TYPES.items():
        if key in metadata and not isinstance(metadata[key], kind):
            raise WeightsError(f"{path} has a damaged description of its network: {key} is {metadata[key]!r}")
    if metadata.get("format", 0) > FILE_FORMAT:
        raise WeightsError(f"{path} was written by a newer dicenet (format {metadata['format']}): update dicenet")
    return metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error
    return state, _metadata(text, path)


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a ``.pth`` or ``.ckpt``: tensors and plain values only, nothing in it is ever run."""
    with path.open("rb") as file:
        if not file.read(2).startswith(_TORCH_MARKS):
            raise WeightsError(f"{path} is not a checkpoint: it is neither safetensors nor of torch's formats")
    try:
        with warnings.catch_warnings():  # on pickle protocols: the error below says what matters
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it is no plain checkpoint, reading it would run code stored in the file or it is "
            "damaged; save its state_dict() alone, or use safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(f"{path} cannot be read as a checkpoint: it is damaged or of another format") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict")
    text = content.get(METADATA_KEY)
    state = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    return state, _metadata(text, path)


def _is_safetensors(path: Path) -> bool:
    """By content: an 8-byte length, then a JSON header."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def unwrap(state: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Tensors of a state dict, without the prefixes that DDP, compile and training add.

    Raises WeightsError if there are none.
    """
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{name} holds no tensors: it is not a checkpoint of a network")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            return unwrap({key.removeprefix(prefix): value for key, value in tensors.items()}, name)
    return tensors


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a local checkpoint: safetensors, or torch's formats with tensors and plain values only.

    Raises:
        WeightsError: not there, empty, damaged, of another format, or a pickle that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} is not a file: give a .safetensors, .pth or .ckpt file")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty")
    state, metadata = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    return Checkpoint(unwrap(state, str(path)), metadata, str(path))


def write_safetensors(path: Path, state: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a state dict with its description, whole or not at all."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_bytes(path, save(tensors, {METADATA_KEY: json.dumps(metadata)}))
