"""One shape of error on every route, and one row for every class of error."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from bloodbank import BloodbankError, EventEnvelope, Publisher, PublishResult
from bloodbank.http import bounds, problems
from bloodbank.http.app import create_app
from tests.api.http_app import PROMPT, api, assert_problem, bus_of, filled, publishing_with

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "MADE-UP")


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    async with api(tmp_path_factory.mktemp("problems")) as client:
        yield client


def _kinds(kind: type[BloodbankError] = BloodbankError) -> Iterator[type[BloodbankError]]:
    if kind.__module__.startswith("bloodbank."):
        yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def _paths() -> dict[str, set[str]]:
    """Return the methods of each path; all paths of one word below /events share theirs, by their templates."""
    described = create_app().openapi()["paths"]
    # Their last words stand where an id or a number may.
    described["/outbox/retry"] |= described["/outbox/{event_id}"]
    described["/dlq/groups"] |= described["/dlq/{number}"]
    return {
        filled(path): {"GET", "POST"}
        if re.fullmatch("/events/[^/]+", path)
        else {method.upper() for method in operations}
        for path, operations in described.items()
    }


def test_every_error_has_a_row_of_its_own() -> None:
    in_http = {kind for kind in _kinds() if ".cli" not in kind.__module__}
    assert in_http - problems.TABLE.keys() == set()


def test_codes_are_the_names_of_one_error_each() -> None:
    codes = [kind.code for kind in problems.TABLE]
    assert len(codes) == len(set(codes))
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)


async def test_a_path_that_is_not_served_is_404(client: httpx.AsyncClient) -> None:
    for path in ("/index", "/event", "/events/", "/events/a/b/c", "/docs/", "/redoc", "/\xe9", "/%00"):
        assert_problem(await client.get(path), 404, "route_not_found")


async def test_a_method_that_a_path_has_not_is_405_and_says_which_it_has(client: httpx.AsyncClient) -> None:
    for path, served in _paths().items():
        for method in set(METHODS) - served:
            response = await client.request(method, path)
            if method == "HEAD":
                # Without a content there is nothing to look at.
                assert response.status_code == 405
            else:
                assert_problem(response, 405, "method_not_allowed")
            assert response.headers["allow"]


async def test_every_route_that_takes_a_body_refuses_a_wrong_one_with_a_problem(client: httpx.AsyncClient) -> None:
    for path, methods in _paths().items():
        if (
            "POST" in methods
            and not path.startswith(("/webhooks", "/outbox", "/dlq", "/demo"))
            and not re.search("/[0-9a-f-]{36}", path)
        ):
            assert_problem(await client.post(path, json=7), 422, "invalid_event")


async def test_what_nobody_foresaw_is_500_without_internals(client: httpx.AsyncClient) -> None:
    class Broken(Publisher):
        async def publish(self, event: EventEnvelope[Any], /) -> PublishResult:  # type: ignore[override]
            raise ZeroDivisionError("secret internals")

    async with publishing_with(client, Broken(bus_of(client).settings)):
        response = await client.post("/events/llm/prompt", json=PROMPT)
    assert_problem(response, 500, "internal_error")
    assert "secret internals" not in response.text
    assert (await client.post("/events/llm/prompt", json=PROMPT)).status_code == 201


async def test_a_problem_does_not_repeat_a_long_request(client: httpx.AsyncClient) -> None:
    response = await client.post("/events/llm/prompt", json={"x" * 100_000: 1, **{f"y{n}": n for n in range(200)}})
    problem = assert_problem(response, 422, "invalid_event")
    assert len(problem["errors"]) == problems.MOST_ERRORS
    assert len(response.content) < 20_000


async def test_an_address_or_a_head_over_its_limit_is_refused(client: httpx.AsyncClient) -> None:
    long_path = "/events/" + "a" * bounds.LONGEST_PATH_BYTES
    assert_problem(await client.get(long_path), 414, "address_too_long")
    assert_problem(await client.get("/events", params={"type": "a" * 5000}), 414, "address_too_long")
    headers = [("X-More", str(n)) for n in range(bounds.MOST_HEADERS)]
    assert_problem(await client.get("/events", headers=headers), 431, "too_many_headers")


async def test_an_instance_is_the_path_with_nothing_that_could_break_a_log(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await client.get("/a%0Ab%20c"), 404, "route_not_found")
    assert problem["instance"] == "/a%0Ab%20c"
