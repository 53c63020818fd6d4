"""The seesaw loss with fixed counts, and class weights from prototypes: the two factors of CPA.

Chen et al., IEEE TMI 2022: ``L_CPA = -Σ_c γ_c y_c log p̂_c``. The *global objective* p̂ is the mitigation factor of the
seesaw loss (Wang et al., CVPR 2021) with the class counts of all sites; the *local refinement* γ weighs classes whose
features at the site point away from those of all sites.

Of masks each pixel has both factors, and as in the authors' script for the prostate the whole is
``½ L_CPA + ½ cross-entropy + soft Dice``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from morphfed.tasks.segmentation import soft_dice

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 0.05
"""Least denominator of γ: with small τ and opposite features it would pass through 0."""


def log_mitigation(counts: Tensor, *, power: float) -> Tensor:
    """``log S``, float ``(C, C)``: ``S_ij = (n_j / n_i)^p`` where i is the more frequent class, else 1.

    Args:
        counts: ``(C,)``, images of each class; a class that nobody has counts as one image.
        power: p ≥ 0.
    """
    log_n = counts.clamp(min=1).to(torch.float32).log()
    return power * (log_n[None, :] - log_n[:, None]).clamp(max=0.0)


def seesaw(logits: Tensor, labels: Tensor, log_s: Tensor) -> Tensor:
    """``-log p̂_y`` of each image or pixel ``(N, ...)``, ``p̂_y = e^{z_y} / (e^{z_y} + Σ_{j≠y} S_yj e^{z_j})``.

    Args:
        logits: ``(N, C, ...)``.
        labels: int64 ``(N, ...)``.
        log_s: of :func:`log_mitigation`.
    """
    shift = log_s.to(logits.device, logits.dtype)[labels].movedim(-1, 1)
    return F.cross_entropy(logits + shift, labels, reduction="none")


def conjoint(logits: Tensor, labels: Tensor, log_s: Tensor, gamma: Tensor) -> Tensor:
    """L_CPA, mean over images; of masks ``½ L_CPA + ½ cross-entropy``, means over pixels, ``+ soft Dice``.

    Args:
        logits: ``(N, C)``, of masks ``(N, C, H, W)``.
        labels: integers ``(N,)``, of masks ``(N, H, W)`` with 0 the background.
        log_s: of :func:`log_mitigation`.
        gamma: of :func:`refinement`, ``(C,)``.
    """
    known = labels.long()
    aligned = (gamma.to(logits.device)[known] * seesaw(logits, known, log_s)).mean()
    if known.ndim == 1:
        return aligned
    return 0.5 * aligned + 0.5 * F.cross_entropy(logits, known) + soft_dice(logits, known)


def refinement(local: Tensor, common: Tensor, known: Tensor, *, tau: float) -> Tensor:
    """``γ_c = (1 + τ) / (cos(P_c, P̄_c) + τ)``, ``(C,)``, at least 1; 1 where a prototype is missing.

    Args:
        local, common: prototypes ``(C, D)`` of the site and of all sites.
        known: bool ``(C,)``, whether both exist.
        tau: τ > 0.
    """
    cosine = F.cosine_similarity(local, common, dim=1)
    gamma = (1 + tau) / (cosine + tau).clamp(min=LEAST)
    return torch.where(known, gamma, torch.ones_like(gamma))
