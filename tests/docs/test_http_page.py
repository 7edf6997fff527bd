"""docs/http.md says what the server serves."""

from __future__ import annotations

import re

from bloodbank.http.app import create_app
from bloodbank.http.incoming import IDEMPOTENCY_HEADER, PARENTS_HEADER
from tests.docs.generated import HTTP, REGENERATE, codes_table, section

METHODS = {"get", "post", "put", "patch", "delete"}


def test_routes_are_those_of_the_server() -> None:
    served = {
        f"{method.upper()} {path}"
        for path, operations in create_app().openapi()["paths"].items()
        for method in METHODS & operations.keys()
    }
    assert len(served) >= 17
    table = HTTP.read_text().partition("## Routes\n")[2].partition("\n\nThe routes")[0]
    assert set(re.findall(r"`((?:GET|POST|DELETE) [^`?]+)`", table)) == served


def test_problem_codes_are_those_of_the_server() -> None:
    assert section(HTTP, "codes") == codes_table(), REGENERATE


def test_status_codes_in_the_description_are_on_the_page() -> None:
    documented = set(re.findall(r"\b([2345]\d\d)\b", HTTP.read_text()))
    described = {
        status
        for operations in create_app().openapi()["paths"].values()
        for operation in operations.values()
        for status in operation["responses"]
        if status != "default"
    }
    assert described - documented == set()


def test_headers_are_on_the_page() -> None:
    assert {name for name in (PARENTS_HEADER, IDEMPOTENCY_HEADER) if f"`{name}" not in HTTP.read_text()} == set()
