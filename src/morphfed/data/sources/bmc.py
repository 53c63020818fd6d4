"""Bone-Marrow-Cytomorphology_MLL_Helmholtz_Fraunhofer (Matek 2021, doi:10.7937/TCIA.AXH3-T579): 171,375 JPEG."""

from __future__ import annotations

import re

from morphfed.data.sources._class_folders import ClassFolders
from morphfed.data.sources.base import SOURCES


@SOURCES.register("bmc")
class BMC(ClassFolders):
    """``bone_marrow_cell_dataset/MYB/0001-1000/MYB_00001.jpg``; 21 classes.

    945 patients, none of them told for an image. ``MYB_05527.jpg`` is damaged as published: it keeps its row, and the
    data check names it.
    """

    name = "bmc"
    title = "Bone-Marrow-Cytomorphology_MLL_Helmholtz_Fraunhofer (Matek 2021)"
    layout = "its folders and files are named after the bone-marrow set's codes (MYB/…/MYB_00001.jpg)"
    stem = re.compile(r"(?P<label>[A-Z]{3})_\d{5}")
