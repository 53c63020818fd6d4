"""Multi-site prostate MRI (Liu 2020, SAML, doi:10.1109/TMI.2020.2974574): slices and masks that were written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from morphfed.data.sources._unpacked import UnpackedSet
from morphfed.data.sources.base import SOURCES


@SOURCES.register("saml_prostate")
class SAMLProstate(UnpackedSet):
    """What ``morphfed data unpack saml_prostate BIDMC …`` wrote: a case is the patient, its axial slices the images."""

    name = "saml_prostate"
    title = "multi-site prostate MRI (SAML): axial slices of one site, with masks"
    layout = "it has saml_prostate.csv, which morphfed data unpack writes"
    nuclei = False
    mask_values: ClassVar[Mapping[str, int]] = {"prostate": 255}
