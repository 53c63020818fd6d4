"""How much of a network is trained: all of it, its last blocks, its classifier, or low-rank updates (LoRA).

What is not trained keeps ``requires_grad = False``, and ``models.layout.Layout`` leaves it out of what travels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from morphfed.core.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from torch import nn

    from morphfed.models.backbone import ModelConfig

FULL, HEAD, LORA, LAST = "full", "head", "lora", "last-"

# torchvision does not say which of its layers follow each other; timm does (``group_matcher``). Pairs as timm has
# them: a pattern whose groups number the blocks, and what is added to that number (99999: joins the block before).
_TORCHVISION = {
    "stem": r"^conv1\.|^bn1\.|^conv_proj\.|^class_token|^encoder\.pos_embedding",
    "blocks": [
        (r"^layer(\d+)\.(\d+)\.", None),
        (r"^features\.(\d+)\.", None),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", None),
        (r"^encoder\.ln\.", (99999,)),
    ],
}


def refuse_nonsense(config: ModelConfig, *, where: str) -> None:
    """Refuse combinations that would run and mean nothing.

    Args:
        config: one arm's network.
        where: what the user knows it by.

    Raises:
        ConfigError: names the keys.
    """
    if config.tune == FULL:
        return
    given = f"{where}: model.tune = '{config.tune}'"
    if config.weights == "none":
        raise ConfigError(
            f"{given} freezes a network that was never trained (model.weights = 'none').",
            fix="give weights (a .safetensors file or 'pretrained'), or set model.tune = 'full'.",
        )
    if config.norm == "group":
        raise ConfigError(
            f"{given} freezes layers that model.norm = 'group' has just changed and that need training to recover.",
            fix="set model.norm = 'batch', or model.tune = 'full'.",
        )
    if config.norm == "local" and not config.tune.startswith(LAST):
        raise ConfigError(
            f"{given} trains no normalisation, so model.norm = 'local' would keep nothing at the sites.",
            fix="set model.norm = 'batch', or tune the last blocks (model.tune = 'last-1').",
        )


def apply(module: nn.Module, config: ModelConfig, head: frozenset[str]) -> None:
    """Leave ``requires_grad`` on what ``config.tune`` trains; with ``lora``, put the low-rank updates in.

    Args:
        module: a complete network with its weights, changed in place.
        config: ``tune``, and with ``lora`` its rank and alpha.
        head: state-dict keys of the classifier, which is trained in every mode.

    Raises:
        ConfigError: the network has fewer blocks, or its blocks are not known.
        MissingExtraError: LoRA without its library.
    """
    if config.tune == FULL:
        return
    names = {name for name, _ in module.named_parameters()}
    if config.tune == HEAD:
        trained = names & head
    elif config.tune == LORA:
        trained = (names & head) | _add_lora(module, config, head)
    else:
        count = int(config.tune.removeprefix(LAST))
        *blocks, rest = blocks_of(module, config.name, head)
        if count > len(blocks):
            raise ConfigError(
                f"model.tune = '{config.tune}': '{config.name}' has {len(blocks)} blocks.",
                fix=f"choose 'last-1' to 'last-{len(blocks)}', or 'full'.",
            )
        trained = {name for block in [*blocks[-count:], rest] for name in block}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)


def blocks_of(module: nn.Module, name: str, head: frozenset[str]) -> list[list[str]]:
    """Parameter names of the network's blocks from the first to the last, and then of what follows them.

    A block is what the network's authors repeat: a residual block, a transformer layer, a Fire module. The stem is in
    none. A norm that follows the last block belongs to it; the final list holds the head.

    Raises:
        ConfigError: which parameters form blocks is not known for this network.
    """
    from timm.models import group_parameters

    own = getattr(module, "group_matcher", None)
    groups = group_parameters(module, _TORCHVISION if own is None else own(coarse=False))
    *trunk, rest = (list(groups[depth]) for depth in sorted(groups))
    # The first group is the stem, but for torchvision's networks that number it as a layer like the others.
    blocks = trunk if own is None and trunk and trunk[0][0].startswith("features.") else trunk[1:]
    behind = {key.partition(".")[0] for key in head}
    if not blocks or not head & set(rest) or (own is None and {key.partition(".")[0] for key in rest} != behind):
        raise ConfigError(
            f"model.tune: it is not known which layers of '{name}' are its blocks.",
            fix="set model.tune = 'full' or 'head', or choose a network of timm.",
        )
    return [*blocks, rest]


def _add_lora(module: nn.Module, config: ModelConfig, head: frozenset[str]) -> set[str]:
    """Put ``W + (α / r) B A`` in the place of every linear layer and dense convolution ``W`` of the blocks.

    Hu et al., LoRA: low-rank adaptation of large language models, ICLR 2022, section 4.1: B starts at zero, so the
    network computes at first what it did before. Subclasses are left alone: theirs is another use of the weight.
    """
    from torch import nn

    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as cause:
        raise MissingExtraError(
            "model.tune = 'lora' needs the library peft, which is not installed.",
            fix="pip install 'morphfed[tuning]', or choose model.tune = 'head' or 'last-1'.",
        ) from cause
    inside = {name.rpartition(".")[0] for block in blocks_of(module, config.name, head)[:-1] for name in block}
    targets = [
        name
        for name, layer in module.named_modules()
        if name in inside and (type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1))
    ]
    if not targets:
        raise ConfigError(
            f"model.tune = 'lora': '{config.name}' has no linear layer or dense convolution to adapt.",
            fix="choose model.tune = 'head' or 'last-1'.",
        )
    before = {id(p) for p in module.parameters()}
    adapter = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=targets)
    inject_adapter_in_model(adapter, module)
    return {name for name, parameter in module.named_parameters() if id(parameter) not in before}


def merge_lora(module: nn.Module) -> int:
    """Add the low-rank updates to the weights they belong to and remove them; return how many there were.

    Afterwards the network has the layers and the state-dict keys that it had before ``tune = "lora"``, and needs no
    library to load. Nothing happens to a network without them.
    """
    merged = 0
    for name, child in list(module.named_children()):
        if _is_lora(child):
            child.merge()  # type: ignore[operator]
            setattr(module, name, child.get_base_layer())  # type: ignore[operator]
            merged += 1
        else:
            merged += merge_lora(child)
    return merged


def _is_lora(module: Any) -> bool:
    # By what peft's layers offer: the library is not imported for a network that has none.
    return hasattr(module, "lora_A") and hasattr(module, "get_base_layer")
