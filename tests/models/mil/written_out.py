"""The heads written out in NumPy, instance by instance where that is how the paper puts it; float64, no dropout."""

from __future__ import annotations

import math

import numpy as np
from torch import nn

Weights = dict[str, np.ndarray]


def weights_of(head: nn.Module) -> Weights:
    return {name: tensor.detach().double().numpy() for name, tensor in head.state_dict().items()}


def softmax(x: np.ndarray, axis: int = 0) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def embed(w: Weights, bag: np.ndarray) -> np.ndarray:
    rows = []
    for x in bag:
        h, layer = x, 0
        while f"embedding.{3 * layer}.weight" in w:
            h = np.maximum(w[f"embedding.{3 * layer}.weight"] @ h + w[f"embedding.{3 * layer}.bias"], 0)
            layer += 1
        rows.append(h)
    return np.array(rows)


def attention(w: Weights, hs: np.ndarray) -> np.ndarray:
    scores = []
    for h in hs:
        a = np.tanh(w["attention.v.weight"] @ h + w["attention.v.bias"])
        if "attention.u.weight" in w:
            a = a / (1 + np.exp(-(w["attention.u.weight"] @ h + w["attention.u.bias"])))
        scores.append((w["attention.w.weight"] @ a + w["attention.w.bias"])[0])
    return softmax(np.array(scores))


def attention_pooling(w: Weights, bag: np.ndarray, classifier: str = "classifier") -> tuple[np.ndarray, np.ndarray]:
    hs = embed(w, bag)
    a = attention(w, hs)
    z = sum(a_i * h for a_i, h in zip(a, hs, strict=True))
    return w[f"{classifier}.weight"] @ z + w[f"{classifier}.bias"], a


def svm(scores: np.ndarray, target: int) -> float:
    """Smooth top-1 SVM of one instance, margin and temperature 1."""
    return math.log(sum(math.exp((j != target) + s - scores[target]) for j, s in enumerate(scores)))


def cross_entropy(scores: np.ndarray, target: int) -> float:
    return -math.log(softmax(scores)[target])


def clam_instances(w: Weights, bag: np.ndarray, label: int, *, taken: int, subtyping: bool, loss) -> float:
    hs = embed(w, bag)
    order = np.argsort(attention(w, hs))
    bottom, top = order[:taken], order[::-1][:taken]
    classes = w["classifier.bag.weight"].shape[0]
    losses = []
    for k in range(classes):
        weight, bias = w[f"classifier.instances.{k}.weight"], w[f"classifier.instances.{k}.bias"]
        if k == label:
            pairs = [(i, 1) for i in top] + [(i, 0) for i in bottom]
        elif subtyping:
            pairs = [(i, 0) for i in top]
        else:
            continue
        losses.append(np.mean([loss(weight @ hs[i] + bias, y) for i, y in pairs]))
    return float(np.mean(losses))


def dsmil(w: Weights, bag: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both streams' logits and the attention ``(N, C)``."""
    hs = embed(w, bag)
    scores = np.array([w["classifier.instance.weight"] @ h + w["classifier.instance.bias"] for h in hs])
    qs = []
    for h in hs:
        q = np.maximum(w["attention.0.weight"] @ h + w["attention.0.bias"], 0)
        qs.append(np.tanh(w["attention.2.weight"] @ q + w["attention.2.bias"]))
    classes, pooled, weights = scores.shape[1], [], []
    for c in range(classes):
        m = int(np.argmax(scores[:, c]))
        u = softmax(np.array([q @ qs[m] / math.sqrt(len(q)) for q in qs]))
        weights.append(u)
        pooled.append(sum(u_i * h for u_i, h in zip(u, hs, strict=True)))
    full = w["classifier.bag.weight"].reshape(classes, classes, -1)  # as the convolution over the C pooled vectors
    bag_logits = np.array([sum(full[o, c] @ pooled[c] for c in range(classes)) for o in range(classes)])
    return scores.max(0), bag_logits + w["classifier.bag.bias"], np.array(weights).T


def layer_norm(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def segments(x: np.ndarray, m: int) -> np.ndarray:
    """Means of m segments as equal as may be, after PyTorch's documentation of adaptive pooling."""
    n = len(x)
    return np.array([x[(i * n) // m : -(-(i + 1) * n // m)].mean(0) for i in range(m)])


def self_attention(
    w: Weights, name: str, x: np.ndarray, heads: int, landmarks: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Exact where ``landmarks`` is None; else by Nyström with NumPy's pseudo-inverse. Also the first token's row."""
    n, width = x.shape
    each = width // heads
    qkv = x @ w[f"{name}.qkv.weight"].T
    columns, rows = [], []
    for h in range(heads):
        q, k, v = (qkv[:, part * width + h * each : part * width + (h + 1) * each] for part in range(3))
        q = q / math.sqrt(each)
        if landmarks is None:
            a = softmax(q @ k.T, 1)
        else:
            q_few, k_few = segments(q, landmarks), segments(k, landmarks)
            a = softmax(q @ k_few.T, 1) @ np.linalg.pinv(softmax(q_few @ k_few.T, 1)) @ softmax(q_few @ k.T, 1)
        mixed = a @ v
        kernel = w[f"{name}.residual.weight"][h, 0]
        for t in range(n):
            for offset, weight in enumerate(kernel, start=-16):
                if 0 <= t + offset < n:
                    mixed[t] += weight * v[t + offset]
        columns.append(mixed)
        rows.append(a[0])
    out = np.concatenate(columns, 1) @ w[f"{name}.out.weight"].T + w[f"{name}.out.bias"]
    return out, np.mean(rows, 0)


def positions(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    side = math.isqrt(len(x) - 1)
    plane = x[1:].reshape(side, side, -1)
    out = plane.copy()
    for layer, size in (("wide", 7), ("middle", 5), ("narrow", 3)):
        kernel, reach = w[f"{name}.{layer}.weight"][:, 0], size // 2
        out += w[f"{name}.{layer}.bias"]
        for r in range(side):
            for c in range(side):
                for dr in range(-reach, reach + 1):
                    for dc in range(-reach, reach + 1):
                        if 0 <= r + dr < side and 0 <= c + dc < side:
                            out[r, c] += kernel[:, dr + reach, dc + reach] * plane[r + dr, c + dc]
    return np.concatenate([x[:1], out.reshape(side * side, -1)])


def transmil(w: Weights, bag: np.ndarray, heads: int, landmarks: int | None) -> tuple[np.ndarray, np.ndarray]:
    hs = embed(w, bag)
    side = math.ceil(math.sqrt(len(hs)))
    filled = list(hs)
    for i in range(side * side - len(hs)):
        filled.append(hs[i])
    x = np.concatenate([w["attention.token"], np.array(filled)])
    limit = landmarks if landmarks is not None and len(x) > landmarks else None
    x = x + self_attention(w, "attention.layer1", layer_norm(w, "attention.norm1", x), heads, limit)[0]
    x = positions(w, "attention.positions", x)
    out, row = self_attention(w, "attention.layer2", layer_norm(w, "attention.norm2", x), heads, limit)
    token = layer_norm(w, "attention.norm", x + out)[0]
    row = np.maximum(row[1:], 1e-12)
    shown = row[: len(hs)].copy()
    for i, extra in enumerate(row[len(hs) :]):
        shown[i] += extra
    return w["classifier.weight"] @ token + w["classifier.bias"], shown / shown.sum()
