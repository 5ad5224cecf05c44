"""A worker on a toy search, to be started and killed by tests: FILE SAMPLER TRIALS LOG [hang | patient].

It begins when it reads a line.  With "hang" it runs two trials and hangs in the third.  With "patient" it waits in its
tenth trial until another worker hangs, however slowly that one is scheduled.
"""

import sys
import time
from pathlib import Path

from hyperparameter_search import Search, open_study, work

file, sampler, trials, log = sys.argv[1:5]
runs, hangs = [], Path(f"{log}.hangs")


def objective(trial):
    runs.append(trial.number)
    with Path(log).open("a") as lines:
        lines.write(f"{trial.number}\n")
    if "patient" in sys.argv and len(runs) == 10:
        while not hangs.exists():
            time.sleep(0.01)
    if "hang" in sys.argv and len(runs) == 3:
        hangs.touch()
        print(trial.number, flush=True)
        time.sleep(600)
    return abs(trial.params["learning_rate"] - 1e-3) + trial.params["batch_size"] / 100


print("ready", flush=True)
sys.stdin.readline()
search = Search(Path(file), {"settings": {"name": "toy"}}, sampler=sampler)
work(search, open_study(search, int(trials)), objective, progress=False)
