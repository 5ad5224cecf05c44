"""Jobs that are killed at random moments end as if nothing had happened.  FAULTS: at how many moments, in all."""

import json
import os
import subprocess
import sys

import pytest

from data.files import CODE

MOMENTS = int(os.environ.get("FAULTS", "50"))
SHARES = {"training": 0.4, "preparing": 0.2, "searching": 0.2, "caching": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize("job", SHARES)
def test_a_job_killed_at_random_moments_ends_as_one_never_killed(job):
    moments = round(SHARES[job] * MOMENTS)
    command = [sys.executable, "-m", "tests.faults.kill_at_random", job, str(moments), "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=CODE, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] >= moments and found["differing"] == []
