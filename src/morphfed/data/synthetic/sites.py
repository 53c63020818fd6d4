"""What makes one laboratory's films look unlike another's: stain, slide, optics, camera, file."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from morphfed.core.config import Config

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Rgb = tuple[Fraction, Fraction, Fraction]

AZURE, BLUE, EOSIN, HAEM = range(4)
"""What absorbs in a Romanowsky film: azure B on DNA, methylene blue on RNA, eosin, stained haemoglobin."""


class SyntheticSite(Config):
    """One imaginary laboratory.

    The four dyes are given as the light that a unit density lets through, in red, green and blue, so their
    optical density vectors are ``-log(transmission)`` (Beer–Lambert law). Lengths are in µm where no unit is
    given.

    Attributes:
        name: the site's name in manifests, ``[a-z0-9_-]+``.
        azure: transmission of a dense nucleus.
        blue: transmission of basophilic cytoplasm.
        eosin: transmission of packed eosinophil granules.
        haem: transmission of a red cell at its thickest.
        strength: multiplies every density; 1 is a fresh stain.
        strength_sd: spread of the strength between films, on a log scale.
        background: colour of the empty slide.
        background_sd: spread of the background between films.
        gradient: fall of the light from one side of the field to the other.
        vignette: fall of the light from the middle to the corners.
        blur: standard deviation of the optics' point spread, in µm.
        noise: standard deviation of the camera's noise at full light.
        contrast: gamma of the camera; above 1 darkens.
        red_cells: red cells in 100 µm² of free slide; a dense film has about 1.5.
        pallor: depth of the red cells' central pallor, 0–1.
        um_per_px: size of a pixel.
        image_px: side of the square image.
        jpeg_quality: 1–100.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    azure: Rgb = (0.24, 0.15, 0.50)
    blue: Rgb = (0.46, 0.50, 0.82)
    eosin: Rgb = (0.80, 0.46, 0.42)
    haem: Rgb = (0.78, 0.68, 0.70)
    strength: Annotated[float, Field(gt=0.2, lt=3.0)] = 1.0
    strength_sd: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.08
    background: Rgb = (0.99, 0.91, 0.80)
    background_sd: Annotated[float, Field(ge=0.0, lt=0.2)] = 0.005
    gradient: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.03
    vignette: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    blur: Annotated[float, Field(ge=0.0, lt=2.0)] = 0.10
    noise: Annotated[float, Field(ge=0.0, lt=0.2)] = 0.008
    contrast: Annotated[float, Field(gt=0.3, lt=3.0)] = 1.0
    red_cells: Annotated[float, Field(ge=0.0, le=2.5)] = 1.1
    pallor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.85
    um_per_px: Annotated[float, Field(gt=0.05, lt=1.0)] = 0.2
    image_px: Annotated[int, Field(ge=48, le=1024)] = 128
    jpeg_quality: Annotated[int, Field(ge=10, le=100)] = 92

    def film(self, rng: np.random.Generator) -> Film:
        """Draw one patient's film: what all its images share beyond the site's own look."""
        light = np.asarray(self.background) * np.exp(rng.normal(0.0, self.background_sd, 3))
        stain = self.strength * np.exp(rng.normal(0.0, self.strength_sd))
        balance = np.exp(rng.normal(0.0, self.strength_sd / 2, 4))
        vectors = -np.log(np.array([self.azure, self.blue, self.eosin, self.haem]))
        return Film(
            vectors=(vectors * (stain * balance)[:, None]).astype(np.float32),
            background=np.clip(light, 0.0, 1.0).astype(np.float32),
            red_cells=self.red_cells * float(np.exp(rng.normal(0.0, 0.2))),
            pallor=float(np.clip(self.pallor + rng.normal(0.0, 0.08), 0.0, 1.0)),
            red_cell_um=float(np.clip(rng.normal(7.4, 0.2), 7.0, 8.0)),
        )


class Film:
    """One patient's film at one site.

    Attributes:
        vectors: (4, 3) optical density of unit azure, blue, eosin and haem in red, green and blue.
        background: (3,) colour of the empty slide, 0–1.
        red_cells: red cells in 100 µm².
        pallor: depth of the central pallor, 0–1.
        red_cell_um: mean diameter of the red cells, 7–8 µm.
    """

    def __init__(
        self,
        *,
        vectors: NDArray[np.float32],
        background: NDArray[np.float32],
        red_cells: float,
        pallor: float,
        red_cell_um: float,
    ) -> None:
        self.vectors, self.background = vectors, background
        self.red_cells, self.pallor, self.red_cell_um = red_cells, pallor, red_cell_um


PRESETS: dict[str, SyntheticSite] = {
    site.name: site
    for site in (
        # Automated imaging, May-Grünwald-Giemsa: sharp, cream background.
        SyntheticSite(name="alder"),
        # Rapid stain and an old lamp: yellow film, reddish nuclei, few red cells left, coarse pixels.
        SyntheticSite(
            name="birch",
            azure=(0.38, 0.10, 0.30),
            blue=(0.50, 0.62, 0.60),
            eosin=(0.88, 0.48, 0.40),
            haem=(0.93, 0.90, 0.88),
            strength=1.1,
            strength_sd=0.14,
            background=(0.98, 0.93, 0.52),
            background_sd=0.016,
            gradient=0.08,
            vignette=0.05,
            blur=0.24,
            noise=0.012,
            red_cells=0.35,
            pallor=0.5,
            um_per_px=0.25,
            image_px=112,
            jpeg_quality=82,
        ),
        # Hand-held camera on the eyepiece: grey-green light, violet wash, soft focus.
        SyntheticSite(
            name="cedar",
            azure=(0.50, 0.30, 0.88),
            blue=(0.62, 0.68, 0.96),
            eosin=(0.88, 0.60, 0.66),
            haem=(0.82, 0.68, 0.62),
            strength=0.95,
            strength_sd=0.12,
            background=(0.79, 0.80, 0.76),
            background_sd=0.010,
            gradient=0.10,
            vignette=0.10,
            blur=0.30,
            noise=0.016,
            red_cells=1.25,
            pallor=0.6,
            um_per_px=0.18,
            image_px=144,
            jpeg_quality=70,
        ),
        # Strong fresh Wright stain: pink crowded red cells, near-black nuclei, high contrast.
        SyntheticSite(
            name="dogwood",
            azure=(0.26, 0.14, 0.38),
            blue=(0.50, 0.50, 0.70),
            eosin=(0.76, 0.34, 0.46),
            haem=(0.74, 0.52, 0.54),
            strength=1.15,
            background=(0.95, 0.87, 0.79),
            gradient=0.02,
            blur=0.08,
            noise=0.006,
            contrast=1.15,
            red_cells=1.45,
            pallor=0.35,
            um_per_px=0.2,
            image_px=136,
            jpeg_quality=95,
        ),
    )
}
"""Four laboratories that look different on purpose; the names are made up."""
