"""Every program in examples/ runs as its page says, and prints what it did and the lineage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.conftest import environment
from tests.docs.markdown import ROOT, links

EXAMPLES = ROOT / "examples"
PRINTED = {
    "rag_ingester.py": """\
3 chunks are indexed. The answer: The parser ships on Friday / Grace writes the notes
Why this answer?
  rag.document.added
  rag.chunk.made   because of rag.document.added
  rag.chunk.made   because of rag.document.added
  rag.question.asked
  rag.answer.given   because of rag.chunk.made, rag.chunk.made, rag.question.asked
""",
    "agent_chain.py": """\
Filed: Done: 1. Read. 2. Write about the release
drafts/41.md is by archivist. Why does it exist?
  llm.prompt
  llm.response   because of llm.prompt
  draft.written   because of llm.response
  artifact.created   because of draft.written
""",
    "fan_in.py": """\
The minutes: We ship on Friday. Grace writes the notes.
What are they made of?
  meeting.recording.ready
  meeting.recording.ready
  meeting.transcript.ready   because of meeting.recording.ready
  meeting.transcript.ready   because of meeting.recording.ready
  meeting.minutes.written   because of meeting.transcript.ready, meeting.transcript.ready
""",
    "retrying_consumer.py": """\
notes.md: attempt 1 of 3
notes.md: attempt 2 of 3
notes.md: attempt 3 of 3
secret.txt: attempt 1 of 3
Set aside after 1 attempt: Refused: not allowed
What did the refused upload lead to?
  file.upload.wanted
  file.upload.failed   because of file.upload.wanted
""",
}


@pytest.mark.parametrize("name", PRINTED)
def test_example_prints_what_it_did_and_the_lineage(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == PRINTED[name]


def test_every_example_is_run_and_listed() -> None:
    programs = {path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text()}
    assert programs == set(PRINTED) == set(links(EXAMPLES / "README.md"))
