"""A network cut before its classifier: features on one side, the classifier alone on the other."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from morphfed.models.backbone import Backbone


@dataclass(frozen=True)
class Cut:
    """Where a network is cut.

    Attributes:
        classifier: name of the linear layer whose output is the logits.
        width: numbers of one feature vector.
        dropout: share of a feature vector that training drops before the classifier.
    """

    classifier: str
    width: int
    dropout: float


def cut_before_classifier(backbone: Backbone, *, image_size: int) -> Cut | None:
    """Find the cut; None where the logits are not simply a linear layer of a vector (SqueezeNet, distilled heads).

    It is tried out: one image goes through the whole network, and the classifier's output must be the network's.
    """
    module = backbone.module
    names = {key.rpartition(".")[0] for key in backbone.head}
    if len(names) != 1:
        return None
    name = names.pop()
    classifier = module.get_submodule(name)
    if not isinstance(classifier, nn.Linear):
        return None
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    inputs, logits = _through(module, classifier, image.to(classifier.weight.device))
    with torch.no_grad():
        if inputs is None or inputs.ndim != 2 or not torch.equal(classifier(inputs), logits):
            return None
    return Cut(name, classifier.in_features, _dropout(module, name))


def features_of(module: nn.Module, cut: Cut, images: Tensor) -> Tensor:
    """What enters the classifier, in evaluation mode: float ``(N, width)`` of normalised images ``(N, 3, S, S)``."""
    inputs, _ = _through(module, module.get_submodule(cut.classifier), images)
    assert inputs is not None
    return inputs


@torch.no_grad()
def _through(module: nn.Module, classifier: nn.Module, images: Tensor) -> tuple[Tensor | None, Tensor]:
    caught: list[Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
    was = module.training
    module.eval()
    try:
        logits = module(images)
    finally:
        module.train(was)
        hook.remove()
    return (caught[0] if len(caught) == 1 else None), logits


def _dropout(module: nn.Module, classifier: str) -> float:
    """timm keeps the rate on the network; torchvision has a layer before the classifier."""
    rate = getattr(module, "drop_rate", None)
    if rate is None:  # timm's transformers
        rate = getattr(getattr(module, "head_drop", None), "p", None)
    if rate is not None:
        return float(rate)
    layers = list(module.get_submodule(classifier.rpartition(".")[0]).children())
    before = layers[layers.index(module.get_submodule(classifier)) - 1] if len(layers) > 1 else None
    return float(before.p) if isinstance(before, nn.Dropout) else 0.0


class HeadOnly(nn.Module):
    """The classifier alone, under the key names that it has in the whole network; weights are shared with it.

    Args:
        module: the whole network.
        cut: where its classifier begins.
    """

    def __init__(self, module: nn.Module, cut: Cut) -> None:
        super().__init__()
        self._cut = cut
        *parents, last = cut.classifier.split(".")
        at: nn.Module = self
        for name in parents:
            at.add_module(name, nn.Module())
            at = at.get_submodule(name)
        at.add_module(last, module.get_submodule(cut.classifier))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(N, C)`` of features ``(N, width)``."""
        dropped = F.dropout(features, self._cut.dropout, self.training)
        logits: Tensor = self.get_submodule(self._cut.classifier)(dropped)
        return logits


def fingerprint(backbone: Backbone) -> str:
    """Identifies what computes the features: layers and weights without the classifier, and the normalisation."""
    found = hashlib.sha256(repr((backbone.mean, backbone.std)).encode())
    for name, module in backbone.module.named_modules():
        found.update(f"{name}|{type(module).__name__}|{module.extra_repr()}\n".encode())
    for name, tensor in backbone.module.state_dict().items():
        if name not in backbone.head:
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:24]
