"""`POST /demo`: the day of `bb demo`, on the bus of the server."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from bloodbank.cli.demo.verdict import mistakes
from bloodbank.story import EXPECTATIONS, STORY
from tests.api.http_app import api, assert_problem


async def test_the_day_is_played_with_new_ids_each_time_and_its_questions_have_the_right_answers(
    tmp_path: Path,
) -> None:
    async with api(tmp_path) as client:
        for count in (1, 2):
            response = await client.post("/demo")
            assert response.status_code == 201
            played = response.json()
            page = (await client.get("/events?limit=100")).json()["items"]
            assert len(page) == count * played["events"] == count * len(STORY)
            newest = page[: len(STORY)][::-1]
            assert [event["event_type"] for event in newest] == [scene.event_type for scene in STORY]
            ids = {scene.name: UUID(event["event_id"]) for scene, event in zip(STORY, newest, strict=True)}
            assert str(ids["artifact"]) == played["focus"]
            for expected in EXPECTATIONS:
                path = f"/events/{ids[expected.focus]}/lineage?direction={expected.direction}"
                assert mistakes((await client.get(path)).json(), expected, ids) == []


@pytest.mark.parametrize("settings", [{"redis_url": "redis://127.0.0.1:1"}, {"redis_host": "127.0.0.1"}])
async def test_it_is_not_played_on_a_bus_that_others_share(tmp_path: Path, settings: dict[str, str]) -> None:
    async with api(tmp_path, correlation_tracking=False, **settings) as client:
        assert_problem(await client.post("/demo"), 409, "demo_unavailable")
        assert (await client.get("/events")).json()["items"] == []


async def test_it_needs_the_scope_publish(tmp_path: Path) -> None:
    async with api(tmp_path, api_keys={"key-read1": {"read"}, "key-publish1": {"publish"}}) as client:
        refused = await client.post("/demo", headers={"X-API-Key": "key-read1"})
        assert_problem(refused, 403, "insufficient_scope")
        assert (await client.post("/demo", headers={"X-API-Key": "key-publish1"})).status_code == 201
