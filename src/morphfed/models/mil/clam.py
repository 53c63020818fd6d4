"""CLAM with a single attention branch (Lu et al. 2021): attention pooling, its ends clustered."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from morphfed.models.mil.abmil import AttentionConfig, GatedAttention, PlainAttention, pooled_by_attention
from morphfed.models.mil.base import HEADS, HeadConfig, MilHead, MilOutput, mlp, xavier_normal


class ClamConfig(AttentionConfig):
    """The network is CLAM's "small"; "big" has ``attention = 384``."""

    gated: bool = Field(True, description="gated attention")
    clustered: int = Field(8, ge=1, description="B, instances taken from either end of the attention")
    bag_weight: float = Field(0.7, gt=0, le=1, description="c1, factor of the bag's loss; the instances' has 1 − c1")
    instance_loss: Literal["smooth_svm", "cross_entropy"] = Field("smooth_svm", description="of the clustering")
    subtyping: bool = Field(False, description="classes exclude each other: also cluster against the other classes")


class _BagAndInstances(nn.Module):
    """The bag's classifier, and one in or out of the cluster for each class."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.bag = nn.Linear(width, classes)
        self.instances = nn.ModuleList(nn.Linear(width, 2) for _ in range(classes))


@HEADS.register("clam_sb")
class ClamSb(MilHead):
    """Gated attention pooling; instances attended most and least are told apart by a classifier of the bag's class.

    From a bag of N instances min(B, ⌊N/2⌋) are taken from either end, so that none is labelled both ways; a bag of one
    has no instance loss.
    """

    Config: ClassVar[type[HeadConfig]] = ClamConfig
    title = "CLAM, single branch"
    equation = "loss = c1 · bag + (1 − c1) · mean over {top B: 1, bottom B: 0} of smooth SVM"
    paper = "Lu et al., Data-efficient and weakly supervised computational pathology, Nat Biomed Eng 5, 2021"

    def __init__(self, in_features: int, classes: int, config: ClamConfig) -> None:
        super().__init__(in_features, classes, config)
        self.clustered, self.subtyping = config.clustered, config.subtyping
        self.bag_weight = config.bag_weight
        self._instance_loss = smooth_svm if config.instance_loss == "smooth_svm" else F.cross_entropy
        widths = (in_features, *config.hidden)
        kind = GatedAttention if config.gated else PlainAttention
        self.embedding = mlp(widths, config.dropout)
        self.attention = kind(widths[-1], config.attention, config.dropout)
        self.classifier = _BagAndInstances(widths[-1], classes)
        xavier_normal(self)

    def pool(self, bag: Tensor) -> MilOutput:
        """Pool one bag; ``logits = Σ_i a_i instances_i``."""
        return pooled_by_attention(bag, self.embedding, self.attention, self.classifier.bag)

    def loss_terms(self, bag: Tensor, output: MilOutput, label: int | Tensor) -> Tensor | None:
        """``(1 − c1)`` times the instances' loss; None for a bag of one instance."""
        assert output.attention is not None
        taken = min(self.clustered, len(bag) // 2)
        if not taken:
            return None
        ends = torch.cat([output.attention.topk(taken, largest=high).indices for high in (True, False)])
        embedded = self.embedding(bag[ends]) if output.embedded is None else output.embedded[ends]
        top, bottom = embedded[:taken], embedded[taken:]
        targets = torch.tensor([1] * taken + [0] * taken, device=bag.device)
        own, losses = int(label), []
        for k, classifier in enumerate(self.classifier.instances):
            if k == own:
                losses.append(self._instance_loss(classifier(torch.cat([top, bottom])), targets))
            elif self.subtyping:  # what this bag shows most is no instance of another class
                losses.append(self._instance_loss(classifier(top), targets[taken:]))
        return (1 - self.bag_weight) * torch.stack(losses).mean()


def smooth_svm(scores: Tensor, targets: Tensor, *, margin: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Smooth top-1 SVM loss, mean over instances: ``τ log Σ_j exp((α·[j ≠ y] + s_j − s_y) / τ)``.

    Berrada, Zisserman, Kumar, Smooth loss functions for deep top-k classification, ICLR 2018, equation 9 with k = 1.

    Args:
        scores: ``(M, K)``.
        targets: ``(M,)``, 0 to K − 1.
        margin: α.
        temperature: τ.
    """
    wanted = F.one_hot(targets, scores.shape[1]).bool()
    raised = scores + margin * ~wanted - scores[wanted][:, None]
    return temperature * torch.logsumexp(raised / temperature, dim=1).mean()
