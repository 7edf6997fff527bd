"""A short run of chaos: whatever is killed, frozen, cut off or filled up, nothing accepted is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.disk import NoSmallDisk, SmallDisk
from tests.chaos.stage import ROOT

ALLOW_SKIP = "BLOODBANK_TEST_ALLOW_SKIP"
SEED, SECONDS, RATE = 3, 45, 1500
LIMIT_SECONDS = 560

pytestmark = [pytest.mark.chaos, pytest.mark.rabbit, pytest.mark.redis, pytest.mark.timeout(LIMIT_SECONDS + 30)]


@pytest.fixture(autouse=True)
def _can_be_filled(tmp_path: Path) -> None:
    try:
        with SmallDisk(tmp_path / "probe", megabytes=1):
            return
    except NoSmallDisk as error:
        if os.environ.get(ALLOW_SKIP) == "1":
            pytest.skip(f"{error} ({ALLOW_SKIP}=1)")
        pytest.fail(f"{error}. Set {ALLOW_SKIP}=1 to skip this.", pytrace=False)


def test_nothing_accepted_is_lost_whatever_dies_in_between(tmp_path: Path) -> None:
    # Not measured: processes that are killed write no coverage, and the others are slowed down by it.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    arguments = ["--seed", str(SEED), "--seconds", str(SECONDS), "--rate", str(RATE), "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *arguments],
        env=inherited,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    print(done.stdout)
    if done.returncode:
        pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)
