"""Schemathesis over the OpenAPI description of a real server: valid and invalid requests, and never a 5xx."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.servers.api import ApiServer

REQUESTS_A_MODE = 75
LEAST_REQUESTS = 2000
ENDLESS = {"/events/stream"}
"""Its answer has no end that could be checked; tests/api/test_stream.py asks it what it refuses."""
CHECKS = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    # The webhook takes what is not signed, so that more than the signature is tried; and no job is one too many.
    server = ApiServer(BLOODBANK_FIREFLIES_ALLOW_UNSIGNED="true", BLOODBANK_RUNNING_JOB_LIMIT="100")
    server.start()
    yield server
    server.close()


@pytest.mark.timeout(300)
def test_no_request_makes_the_server_fail(server: ApiServer) -> None:
    statuses: Counter[int] = Counter()
    description = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    with requests.Session() as session:
        published = session.post(f"{server.url}/events/llm/prompt", json={"provider": "a", "prompt": "b"})
        known = published.json()["event_id"]
        for found in description.get_all_operations():
            operation = found.ok()
            if operation.path in ENDLESS:
                continue
            takes_something = operation.body or any(True for _ in operation.iter_parameters())
            for mode in GenerationMode if takes_something else [GenerationMode.POSITIVE]:
                _fuzz(operation, mode, session, known, statuses)
        answered = session.get(f"{server.url}/healthz").status_code
    print(f"{statuses.total()} requests: {dict(sorted(statuses.items()))}")
    assert statuses.total() >= LEAST_REQUESTS
    assert {status for status in statuses if status >= 500} == set()
    assert {200, 201, 400, 404, 422} <= statuses.keys()
    assert answered == 200


def _fuzz(
    operation: APIOperation, mode: GenerationMode, session: requests.Session, known: str, statuses: Counter[int]
) -> None:
    @settings(
        max_examples=REQUESTS_A_MODE,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Case) -> None:
        # Random ids are of no event; every second request asks about one that there is.
        if mode is GenerationMode.POSITIVE and "event_id" in case.path_parameters and statuses.total() % 2:
            case.path_parameters["event_id"] = known
        response = case.call(session=session)
        statuses[response.status_code] += 1
        assert response.status_code < 500, f"{case.as_curl_command()}\n{response.text}"
        case.validate_response(response, checks=CHECKS)

    send()
