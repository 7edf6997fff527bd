"""The tables in docs/ that are written from the code: settings, dotenv example, public names, problem codes.

`python -m tests.docs.generated` writes them; the tests compare.
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from pathlib import Path
from typing import Any, Literal

import annotated_types
from pydantic import SecretStr
from pydantic.fields import FieldInfo

import bloodbank
import bloodbank.testing
from bloodbank.config import Settings
from bloodbank.errors import BloodbankError, PublishError, Unavailable
from bloodbank.http import problems
from tests.docs.markdown import ROOT

REGENERATE = "Run `.venv/bin/python -m tests.docs.generated` and commit what it writes."
CONFIGURATION = ROOT / "docs" / "configuration.md"
PUBLIC_NAMES = ROOT / "docs" / "api.md"
HTTP = ROOT / "docs" / "http.md"
DOTENV = ROOT / ".env.example"

_BOUNDS = {annotated_types.Ge: "≥ ", annotated_types.Gt: "> ", annotated_types.Le: "≤ ", annotated_types.Lt: "< "}
_UNITS = {"_seconds": "seconds", "_days": "days", "_bytes": "bytes"}
_FORMS = {
    "BLOODBANK_API_KEYS": "`key:scope+scope`, separated by commas; secret",
    "BLOODBANK_FIREFLIES_SECRETS": "text, separated by commas; secret",
    "BLOODBANK_URL": "URL",
}
_DATA_DIR = "BLOODBANK_DATA_DIR"
"""Its default differs from machine to machine."""


def settings_table() -> str:
    """Return the table of all settings, in the order of the class."""
    rows = ["| variable | default | values | meaning |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        variable = str(field.validation_alias)
        default = _default(variable, field)
        shown = f"`{default}`" if default else "of the platform" if variable == _DATA_DIR else "not set"
        rows.append(f"| `{variable}` | {shown} | {_values(variable, name, field)} | {field.description} |")
    return "\n".join(rows) + "\n"


def dotenv() -> str:
    """Return the example of a .env file: every setting, commented out, with its default."""
    parts = [
        "# Settings of Bloodbank. Copy to .env and uncomment what you change; the environment takes precedence.",
        "# The same list with units and limits: docs/configuration.md",
    ]
    for field in Settings.model_fields.values():
        variable = str(field.validation_alias)
        parts += ["", f"# {field.description}", f"#{variable}={_default(variable, field)}"]
    return "\n".join(parts) + "\n"


def names_table(module: types.ModuleType = bloodbank) -> str:
    """Return the table of the public names of a module, with the first line of each docstring."""
    rows = ["| name | what it is |", "| --- | --- |"]
    rows += [f"| `{name}` | {summary(name, module)} |" for name in module.__all__]
    return "\n".join(rows) + "\n"


def codes_table() -> str:
    """Return the table of the problem codes of our errors, by status."""
    rows = {(row.status, error.code, row.title) for error, row in problems.TABLE.items() if _own_code(error)}
    listed = [f"| {status} | `{code}` | {title} |" for status, code, title in sorted(rows)]
    return "\n".join(["| status | code | title |", "| --- | --- | --- |", *listed]) + "\n"


def summary(name: str, module: types.ModuleType = bloodbank) -> str:
    """Return the first sentence or line of the docstring of a public name; constants show their value."""
    value: object = getattr(module, name)
    if isinstance(value, str):
        return f"constant, `{value}`"
    if isinstance(value, typing.TypeVar):
        raise TypeError(f"{name} is a type variable, and not public")
    return (inspect.getdoc(value) or "").partition("\n")[0]


def section(path: Path, name: str) -> str:
    """Return what stands between the markers of a generated part."""
    begin, end = _markers(name)
    return path.read_text().partition(begin)[2].partition(end)[0]


def write(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of a generated part."""
    begin, end = _markers(name)
    before, _, rest = path.read_text().partition(begin)
    path.write_text(before + begin + text + end + rest.partition(end)[2])


def _own_code(error: type[BloodbankError]) -> bool:
    """Say whether callers can meet this code: bases whose children have codes of their own are not raised."""
    return "code" in vars(error) and error not in (BloodbankError, PublishError, Unavailable)


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- generated: {name} -->\n", f"<!-- end of {name} -->\n"


def _default(variable: str, field: FieldInfo) -> str:
    if variable == _DATA_DIR:
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value or isinstance(value, int | float) else ""


def _values(variable: str, name: str, field: FieldInfo) -> str:
    if variable in _FORMS:
        return _FORMS[variable]
    kind = _without_none(field.annotation)
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    if kind is bool:
        return "`true` or `false`"
    bounds = ", ".join(
        f"{sign}{getattr(part, type(part).__name__.lower()):,}".replace(",", " ")
        for part in field.metadata
        for kind_of_bound, sign in _BOUNDS.items()
        if isinstance(part, kind_of_bound)
    )
    if kind in (int, float):
        unit = next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "number")
        whole = "whole number" if kind is int and unit == "number" else unit
        return f"{whole}, {bounds}" if bounds else whole
    words = {SecretStr: "URL; secret" if name.endswith("_url") else "text; secret", Path: "folder", str: "text"}
    return words[kind]


def _without_none(annotation: Any) -> Any:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        raise TypeError(f"{annotation} is an enumeration; show its names here")
    return annotation


if __name__ == "__main__":
    write(CONFIGURATION, "settings", settings_table())
    write(PUBLIC_NAMES, "names", names_table())
    write(PUBLIC_NAMES, "names for tests", names_table(bloodbank.testing))
    write(HTTP, "codes", codes_table())
    DOTENV.write_text(dotenv())
