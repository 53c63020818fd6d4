"""NVFlare: two sites, five rounds, nothing to train. Runs in NVFlare's own environment.

python nvflare_idle.py INITIAL.npy
"""

import json
import sys
from pathlib import Path

import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe import SimEnv

ROUNDS = 5

if __name__ == "__main__":
    initial = Path(sys.argv[1]).resolve()
    recipe = NumpyFedAvgRecipe(
        name="idle",
        initial_ckpt=str(initial),
        min_clients=2,
        num_rounds=ROUNDS,
        train_script=str(Path(__file__).with_name("nvflare_site.py")),
    )
    finished = recipe.execute(SimEnv(num_clients=2, workspace_root=str(Path("workspace").resolve())))
    folder = Path(finished.get_result())
    lines = (folder / "server/simulate_job/metrics/round_metrics.jsonl").read_text().splitlines()
    rounds = {json.loads(line)["round"] for line in lines}
    values = np.load(folder / "server/simulate_job/models/server.npy").size
    print(f"finished {len(rounds)} rounds of {values} values", flush=True)
