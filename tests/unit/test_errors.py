"""The error tree: what the docstring draws is what there is."""

from __future__ import annotations

import builtins
import re

from bloodbank import errors
from bloodbank.errors import BloodbankError

LINE = re.compile(r"^    (?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: {2,}.*?)?(?:\((?P<builtin>\w+)\))?$")


def all_errors() -> dict[str, type[BloodbankError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BloodbankError)
    }


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """Return {class: (parent, built-in beside it)} as the docstring draws it."""
    found: dict[str, tuple[str | None, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := LINE.match(line):
            depth = len(match["indent"]) // 4
            del path[depth:]
            found[match["name"]] = (path[-1] if path else None, match["builtin"])
            path.append(match["name"])
    return found


def test_every_class_is_drawn_under_its_parent() -> None:
    actual = {
        name: None if kind is BloodbankError else next(b.__name__ for b in kind.__bases__ if b in all_errors().values())
        for name, kind in all_errors().items()
    }
    assert {name: parent for name, (parent, _) in drawn().items()} == actual


def test_the_builtins_that_are_drawn_are_true_and_all() -> None:
    for name, (parent, builtin) in drawn().items():
        others = [base for base in all_errors()[name].__bases__ if not issubclass(base, BloodbankError)]
        expected = [getattr(builtins, builtin)] if builtin else []
        assert others == ([Exception] if parent is None else expected), name


def test_every_code_is_its_own() -> None:
    codes = [kind.code for kind in all_errors().values()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_an_invalid_event_keeps_its_problems() -> None:
    error = errors.InvalidEvent("no", [("payload.prompt", "Field required")])
    assert error.problems == (("payload.prompt", "Field required"),)
    assert errors.InvalidEvent("no").problems == ()


def test_an_unknown_outcome_says_why_it_is_unknown() -> None:
    assert errors.PublishUnknown("no").reason == "timed_out"
    lost = errors.PublishUnknown("no", reason="lost")
    assert (str(lost), lost.reason) == ("no", "lost")
