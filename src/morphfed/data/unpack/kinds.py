"""The sets that can be unpacked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from morphfed.core.errors import ConfigError, DataError, did_you_mean
from morphfed.data.unpack import bccd, bloodmnist, leukemiaattri, saml_prostate
from morphfed.data.unpack.cells import MARGIN, Cell, Options, Remark, Unpacked, write_cells

KINDS: dict[str, Callable[[Path, Options], Iterator[Cell | Remark | str]]] = {
    "bccd": bccd.cells,
    "bloodmnist": bloodmnist.cells,
    "leukemiaattri": leukemiaattri.cells,
    "saml_prostate": saml_prostate.slices,
}
"""Name of a source → what yields its cells or slices from the published file or folder."""


def unpack(kind: str, source: Path, out: Path, *, margin: float = MARGIN, all_slices: bool = False) -> Unpacked:
    """Write one picture a cell or slice, and a table that the source of the same name reads.

    Args:
        kind: one of ``KINDS``.
        source: the published file or folder.
        out: folder to write into, not below ``source``.
        margin: around a box, as a share of its longer side, 0 … 1.
        all_slices: of volumes also the slices in which nothing is marked.

    Raises:
        ConfigError: an unknown kind or margin.
        DataError: the source cannot be read, or ``out`` holds an unpacked set or lies inside it.
        StorageError: ``out`` cannot be written.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"'{kind}' is nothing that can be unpacked.{did_you_mean(kind, KINDS)}",
            fix=f"choose one of: {', '.join(KINDS)}. Other sets are read as they are: `morphfed list sources`.",
        )
    if not 0 <= margin <= 1:
        raise ConfigError(f"margin = {margin} is not between 0 and 1.", fix="give a share of the box's longer side.")
    source, out = Path(source), Path(out)
    if not source.exists():
        raise DataError(f"{source} does not exist.", fix="check the path.")
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(
            f"{out} lies inside {source}.", fix="name a folder beside it: published files stay as they are."
        )
    return write_cells(KINDS[kind](source, Options(margin, all_slices)), out, kind)
