"""Training with a coarser label: an image that is said to be one of several classes.

"Granulocyte" says: neutrophil, eosinophil or basophil. The loss is that of the event which the label names, its
marginal negative log-likelihood ``−log Σ_{c ∈ S} p_c`` over the classes S below the label (partial labels: Cour, Sapp
and Taskar, JMLR 2011; labels at inner nodes of a hierarchy: Deng et al., ECCV 2014). Its gradient in the logits is
``p − q``, q being p restricted to S and scaled to sum to 1: the image lifts the classes of S in proportion to the
probability that they have already, and says nothing about which of them it is. With S one class it is the
cross-entropy, with S all of them 0.

It assumes that the image is of one of the study's classes, which a label cannot promise: a granulocyte may be a
myelocyte where that is no class.

Here a label is a column: log-probabilities ``(N, C)`` get one further column for each coarser label, and every loss
picks the column of the label, ``C + k`` for the k-th.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

Parents = tuple[tuple[int, ...], ...]
"""Coarser labels, each as the class indices that it leaves possible; label ``C + k`` is the ``k``-th of them."""


def with_parents(log_p: Tensor, parents: Parents) -> Tensor:
    """Log-probabilities ``(N, C)`` and, behind them, those of the coarser labels: ``(N, C + K)``, all ≤ 0."""
    if not parents:
        return log_p
    # Rounding can bring a sum of probabilities above 1, and (1 - p)^γ of the focal loss is then no number.
    columns = [torch.logsumexp(log_p[:, list(below)], dim=1).clamp(max=0.0) for below in parents]
    return torch.cat([log_p, torch.stack(columns, dim=1)], dim=1)


def parent_weights(weights: Tensor, counts: Tensor, parents: Parents) -> Tensor:
    """Loss weights of the classes and, behind them, of the coarser labels: ``(C + K,)``.

    A coarser label weighs what an image of its classes weighs on average, ``Σ_S n_c w_c / Σ_S n_c``: the weight of its
    class expected from the counts. Without an image of any of them, the plain mean over S.

    Args:
        weights: of the classes ``(C,)``.
        counts: training images of each class ``(C,)``, coarser labels not among them.
        parents: K coarser labels.
    """
    found = [weights]
    for below in parents:
        which = list(below)
        share = counts[which] if bool(counts[which].any()) else torch.ones_like(counts[which])
        found.append((share * weights[which]).sum().reshape(1) / share.sum())
    return torch.cat(found)
