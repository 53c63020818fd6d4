"""How the study was done: a paragraph for a paper, what to cite, the settings, and how to do it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from morphfed.reporting.blocks import (
    Block,
    Bullets,
    Cell,
    Code,
    Details,
    Facts,
    Heading,
    Page,
    Section,
    Table,
    Text,
)
from morphfed.reporting.results import Results
from morphfed.reporting.sections.cost import arm_cost, coarse_images, training_images, transfers
from morphfed.reporting.tasks import kind_of
from morphfed.reporting.text import count, counted, duration, finite, listed, metric_name

_PRR_2021 = (
    "Chen Z et al. Personalized retrogress-resilient framework for real-world medical federated learning. MICCAI 2021."
)
_PRR_2022 = (
    "Chen Z et al. Personalized retrogress-resilient federated learning toward imbalanced medical data. "
    "IEEE Trans Med Imaging 2022."
)
_HISTOFL = (
    "Lu MY et al. Federated learning for computational pathology on gigapixel whole slide images. Med Image Anal 2022; "
    "76:102298."
)
_WORKS = {
    "fedavg": "McMahan B et al. Communication-efficient learning of deep networks from decentralized data. "
    "AISTATS 2017.",
    "fedprox": "Li T et al. Federated optimization in heterogeneous networks. MLSys 2020.",
    "fedmedian": "Yin D et al. Byzantine-robust distributed learning: towards optimal statistical rates. ICML 2018.",
    "fedopt": "Reddi S et al. Adaptive federated optimization. ICLR 2021.",
    "fedbn": "Li X et al. FedBN: federated learning on non-IID features via local batch normalization. ICLR 2021.",
    "scaffold": "Karimireddy SP et al. SCAFFOLD: stochastic controlled averaging for federated learning. ICML 2020.",
    "ditto": "Li T et al. Ditto: fair and robust federated learning through personalization. ICML 2021.",
    "fedper": "Arivazhagan MG et al. Federated learning with personalization layers. arXiv:1912.00818, 2019.",
    "fedrep": "Collins L et al. Exploiting shared representations for personalized federated learning. ICML 2021.",
    "moon": "Li Q et al. Model-contrastive federated learning. CVPR 2021.",
    "pfa": f"{_PRR_2021} {_PRR_2022}",
    "det": f"{_PRR_2021} {_PRR_2022}",
    "prr": _PRR_2022,
    "pfa-cpa": _PRR_2022,
    "hypernetwork": "Shamsian A et al. Personalized federated learning using hypernetworks. ICML 2021.",
    "histofl": _HISTOFL,
    "as_published": _HISTOFL,
    "calibrated": "Abadi M et al. Deep learning with differential privacy. CCS 2016. McMahan HB et al. Learning "
    "differentially private recurrent language models. ICLR 2018.",
    "prr-2021": _PRR_2021,
    "secure": "Bonawitz K et al. Practical secure aggregation for privacy-preserving machine learning. ACM CCS 2017.",
    "qfedavg": "Li T et al. Fair resource allocation in federated learning. ICLR 2020.",
    "retrogress": "Chen Z et al. Personalized retrogress-resilient framework for real-world medical federated "
    "learning. MICCAI 2021.",
    "error_feedback": "Karimireddy SP et al. Error feedback fixes SignSGD and other gradient compression schemes. "
    "ICML 2019.",
    "int8": "Jacob B et al. Quantization and training of neural networks for efficient integer-arithmetic-only "
    "inference. CVPR 2018.",
    "blocktopk": "Stich SU et al. Sparsified SGD with memory. NeurIPS 2018.",
    "topk": "Stich SU et al. Sparsified SGD with memory. NeurIPS 2018.",
    "pbc": "Acevedo A et al. A dataset of microscopic peripheral blood cell images. Data in Brief 2020; 30:105474.",
    "segmentation_wbc": "Zheng X et al. Fast and robust segmentation of white blood cell images by "
    "self-supervised learning. Micron 2018; 107:55–71.",
    "class_balanced": "Cui Y et al. Class-balanced loss based on effective number of samples. CVPR 2019.",
    "logit_adjusted": "Menon AK et al. Long-tail learning via logit adjustment. ICLR 2021.",
    "parent": "Cour T, Sapp B, Taskar B. Learning from partial labels. J Mach Learn Res 2011; 12:1501–1536.",
    "seesaw": "Wang J et al. Seesaw loss for long-tailed instance segmentation. CVPR 2021.",
    "focal": "Lin TY et al. Focal loss for dense object detection. ICCV 2017.",
}


def methods(page: Page) -> Section:
    """Methods paragraph, citations, configuration, environment, command."""
    r = page.results
    where = "the folder above folds" if _is_fold(r) else "the folder of this report"
    machine = "Software, and the coordinator's machine" if r.over_network else "Software and machine"
    blocks: list[Block] = [
        Heading("Methods, as a paragraph for a paper"),
        Text(paragraph(r)),
        Heading("What to cite"),
        Bullets(citations(r)),
        Heading("How to do it again"),
        Text(_again(r, where)),
        Code(f"{_command(r)}\nmorphfed report RUN     # this page again, from results.json"),
        Facts(_run_facts(r)),
        Heading(machine),
        _environment(r),
        Details("The complete configuration", _settings(r)),
    ]
    return Section("methods", "Methods and reproduction", blocks)


def _is_fold(r: Results) -> bool:
    return bool(r.study.get("fold_of"))


def _again(r: Results, where: str) -> str:
    if r.over_network:
        return (
            "The study file is study.toml in the federation's folder. With the same data at each site, the same "
            "versions and processors the same numbers result; on one machine that holds all images, morphfed run "
            "study.toml gives them too, with train.precision as it is below."
        )
    return f"The study file is study.toml in {where}. With the same data, versions and machine the same numbers result."


def _command(r: Results) -> str:
    """The command that makes these results; of a fold, the ordinary study that it is."""
    if r.over_network:
        return "morphfed coordinator start FED     # and `morphfed site join` at each site"
    alone = f" holdout=named 'held_out=[\"{r.held_out[0]}\"]'" if _is_fold(r) else ""
    return f"morphfed run study.toml{alone}"


def paragraph(r: Results) -> str:
    """What a paper's methods section has to say, from the results and their configuration alone."""
    parts = [_data_sentence(r), _model_sentence(r), _training_sentence(r), _judging_sentence(r)]
    return " ".join(p for p in parts if p)


def _data_sentence(r: Results) -> str:
    trained = sum(training_images(r, s) for s in r.training)
    text = f"We trained {kind_of(r).trained(r)} on images of {counted(len(r.training), 'site')} ({listed(r.training)}"
    text += f"; {count(trained)} training images in all)" if trained and not r.folds else ")"
    if r.folds:
        text += (
            ", leaving out one site at a time: the others trained, and all images of the site that was left out "
            f"were for testing only ({counted(len(r.folds), 'fold')})"
        )
    elif r.held_out:
        text += f" and kept {counted(len(r.held_out), 'site')} ({listed(r.held_out)}) for testing only"
    text += "."
    split = _table(r.config, "data", "split")
    if split:
        shares = listed(
            f"{100 * split[k]:.0f} % {k}" for k in ("train", "validation", "test") if finite(split.get(k)) is not None
        )
        text += f" Images of a training site were {_split_by(r, split, shares)}."
    field, size = (
        finite(_table(r.config, "data").get("field_um")),
        finite(_table(r.config, "data").get("image_size")),
    )
    if r.task in ("mil", "survival"):
        alike = " Features were standardised at each site by its own training instances."
        text += alike if _table(r.config, "data").get("standardise") == "site" else ""
    elif size is not None:
        crop = (
            f"A square field of {field:g} µm was cut out where the physical scale was known or could be estimated, "
            "and pictures"
            if field
            else "Pictures"
        )
        text += f" {crop} were resized to {size:.0f} × {size:.0f} pixels."
    return text


def _model_sentence(r: Results) -> str:
    model = _table(r.config, "model")
    if not model.get("name"):
        return ""
    weights = {"none": "from random weights", "pretrained": "from published pretrained weights"}
    start = weights.get(str(model.get("weights")), "from weights given as a file")
    parameters = next((u.get("parameters") for u in r.units if u.get("parameters")), None)
    size = f", {count(parameters)} parameters" if parameters else ""
    norm = {"group": " with group normalisation", "local": " with site-local normalisation"}.get(
        str(model.get("norm")), ""
    )
    return f"The network was {model['name']}{norm} ({start}{size})."


def _training_sentence(r: Results) -> str:
    arms = listed(m.title for m in r.arms)
    text = f"We compared {arms}, each with {counted(len(r.seeds), 'random seed')}"
    rounds = sorted({int(u["rounds"]) for u in r.units if u.get("rounds")})
    text += f", over {listed(map(str, rounds))} rounds." if rounds else "."
    train = _table(r.config, "train")
    if train.get("optimizer"):
        said = [f"{str(train['optimizer']).upper() if train['optimizer'] == 'sgd' else 'AdamW'}"]
        said += [f"learning rate {train['lr']:g}"] if finite(train.get("lr")) is not None else []
        said += [f"{train['schedule']} schedule"] if train.get("schedule") else []
        said += [f"weight decay {train['weight_decay']:g}"] if finite(train.get("weight_decay")) is not None else []
        said += [f"batches of {train['batch_size']}"] if train.get("batch_size") else []
        said += _work_of_a_round(train)
        text += f" Every site trained with {', '.join(said)}."
        text += kind_of(r).loss(r) + _coarse_sentence(r)
    text += _secure_sentence(r)
    if any(u.get("selected") == "best" for u in r.units):
        text += " The round with the best mean validation score over the training sites was tested"
        text += "; held-out sites took no part in any choice." if r.held_out else "."
    return text


def _secure_sentence(r: Results) -> str:
    """That the coordinator saw sums only, of the arms where it did."""
    found = {m: told for m in r.arms for u in r.units_of(m) if (told := u.get("secure"))}
    if not found:
        return ""
    moved = [m for m in r.arms if any(u.get("bytes_up") for u in r.units_of(m))]
    of = "" if len(found) == len(moved) else f" of {listed(m.title for m in found)}"
    told = next(iter(found.values()))
    return (
        f" Uploads{of} were combined by secure aggregation (any {told['threshold']} of {told['sites']} sites can open "
        f"a sum, fewer cannot), as integers of {told['bits']} bits under masks: the coordinator saw sums over sites "
        "only, of the weights, the numbers of images and the losses."
    )


def _work_of_a_round(train: Mapping[str, Any]) -> list[str]:
    if train.get("local_steps"):
        return [f"{counted(int(train['local_steps']), 'step')} a round"]
    epochs = train.get("local_epochs")
    return [f"{counted(int(epochs), 'local epoch')} a round"] if epochs else []


def _coarse_sentence(r: Results) -> str:
    n = sum(coarse_images(r, s) for s in r.training)
    if not n:
        return ""
    return (
        f" {count(n)} training images carried a coarser label and trained by the summed probability of the classes "
        "below it; they were in no class count and in no test."
    )


def _split_by(r: Results, split: Mapping[str, Any], shares: str) -> str:
    """How the parts came about, as the rest of a sentence."""
    if split.get("leaky_published"):
        return "split as published, image by image, without regard to what lies on both sides"
    units = {r.patient_unit(s) for s in r.training}
    if len(units) == 1:
        only = units.pop()
        by = f"{only}, as no patient ids were known" if only in ("image", "bag") else only
    else:
        owners = [u for u in ("patient", "lesion") if u in units]
        by = ", else by ".join(f"{u} where {u}s were known" for u in owners) + (
            ", else by image" if units & {"image", "bag"} else ""
        )
    return f"split by {by} ({shares})"


def _judging_sentence(r: Results) -> str:
    units = {r.patient_unit(s) for s in r.all_sites}
    unit = ", else ".join(f"{u}s where known" for u in ("patient", "lesion") if u in units) + (
        ", else images" if units & {"image", "bag"} else ""
    )
    unit = unit if len(units) > 1 else f"{units.pop()}s"
    resamples = {c.resamples for c in r.comparisons if c.resamples} or {
        finite(_table(r.config, "evaluation").get("resamples"))
    } - {None}
    many = f"{count(max(v for v in resamples if v))} " if resamples else ""
    means = " Means over sites that were left out weigh every site alike." if r.folds else ""
    return (
        f"The primary measure was {metric_name(r.metric)}{kind_of(r).pooled}, with 95 % "
        f"intervals from a bootstrap ({many}resamples of {unit}) of the mean over seeds. Arms were compared by the "
        f"paired bootstrap on the same test images with Holm's correction.{means}"
        + (
            " Probabilities were calibrated by one temperature a model, fitted over the validation parts of its "
            "training sites from summed losses."
            if any(u.get("calibration") for u in r.units)
            else ""
        )
    )


def citations(r: Results) -> list[str]:
    """Works behind what this study used."""
    used = {str(u.get("algorithm")) for u in r.units} | {m.arm for m in r.arms}
    used |= {part for s in r.sites.values() for part in str(s.get("source")).split("+")}
    used |= {"retrogress"} if r.raw.get("retrogress") else set()
    used |= {"secure" for u in r.units if u.get("secure")}
    used |= {str(noise.get("kind")) for u in r.units if (noise := u.get("noise"))}
    loss = _table(r.config, "train").get("loss")
    if isinstance(loss, Mapping):
        used |= {str(v) for v in loss.values() if isinstance(v, str)}
    used.add(str(_table(r.config, "data").get("coarse")))
    for model in r.arms:
        upload, _ = transfers(r, model.arm)
        if (arm_cost(r, model).up or 0) > 0 and upload.get("code", "fp32") != "fp32":
            used |= {str(upload["code"])} | ({"error_feedback"} if upload.get("error_feedback") else set())
    return [*dict.fromkeys(work for key, work in _WORKS.items() if key in used), *kind_of(r).works]


def _run_facts(r: Results) -> list[tuple[str, str]]:
    facts = [("Study", r.name), ("Seeds", ", ".join(map(str, r.seeds)))]
    if r.study.get("created"):
        facts.append(("Made", str(r.study["created"])))
    if finite(r.study.get("seconds")) is not None:
        facts.append(("Time for the whole run", duration(finite(r.study["seconds"]))))
    return facts


def _environment(r: Results) -> Block:
    if not r.environment:
        return Text("No environment was recorded.")
    rows = [[Cell(str(k)), Cell("none" if v is None else str(v), words=True)] for k, v in r.environment.items()]
    return Table("environment", "Software versions and machine.", [Cell("What"), Cell("Value", words=True)], rows)


def _settings(r: Results) -> list[Block]:
    """The study's settings, then what each arm has of its own."""
    if not r.config:
        return [Text("No configuration was recorded.")]
    shared = {k: v for k, v in r.config.items() if k != "arms"}
    head = [Cell("Key"), Cell("Value", words=True)]
    rows = [[Cell(k), Cell(v, words=True)] for k, v in _flat(shared)]
    blocks: list[Block] = [Table("configuration", "Every setting of the study, resolved.", head, rows)]
    own = [
        [Cell(str(name)), Cell(key, words=True), Cell(value, words=True)]
        for name, arm in (_table(r.config, "arms")).items()
        for key, value in _flat(arm if isinstance(arm, Mapping) else {})
        if (key, value) not in _flat(shared)
    ]
    if own:
        head = [Cell("Arm"), Cell("Key", words=True), Cell("Value", words=True)]
        blocks.append(Table("arms", "Settings of single arms, where they are not the study's.", head, own))
    return blocks


def _flat(values: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            found += _flat(value, name)
        else:
            found.append((name, json.dumps(value, ensure_ascii=False)))
    return found


def _table(config: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}
