"""A process that trains, explains and inverts again and again does not grow."""

import os
from statistics import median

import pytest

from benchmarks.soak import memory_mib, one_round

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "24"))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux tells what a process holds")
def test_a_process_that_works_again_and_again_does_not_grow():
    memory, files = [], []
    for _ in range(ROUNDS):
        one_round()
        memory.append(memory_mib())
        files.append(len(os.listdir("/proc/self/fd")))
    half = ROUNDS // 2  # the first rounds fill caches
    assert median(memory[half:]) - median(memory[2:half]) < 20  # MiB; a model that is not freed has 16 in each round
    assert max(files[half:]) <= max(files[:half])
