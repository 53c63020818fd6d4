"""Arrays that were pickled: TRIDENT's ``.pt`` files hold a numpy array, and torch's safe loading refuses those.

Unpickling runs whatever a file names. Here a file may name the four functions that rebuild an array of numbers, and
nothing else: any other name ends the reading before it is called.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What protocol 2 writes in place of bytes; other codecs are not needed, and so not offered."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the codec {encoding!r} is not allowed")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Callable[..., Any]]:
    rebuild = np.empty(0).__reduce__()[0]
    assert callable(rebuild)
    found: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 1 and 2
        found[module, "_reconstruct"] = rebuild
    for module in ("numpy.core.numeric", "numpy._core.numeric"):
        found[module, "_frombuffer"] = _from_buffer
    return found


def _from_buffer(content: bytes, dtype: Any, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    """What protocol 5 calls."""
    return np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _allowed()[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not part of an array") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to a tensor's storage")


def load_array(path: Path) -> NDArray[Any]:
    """The numpy array in a file that ``torch.save`` or ``pickle`` wrote.

    Raises:
        DataError: the file is damaged, or holds anything but an array of numbers; nothing of it was run.
    """
    try:
        content = path.read_bytes()
        found = _ArrayUnpickler(io.BytesIO(_pickle_in(content))).load()
    except (pickle.UnpicklingError, zipfile.BadZipFile) as cause:
        raise DataError(
            f"{path} is refused: {cause}.",
            fix="restore the file; a bag's .pt file holds a tensor or an array (N, D), and no other object is opened.",
        ) from cause
    except (OSError, EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError, MemoryError) as cause:
        raise DataError(
            f"{path} cannot be read: {cause}.", fix="restore the file, or embed the slide again."
        ) from cause
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        what = f"an array of type {found.dtype}" if isinstance(found, np.ndarray) else f"a {type(found).__name__}"
        raise DataError(f"{path} holds {what}; an array of numbers (N, D) was expected.", fix="embed the slide again.")
    return found


def _pickle_in(content: bytes) -> bytes:
    """The pickle itself: the member ``data.pkl`` of torch's archive, or the whole file."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(names) != 1:
            raise zipfile.BadZipFile("the archive has no data.pkl")
        return archive.read(names[0])
