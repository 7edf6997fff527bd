"""Which model belongs to which type: the decorator, a registry's own, plugins, and unknown types."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from bloodbank.errors import InvalidEvent, UnknownEventType
from bloodbank.events import EventRegistry, LLMPrompt, event, load_plugins, registry


class Paid(BaseModel):
    cents: int = Field(ge=0)


class Other(BaseModel):
    pass


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is forgotten after it."""
    monkeypatch.setattr(registry, "_declared", dict(registry._declared))


def test_a_declared_type_is_seen_by_every_registry() -> None:
    before = EventRegistry()
    event("invoice.paid")(Paid)
    assert before.validate("invoice.paid", {"cents": 5}) == Paid(cents=5)
    assert "invoice.paid" in list(EventRegistry())


def test_the_decorator_returns_the_class() -> None:
    assert event("invoice.paid")(Paid) is Paid


def test_a_type_of_a_registry_is_seen_by_it_alone() -> None:
    own, other = EventRegistry(), EventRegistry()
    own.register("invoice.paid", Paid)
    assert own.model_for("invoice.paid") is Paid
    assert other.model_for("invoice.paid") is None


def test_types_are_listed_in_order_and_once() -> None:
    own = EventRegistry()
    own.register("a.first", Paid)
    own.register("llm.prompt", LLMPrompt)
    names = list(own)
    assert names == sorted(set(names))
    assert names[0] == "a.first"


def test_a_second_model_for_a_type_is_refused() -> None:
    event("invoice.paid")(Paid)
    with pytest.raises(ValueError, match="Paid already"):
        event("invoice.paid")(Other)
    with pytest.raises(ValueError, match="Paid already"):
        EventRegistry().register("invoice.paid", Other)


def test_the_same_model_may_be_registered_again() -> None:
    event("invoice.paid")(event("invoice.paid")(Paid))
    EventRegistry().register("invoice.paid", Paid)


def test_a_payload_that_is_the_model_already_stays_as_it_is() -> None:
    payload = LLMPrompt(provider="x", prompt="y")
    assert EventRegistry().validate("llm.prompt", payload) is payload


def test_another_model_with_the_same_fields_is_taken() -> None:
    class Prompt(BaseModel):
        provider: str = "x"
        prompt: str = "y"

    assert EventRegistry().validate("llm.prompt", Prompt()) == LLMPrompt(provider="x", prompt="y")


def test_the_path_of_a_problem_begins_at_the_payload() -> None:
    event("invoice.paid")(Paid)
    with pytest.raises(InvalidEvent) as caught:
        EventRegistry().validate("invoice.paid", {"cents": -1})
    assert caught.value.problems == (("payload.cents", "Input should be greater than or equal to 0"),)


def test_unknown_types_are_accepted_with_any_object() -> None:
    payload = {"any": ["thing"]}
    assert EventRegistry().validate("never.heard", payload) is payload
    assert EventRegistry().validate("never.heard", Other()) == Other()


@pytest.mark.parametrize("payload", [None, [], "text", 1])
def test_an_unknown_type_needs_an_object_too(payload: object) -> None:
    with pytest.raises(InvalidEvent, match="must be a JSON object") as caught:
        EventRegistry().validate("never.heard", payload)
    assert [path for path, _ in caught.value.problems] == ["payload"]


def test_unknown_types_are_refused_when_told_so() -> None:
    strict = EventRegistry(accept_unknown=False)
    with pytest.raises(UnknownEventType, match="BLOODBANK_UNKNOWN_EVENT_TYPES"):
        strict.validate("never.heard", {})
    assert strict.validate("llm.prompt", {"provider": "x", "prompt": "y"})


def test_a_payload_that_is_wrong_everywhere_is_told_in_few_words() -> None:
    with pytest.raises(InvalidEvent) as caught:
        EventRegistry().validate("llm.prompt", {"provider": "x", "prompt": "y", "tags": [1] * 100_000})
    assert len(caught.value.problems) <= registry.MOST_PROBLEMS
    assert len(str(caught.value)) < 1000


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages with one plugin that works and one that does not."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bb_billing_events.py").write_text(
        "from pydantic import BaseModel\n"
        "from bloodbank.events import event\n"
        "@event('billing.closed')\n"
        "class Closed(BaseModel):\n"
        "    month: int\n"
    )
    (tmp_path / "bb_broken_events.py").write_text("raise RuntimeError('broken on purpose')\n")
    info = tmp_path / "bb_billing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bb-billing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[bloodbank.events]\nbroken = bb_broken_events\nbilling = bb_billing_events\n"
    )
    yield tmp_path
    sys.modules.pop("bb_billing_events", None)


def test_a_plugin_registers_its_types_and_a_broken_one_stops_nothing(
    plugins: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert load_plugins() == ["billing"]
    assert "broken could not be loaded" in caplog.text
    assert "broken on purpose" in caplog.text
    with pytest.raises(InvalidEvent, match=r"payload\.month"):
        EventRegistry().validate("billing.closed", {})
