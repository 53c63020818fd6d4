"""Flower's aggregation of models that are already on the server. Runs in Flower's own environment.

    python flwr_aggregate.py SHAPES.json MODELS

Reads ``fedavg`` or ``fedmedian`` from stdin, one a line, and answers each with the seconds that
it took, of wall and of processor time.
"""

import json
import logging
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common import Metadata
from flwr.serverapp.strategy import FedAvg, FedMedian

STRATEGIES = {"fedavg": FedAvg, "fedmedian": FedMedian}


def reply(node: int, arrays: ArrayRecord) -> Message:
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 100 + node})})
    metadata = Metadata(1, f"m{node}", node, 1, "", "g", time.time(), 3600.0, "train")
    return Message(metadata=metadata, content=content)


def main() -> None:
    logging.disable(logging.CRITICAL)
    shapes = json.loads(Path(sys.argv[1]).read_text())
    rng = np.random.default_rng(0)
    models = [
        ArrayRecord([rng.standard_normal(shape, dtype=np.float32) for shape in shapes]) for _ in range(int(sys.argv[2]))
    ]
    print("ready", flush=True)
    for line in sys.stdin:
        # FedMedian empties the records that it is given: hand out new ones with the same arrays.
        replies = [reply(i + 1, ArrayRecord(dict(arrays.items()))) for i, arrays in enumerate(models)]
        strategy = STRATEGIES[line.strip()]()
        start, working = time.perf_counter(), time.process_time()
        arrays, _ = strategy.aggregate_train(1, replies)
        seconds, cpu = time.perf_counter() - start, time.process_time() - working
        if arrays is None or len(arrays) != len(shapes):
            raise SystemExit("nothing was aggregated")
        print(seconds, cpu, flush=True)


if __name__ == "__main__":
    main()
