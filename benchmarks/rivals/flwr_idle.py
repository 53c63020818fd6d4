"""Flower: two sites, five rounds, nothing to train. Runs in Flower's own environment.

    python flwr_idle.py SHAPES.json

``run_simulation`` is the lighter of Flower's two ways: ``flwr run`` starts a SuperLink beside it.
"""

import json
import sys
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

ROUNDS = 5
client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "score": 0.5})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    shapes = json.loads(Path(sys.argv[1]).read_text())
    arrays = ArrayRecord([np.zeros(shape, np.float32) for shape in shapes])
    found = FedAvg().start(grid=grid, initial_arrays=arrays, num_rounds=ROUNDS)
    values = sum(array.numpy().size for array in found.arrays.values())
    print(f"finished {len(found.train_metrics_clientapp)} rounds of {values} values", flush=True)


if __name__ == "__main__":
    run_simulation(server_app=server, client_app=client, num_supernodes=2)
