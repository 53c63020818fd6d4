"""Where a unit's images are while it trains: on its GPU where they fit, else in host memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from morphfed.core.progress import Event, Reporter, silent
from morphfed.training.resident import ResidentStore, Room, bytes_of, free_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from morphfed.experiment.prepare import Prepared
    from morphfed.training.dataset import Gather, ImageSet

Where = Literal["device", "host"]


@dataclass
class _Kept:
    """What this process has on its GPU; units that follow on the same images find them there."""

    source: Gather | None = None
    store: ResidentStore | None = None

    def covers(self, source: Gather, rows: NDArray[np.int64], device: torch.device) -> bool:
        store = self.store
        return (
            store is not None
            and self.source is source
            and store.values.device == device
            and bool(np.isin(rows, store.rows).all())
        )


_kept = _Kept()


def bring(
    prepared: Prepared, device: torch.device, *, processes: int = 1, report: Reporter = silent, task: str = "images"
) -> tuple[Prepared, Where]:
    """Put all images of a study on a GPU, if they fit; they are then gathered there.

    Args:
        prepared: the study's sets, of images or of stored features; all from one store.
        device: of this unit; on a CPU nothing is done.
        processes: that share the device, and so its memory.
        report: told what was decided, and why.
        task: key of that line.

    Returns:
        The same sets, and where their images are.
    """
    if device.type == "cpu":
        return prepared, "host"
    every = _every(prepared)
    source = every[0].store
    rows = np.concatenate([data.rows_used() for data in every])
    if not _kept.covers(source, rows, device):
        _forget()
        room = Room(bytes_of(source, rows), free_bytes(device), processes)
        store, said = _load(source, rows, device, room)
        report(Event(task, text=said, level="info"))
        if store is None:
            return prepared, "host"
        _kept.source, _kept.store = source, store
    assert _kept.store is not None
    return _with_store(prepared, _kept.store), "device"


def _load(
    source: Gather, rows: NDArray[np.int64], device: torch.device, room: Room
) -> tuple[ResidentStore | None, str]:
    count = len(np.unique(rows))
    shared = f", shared by {room.processes} processes" if room.processes > 1 else ""
    hosted = "each batch is copied from pinned host memory"
    if not room.fits:
        why = f"{_gb(room.allowed)} are allowed of {_gb(room.free)} free{shared}"
        return None, f"{count:,} images do not fit on {device}: {_gb(room.needed)} needed, {why}; {hosted}"
    try:
        store = ResidentStore(source, rows, device)
    except torch.OutOfMemoryError:  # another process was faster
        _forget()
        return None, f"{count:,} images ({_gb(room.needed)}) found no memory on {device} after all; {hosted}"
    return store, f"{count:,} images ({_gb(room.needed)} of {_gb(room.free)} free{shared}) stay on {device}"


def _forget() -> None:
    _kept.source = _kept.store = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what torch keeps for itself would not count as free


def _every(prepared: Prepared) -> list[ImageSet]:
    found = [data for parts in prepared.sets.values() for data in parts.values()]
    return found + [images for images, _ in prepared.unknown.values()]


def _with_store(prepared: Prepared, store: ResidentStore) -> Prepared:
    sets = {
        site: {part: replace(data, store=store) for part, data in parts.items()}
        for site, parts in prepared.sets.items()
    }
    unknown = {site: (replace(images, store=store), kinds) for site, (images, kinds) in prepared.unknown.items()}
    return replace(prepared, sets=sets, unknown=unknown)


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
