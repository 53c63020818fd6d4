"""What a report says and shows differently for each task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morphfed.reporting.text import counted, finite, listed, plain

if TYPE_CHECKING:
    from morphfed.reporting.results import Results


@dataclass(frozen=True)
class Kind:
    """A task as the report knows it.

    Attributes:
        about: what was told apart, for the line below the title.
        trained: what was trained, as "We trained …" goes on.
        pooled: how a site's score is made, after the metric's name.
        loss: a sentence about what was minimised; may be empty.
        metrics: metrics shown beside the primary one.
        pictures: headline of a site's sample pictures.
        thing: what one prediction is of, in a word.
        works: cited whatever the arms.
    """

    about: Callable[[Results], str]
    trained: Callable[[Results], str]
    pooled: str
    loss: Callable[[Results], str]
    metrics: tuple[str, ...]
    pictures: str
    works: tuple[str, ...]
    thing: str = "image"


def kind_of(r: Results) -> Kind:
    """The task of some results."""
    return _KINDS.get(r.task, CLASSIFICATION)


_STATISTICS = (
    "Ansah G et al. MORPHFED: federated learning for cross-institutional blood morphology analysis. "
    "arXiv:2601.04121, 2026 (the study design).",
    "Holm S. A simple sequentially rejective multiple test procedure. Scand J Stat 1979; 6:65–70.",
    "Efron B, Tibshirani RJ. An introduction to the bootstrap. Chapman & Hall 1993.",
)


def _class_loss(r: Results) -> str:
    loss = (r.config.get("train") or {}).get("loss") or {}
    if loss.get("prior") != "federation":
        return ""
    names = {"class_balanced": "class-balanced cross-entropy", "logit_adjusted": "logit-adjusted cross-entropy"}
    names["seesaw"] = "seesaw loss"
    name = names.get(str(loss.get("kind")), str(loss.get("kind")))
    return f" The loss was a {name} with class counts summed over the training sites."


def _mask_loss(r: Results) -> str:
    weights = (r.config.get("train") or {}).get("mask_loss") or {}
    names = {"cross_entropy": "cross-entropy over pixels", "dice": "one minus soft Dice over structures"}
    terms = [(w, names.get(str(k), plain(str(k)))) for k, v in weights.items() if (w := finite(v))]
    if not terms:
        return ""
    even = len({w for w, _ in terms}) == 1
    return f" The loss was {' plus '.join(name if even else f'{w:g} × {name}' for w, name in terms)}."


CLASSIFICATION = Kind(
    about=lambda r: counted(len(r.classes), "cell class", "cell classes"),
    trained=lambda r: f"classifiers of {len(r.classes)} cell types ({listed(plain(c) for c in r.classes)})",
    pooled=" over the classes present in a test set",
    loss=_class_loss,
    metrics=("macro_f1", "accuracy", "auroc"),
    pictures="Cells as the models see them",
    works=(
        *_STATISTICS,
        "Brodersen KH et al. The balanced accuracy and its posterior distribution. ICPR 2010.",
        "Guo C et al. On calibration of modern neural networks. ICML 2017 (calibration error).",
        "Geifman Y, El-Yaniv R. Selective classification for deep neural networks. NeurIPS 2017 (risk–coverage).",
    ),
)

SEGMENTATION = Kind(
    about=lambda r: f"{counted(len(r.structures), 'structure')} ({listed(plain(s) for s in r.structures)})",
    trained=lambda r: f"networks that outline {listed(plain(s) for s in r.structures)}",
    pooled=" (mean over images, then over structures)",
    loss=_mask_loss,
    metrics=("iou", "hd95_px", "hd95_um"),
    pictures="Pictures as the models see them, with their true outlines",
    works=(
        *_STATISTICS,
        "Dice LR. Measures of the amount of ecologic association between species. Ecology 1945; 26:297–302.",
        "Maier-Hein L et al. Metrics reloaded: recommendations for image analysis validation. Nature Methods 2024; "
        "21:195–212 (95 % Hausdorff distance).",
        "Ronneberger O et al. U-Net: convolutional networks for biomedical image segmentation. MICCAI 2015.",
        "Milletari F et al. V-Net: fully convolutional neural networks for volumetric medical image segmentation. "
        "3DV 2016 (Dice loss).",
    ),
)

MIL = Kind(
    about=lambda r: f"{counted(len(r.classes), 'class', 'classes')} of bags ({listed(plain(c) for c in r.classes)})",
    trained=lambda r: f"multiple-instance classifiers of {listed(plain(c) for c in r.classes)}",
    pooled=" over the classes present in a test set",
    loss=_class_loss,
    metrics=("auroc", "macro_f1", "accuracy"),
    pictures="",
    works=(
        *_STATISTICS,
        "Dietterich TG et al. Solving the multiple instance problem with axis-parallel rectangles. Artif Intell 1997; "
        "89:31–71.",
        "Ilse M, Tomczak JM, Welling M. Attention-based deep multiple instance learning. ICML 2018.",
        "Guo C et al. On calibration of modern neural networks. ICML 2017 (calibration error).",
    ),
    thing="bag",
)


def _hazard_loss(r: Results) -> str:
    alpha = finite(((r.config.get("train") or {}).get("survival_loss") or {}).get("alpha"))
    edges = ", ".join(f"{float(e):g}" for e in r.study.get("time_edges") or ())
    return f" The loss was the negative log likelihood of discrete hazards over bins of time cut at {edges} months" + (
        f"; censored bags weighed {1 - alpha:g}." if alpha is not None else "."
    )


SURVIVAL = Kind(
    about=lambda r: f"survival in {len(r.study.get('time_edges') or ()) + 1} bins of time",
    trained=lambda r: "multiple-instance networks that predict survival",
    pooled="",
    loss=_hazard_loss,
    metrics=(),
    pictures="",
    works=(
        *_STATISTICS,
        "Harrell FE, Lee KL, Mark DB. Multivariable prognostic models: issues in developing models, evaluating "
        "assumptions and adequacy, and measuring and reducing errors. Stat Med 1996; 15:361–387 (c-index).",
        "Zadeh SG, Schmid M. Bias in cross-entropy-based training of deep survival networks. IEEE TPAMI 2021; "
        "43:3126–3137 (loss).",
        "Lu MY et al. Federated learning for computational pathology on gigapixel whole slide images. Med Image Anal "
        "2022; 76:102298 (HistoFL).",
        "Kaplan EL, Meier P. Nonparametric estimation from incomplete observations. J Am Stat Assoc 1958; 53:457–481.",
        "Ilse M, Tomczak JM, Welling M. Attention-based deep multiple instance learning. ICML 2018.",
    ),
    thing="bag",
)

_KINDS = {"survival": SURVIVAL, "classification": CLASSIFICATION, "segmentation": SEGMENTATION, "mil": MIL}
