"""Jobs that are killed at random moments end as if nothing had happened.  FAULTS=50 tries so many moments in all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_at_random.py")
MOMENTS = int(os.environ.get("FAULTS", "12"))
SHARES = {"training": 0.4, "preparing": 0.2, "searching": 0.2, "caching": 0.2}


@pytest.mark.parametrize("job", SHARES)
def test_a_job_killed_at_random_moments_ends_as_one_never_killed(job):
    moments = round(SHARES[job] * MOMENTS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), job, str(moments), "0"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] == moments
    assert found["differing"] == []
