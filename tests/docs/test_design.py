"""docs/design.md, CONTRIBUTING.md and the guide draw what the code is made of."""

from __future__ import annotations

import re
import tomllib

from bloodbank import AgentContext, EventEnvelope
from tests.docs.markdown import ROOT, blocks

DESIGN = ROOT / "docs" / "design.md"
GUIDE = ROOT / "claude_skills" / "bloodbank_event_publisher" / "SKILL.md"


def test_layers_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    held = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    drawn = [re.split(r"\s{2,}", line)[0] for line in blocks(DESIGN)[0].text.splitlines()]
    assert drawn == held


def test_the_tests_that_are_named_exist() -> None:
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", (ROOT / "CONTRIBUTING.md").read_text()))
    files = list((ROOT / "tests" / "conformance").glob("test_*.py"))
    found = {name for file in files for name in re.findall(r"^async def (test_\w+)", file.read_text(), re.MULTILINE)}
    assert len(named) > 20
    assert named <= found | {file.name for file in files}


def test_guide_names_every_field_of_the_envelope() -> None:
    guide = GUIDE.read_text()
    fields = [*EventEnvelope.model_fields, *AgentContext.model_fields]
    assert [name for name in fields if f"`{name}`" not in guide] == []


def test_guide_has_the_front_matter_of_a_skill() -> None:
    lines = GUIDE.read_text().splitlines()
    assert lines[0] == lines[3] == "---"
    assert re.fullmatch(r"name: [a-z0-9-]{1,64}", lines[1])
    assert re.fullmatch(r"description: .{50,1024}", lines[2])
    assert "Use when" in lines[2]
