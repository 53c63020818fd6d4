"""LeukemiaAttri, after ``morphfed data unpack leukemiaattri``."""

from __future__ import annotations

from morphfed.data.sources._unpacked import UnpackedSet
from morphfed.data.sources.base import SOURCES, Folder


@SOURCES.register("leukemiaattri")
class LeukemiaAttri(UnpackedSet):
    """The cells of one sub-set (``H_100X_C1`` …), cut along its COCO boxes, with patient, field and split.

    ``morphfed data unpack leukemiaattri H_100X_C1 NEW-FOLDER`` writes them. The patient is the first part of a field's
    name: so public loaders read it, the publication does not say. The sub-sets show the same cells through other
    microscopes and cameras: a study of scanner shift, never independent sites.
    """

    name = "leukemiaattri"
    title = "LeukemiaAttri, cells unpacked from one sub-set's fields with boxes"
    layout = "it holds LeukemiaAttri's cells (leukemiaattri.csv) or its fields and json_labels"

    def published(self, folder: Folder) -> bool:
        """COCO files in ``json_labels``."""
        return any(s.path.parent.name == "json_labels" and s.path.suffix == ".json" for s in folder.skipped)
