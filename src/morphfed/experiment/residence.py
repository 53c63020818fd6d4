"""Where a unit's images are while it trains: on its GPU where they fit, else in host memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from morphfed.core.progress import Event, Reporter, silent
from morphfed.training.resident import ResidentStore, Room, bytes_of, free_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from morphfed.experiment.prepare import Prepared
    from morphfed.training.dataset import Gather, ImageSet

Where = Literal["device", "host"]
Wanted = dict[str, tuple["Gather", "NDArray[np.int64]"]]
"""Field of the sets, such as ``store`` → the store that all of them share, and the rows that any of them may ask."""


@dataclass
class _Kept:
    """What this process has on its GPU; units that follow on the same images find them there."""

    sources: dict[str, Gather] = field(default_factory=dict)
    stores: dict[str, ResidentStore] = field(default_factory=dict)

    def covers(self, wanted: Wanted, device: torch.device) -> bool:
        return self.stores.keys() == wanted.keys() and all(
            self.sources[name] is source
            and self.stores[name].values.device == device
            and bool(np.isin(rows, self.stores[name].rows).all())
            for name, (source, rows) in wanted.items()
        )


_kept = _Kept()


def bring(
    prepared: Prepared, device: torch.device, *, processes: int = 1, report: Reporter = silent, task: str = "images"
) -> tuple[Prepared, Where]:
    """Put all images of a study on a GPU, if they fit; they are then gathered there.

    Args:
        prepared: the study's sets, of images (with masks) or of stored features; all from one store.
        device: of this unit; on a CPU nothing is done.
        processes: that share the device, and so its memory.
        report: told what was decided, and why.
        task: key of that line.

    Returns:
        The same sets, and where their images are.
    """
    if device.type == "cpu":
        return prepared, "host"
    wanted = _wanted(prepared)
    if not wanted:  # bags, which are read as they are asked for
        return prepared, "host"
    if not _kept.covers(wanted, device):
        _forget()
        room = Room(sum(bytes_of(*each) for each in wanted.values()), free_bytes(device), processes)
        stores, said = _load(wanted, device, room)
        report(Event(task, text=said, level="info"))
        if stores is None:
            return prepared, "host"
        _kept.sources, _kept.stores = {name: source for name, (source, _) in wanted.items()}, stores
    return _with_stores(prepared, _kept.stores), "device"


def _load(wanted: Wanted, device: torch.device, room: Room) -> tuple[dict[str, ResidentStore] | None, str]:
    count = len(np.unique(wanted["store"][1]))
    shared = f", shared by {room.processes} processes" if room.processes > 1 else ""
    hosted = "each batch is copied from pinned host memory"
    if not room.fits:
        why = f"{_gb(room.allowed)} are allowed of {_gb(room.free)} free{shared}"
        return None, f"{count:,} images do not fit on {device}: {_gb(room.needed)} needed, {why}; {hosted}"
    try:
        stores = {name: ResidentStore(source, rows, device) for name, (source, rows) in wanted.items()}
    except torch.OutOfMemoryError:  # another process was faster
        _forget()
        return None, f"{count:,} images ({_gb(room.needed)}) found no memory on {device} after all; {hosted}"
    return stores, f"{count:,} images ({_gb(room.needed)} of {_gb(room.free)} free{shared}) stay on {device}"


def _forget() -> None:
    _kept.sources, _kept.stores = {}, {}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what torch keeps for itself would not count as free


def _every(prepared: Prepared) -> list[ImageSet]:
    found = [data for parts in prepared.sets.values() for data in parts.values()]
    return found + [images for images, _ in prepared.unknown.values()]


def _wanted(prepared: Prepared) -> Wanted:
    every = [data.stored() for data in _every(prepared)]
    return {
        name: (source, np.concatenate([stored[name][1] for stored in every])) for name, (source, _) in every[0].items()
    }


def _with_stores(prepared: Prepared, stores: Mapping[str, ResidentStore]) -> Prepared:
    def there(data: ImageSet) -> ImageSet:
        return replace(data, **stores)  # type: ignore[arg-type]  # fields that hold a store

    sets = {site: {part: there(data) for part, data in parts.items()} for site, parts in prepared.sets.items()}
    unknown = {site: (there(images), kinds) for site, (images, kinds) in prepared.unknown.items()}
    return replace(prepared, sets=sets, unknown=unknown)


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
