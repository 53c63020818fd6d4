"""PBC, Hospital Clínic Barcelona (Acevedo 2020, doi:10.1016/j.dib.2020.105474).

Eight folders; the sub-type is in the file name's prefix. No patient ids exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source
from morphfed.data.sources.cellavision import CellaVision, prefix
from morphfed.data.sources.wbcatt import SPLITS

FOLDERS = {
    "basophil": {"BA"},
    "eosinophil": {"EO"},
    "erythroblast": {"ERB"},
    "ig": {"IG", "MMY", "MY", "PMY"},
    "lymphocyte": {"LY"},
    "monocyte": {"MO"},
    "neutrophil": {"BNE", "NEUTROPHIL", "SNE"},
    "platelet": {"PLATELET"},
}
"""Folder of the published archive → the prefixes that occur in it."""


@SOURCES.register("pbc")
class PBC(Source):
    """The published folders; its scale, 10.0 px/µm, is in the ontology's table of the same name."""

    name = "pbc"
    title = "PBC_dataset_normal_DIB, Hospital Clínic Barcelona"
    layout = "its folders and the file-name prefixes in them are those of PBC_dataset_normal_DIB"

    def detect(self, folder: Folder) -> float:
        """0.95 × the share of images that lie in one of PBC's folders with one of that folder's prefixes.

        At least two of the sub-types that PBC alone tells apart by prefix must be there:
        ``lymphocyte/LY_1.jpg`` could come from anywhere.
        """
        if not folder.images:
            return 0.0
        fitting = [i for i in folder.images if prefix(i) in FOLDERS.get(i.parent.name, set())]
        telling = {prefix(i) for i in fitting} & (FOLDERS["ig"] | FOLDERS["neutrophil"])
        # WBCAtt's tables beside the pictures mean that its split is wanted: its own source then is the surer one.
        most = 0.85 if any(table.name in SPLITS for table in folder.tables) else 0.95
        return most * len(fitting) / len(folder.images) if len(telling) >= 2 else 0.0

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """As any CellaVision export."""
        yield from CellaVision().records(folder, options)
