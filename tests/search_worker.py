"""A worker on a toy search, to be started or killed by tests: STORAGE SAMPLER TRIALS LOG [TRIAL TO HANG IN]."""

import sys
import time
from pathlib import Path

from hyperparameter_search import SPACES, open_study, work

storage, sampler, trials, log = sys.argv[1:5]
hang_in = int(sys.argv[5]) if len(sys.argv) > 5 else None


def objective(trial):
    with Path(log).open("a") as file:
        file.write(f"{trial.number}\n")
    if trial.number == hang_in:
        print("hanging", flush=True)
        time.sleep(600)
    time.sleep(0.02)
    return abs(trial.params["learning_rate"] - 1e-3) + trial.params["batch_size"] / 100


space = SPACES["report"]
work(open_study(storage, {"settings": {"name": "toy"}}, space, int(trials), sampler), storage, objective, space)
