"""What is answered as accepted was on the disk before."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.stage import environment
from tests.servers.process import free_port

ALLOW_SKIP = "BLOODBANK_TEST_ALLOW_SKIP"


@pytest.fixture(autouse=True)
def _can_fail_syncs() -> None:
    if platform.system() == "Linux":
        return
    if os.environ.get(ALLOW_SKIP) == "1":
        pytest.skip(f"failing syncs takes Linux ({ALLOW_SKIP}=1)")
    pytest.fail(f"Failing syncs takes Linux. Set {ALLOW_SKIP}=1 to skip this.", pytrace=False)


@pytest.mark.parametrize(
    ("broker_is_away", "accepted"), [(True, "queued"), (False, "published")], ids=["the outbox", "the embedded log"]
)
def test_an_event_that_the_disk_did_not_sync_is_not_accepted(
    tmp_path: Path, *, broker_is_away: bool, accepted: str
) -> None:
    settings = {"BLOODBANK_DATA_DIR": str(tmp_path)}
    if broker_is_away:
        settings["RABBIT_URL"] = f"amqp://127.0.0.1:{free_port()}/"
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.unsynced"],
        env=environment(settings),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    synced, unsynced = done.stdout.split() or ("", done.stderr)
    assert synced == accepted
    assert unsynced in ("transport_unavailable", "publish_unknown")
