"""BloodMNIST, after ``morphfed data unpack bloodmnist``."""

from __future__ import annotations

from morphfed.data.sources._unpacked import UnpackedSet
from morphfed.data.sources.base import SOURCES


@SOURCES.register("bloodmnist")
class BloodMNIST(UnpackedSet):
    """PBC's pictures, the middle 20 µm, at 28, 64, 128 or 224 pixels, with the official split.

    ``morphfed data unpack bloodmnist bloodmnist_224.npz NEW-FOLDER`` writes them. Eight classes: stages of immature
    granulocytes and bands are not told apart. The pictures are PBC's: never use both.
    """

    name = "bloodmnist"
    title = "BloodMNIST, pictures unpacked from the .npz"
    layout = "it holds BloodMNIST's pictures and bloodmnist.csv"
