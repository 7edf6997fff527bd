"""The public API: chosen, complete, documented."""

from __future__ import annotations

import importlib
import inspect
import types

import pytest

import bloodbank
from bloodbank import events, testing
from tests.docs.generated import PUBLIC_NAMES, REGENERATE, names_table, section
from tests.docs.markdown import documents


def _order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions; each by name."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def _imported(module: types.ModuleType) -> set[str]:
    if module is bloodbank:  # imports when asked, and what is there by now says nothing
        return set(bloodbank._HOME)
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


@pytest.mark.parametrize("module", [bloodbank, events], ids=lambda module: module.__name__)
def test_all_lists_what_is_imported_and_in_order(module: types.ModuleType) -> None:
    listed: list[str] = module.__all__
    assert listed == sorted(set(listed), key=_order)
    assert set(listed) == _imported(module)


@pytest.mark.parametrize("name", bloodbank.__all__)
def test_public_name_comes_from_where_it_is_defined(name: str) -> None:
    namespace: dict[str, object] = {}
    exec(f"from bloodbank import {name}", namespace)
    value = namespace[name]
    defined_in = getattr(value, "__module__", f"bloodbank.{bloodbank._HOME[name]}")
    assert defined_in == f"bloodbank.{bloodbank._HOME[name]}"


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = bloodbank.nothing_of_the_kind
    assert set(bloodbank.__all__) <= set(dir(bloodbank))


@pytest.mark.parametrize("name", [name for name in bloodbank.__all__ if not name.isupper()])
def test_public_name_and_its_methods_have_docstrings(name: str) -> None:
    value = getattr(bloodbank, name)
    own = vars(value) if inspect.isclass(value) else {}
    methods = {
        member: attribute
        for member, attribute in own.items()
        if not member.startswith("_") and isinstance(attribute, types.FunctionType | property | classmethod)
    }
    missing = [member for member, attribute in methods.items() if not (attribute.__doc__ or "").strip()]
    assert (vars(value) if inspect.isclass(value) else {"__doc__": value.__doc__}).get("__doc__")
    assert missing == []


def test_table_of_public_names_is_that_of_the_code() -> None:
    assert section(PUBLIC_NAMES, "names") == names_table(), REGENERATE
    assert section(PUBLIC_NAMES, "names for tests") == names_table(testing), REGENERATE


def test_payload_models_are_named_in_the_documents() -> None:
    text = "\n".join(path.read_text() for path in documents())
    types_without_mention = [event_type for event_type in events.EventRegistry() if f"`{event_type}`" not in text]
    assert types_without_mention == []


@pytest.mark.parametrize("name", ["config", "correlation_tracker", "events", "rabbit"])
def test_paths_of_version_2_export_the_same_objects(name: str) -> None:
    module = importlib.import_module(f"event_producers.{name}")
    for exported in module.__all__:
        value = getattr(module, exported)
        assert value.__module__.startswith("bloodbank."), exported
        assert getattr(importlib.import_module(value.__module__), exported) is value
