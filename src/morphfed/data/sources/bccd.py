"""BCCD as published, after ``morphfed data unpack bccd``."""

from __future__ import annotations

from morphfed.data.sources._unpacked import UnpackedSet
from morphfed.data.sources.base import SOURCES, Folder


@SOURCES.register("bccd")
class BCCD(UnpackedSet):
    """The cells cut from BCCD's fields along its boxes (WBC, RBC, Platelets), the field as slide.

    Fields are no single cells: ``morphfed data unpack bccd FOLDER NEW-FOLDER`` writes these. No patient ids. The crops
    of the source ``bccd_crops`` come from the same fields: never use both.
    """

    name = "bccd"
    title = "BCCD, cells unpacked from fields with boxes"
    layout = "it holds BCCD's cells (bccd.csv) or its fields and annotations"

    def published(self, folder: Folder) -> bool:
        """Fields named BloodImage_NNNNN and annotations in XML."""
        if not any(skipped.path.suffix.lower() == ".xml" for skipped in folder.skipped):
            return False
        return any(image.stem.startswith("BloodImage_") for image in folder.images)
