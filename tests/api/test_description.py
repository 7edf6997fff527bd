"""The OpenAPI description: complete, and its examples work as they stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bloodbank.http.app import create_app
from bloodbank.http.examples import EVENT_ID
from tests.api.http_app import api, bus_of
from tests.conformance.messages import listed, message, set_aside

DESCRIPTION: dict[str, Any] = create_app().openapi()
OPERATIONS = [
    (method.upper(), path, operation)
    for path, operations in DESCRIPTION["paths"].items()
    for method, operation in operations.items()
]
WITH_BODY = [
    (path, operation)
    for method, path, operation in OPERATIONS
    if method == "POST" and not path.startswith(("/outbox", "/dlq", "/demo"))  # those take no body
]
ENDLESS = {"/events/stream"}
"""Routes whose answer does not end, and has tests of its own."""


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def test_every_route_says_what_it_does_and_answers() -> None:
    for method, path, operation in OPERATIONS:
        assert operation["summary"], path
        assert operation["description"], path
        assert "default" in operation["responses"], path
        success = [status for status in operation["responses"] if status.startswith("2")]
        assert success, path
        for status in success:
            kind = "text/event-stream" if path in ENDLESS else "application/json"
            assert operation["responses"][status]["content"][kind], (method, path, status)


def test_every_error_that_is_described_is_a_problem() -> None:
    for _, path, operation in OPERATIONS:
        for status, response in operation["responses"].items():
            if status.startswith("2") or (path, status) == ("/readyz", "503"):
                continue
            schema = response["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}, (path, status)


def test_every_route_that_takes_a_body_describes_it_with_examples() -> None:
    for path, operation in WITH_BODY:
        content = operation["requestBody"]["content"]["application/json"]
        assert content["schema"], path
        assert content["examples"], path


def test_every_reference_leads_somewhere() -> None:
    schemas = DESCRIPTION["components"]["schemas"]
    assert {reference.rpartition("/")[2] for reference in _references(DESCRIPTION)} <= schemas.keys()


def test_only_what_is_always_open_says_that_no_key_is_needed() -> None:
    unguarded = {path for _, path, operation in OPERATIONS if operation.get("security") == []}
    assert unguarded == {"/healthz", "/livez", "/webhooks/fireflies"}


async def test_every_example_of_a_body_is_accepted(tmp_path: Any) -> None:
    async with api(tmp_path, fireflies_allow_unsigned=True) as client:
        transport = bus_of(client).publisher.transport
        await set_aside(transport, message(), group="rag")
        [letter] = await listed(transport)
        for path, operation in WITH_BODY:
            for name, example in operation["requestBody"]["content"]["application/json"]["examples"].items():
                response = await client.post(path.format(event_type="invoice.paid"), json=example["value"])
                assert response.is_success, (path, name, response.text)
        job = (await client.post("/replay", json={"dry_run": True})).json()["job"]
        for method, path, operation in OPERATIONS:
            if method == "GET" and path not in ENDLESS:
                known = {"event_id": EVENT_ID, "event_type": "llm.prompt", "number": letter.number, "job_id": job}
                query = {
                    parameter["name"]: parameter["schema"]["examples"][0]
                    for parameter in operation.get("parameters", [])
                    if parameter["in"] == "query" and parameter["required"]
                }
                response = await client.get(path.format(**known), params=query)
                assert response.status_code == 200, (path, response.text)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
async def test_the_description_is_served(tmp_path: Any, path: str) -> None:
    async with api(tmp_path) as client:
        assert (await client.get(path)).status_code == 200
