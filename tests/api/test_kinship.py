"""Paths, common causes and impact over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.http_app import api, assert_problem

WHOLE = {"depth": False, "limit": False, "frontier": []}


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    async with api(tmp_path_factory.mktemp("kinship"), lineage_depth_limit=20, lineage_node_limit=30) as client:
        yield client


async def _publish(client: httpx.AsyncClient, event_type: str, *parents: str, app: str = "tests") -> str:
    source = {"host": "desk", "type": "agent", "app": app}
    body = {"event_type": event_type, "payload": {}, "correlation_ids": parents, "source": source}
    event_id: str = (await client.post("/events", json=body)).json()["event_id"]
    return event_id


async def _ask(client: httpx.AsyncClient, path: str, **params: Any) -> dict[str, Any]:
    response = await client.get(path, params=params)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def _ids(nodes: Sequence[dict[str, Any]]) -> list[str]:
    return [node["id"] for node in nodes]


async def test_a_path_is_told_with_its_events_and_edges(client: httpx.AsyncClient) -> None:
    root = await _publish(client, "path.root")
    left = await _publish(client, "path.left", root)
    right = await _publish(client, "path.right", root)
    longer = await _publish(client, "path.longer", right)
    end = await _publish(client, "path.end", longer, left)
    down = await _ask(client, "/lineage/path", **{"from": root, "to": end})
    assert (down["from"], down["to"], down["found"], down["direction"]) == (root, end, True, "descendants")
    assert _ids(down["path"]) == [root, left, end]
    assert [node["depth"] for node in down["path"]] == [0, 1, 2]
    assert down["edges"] == [{"parent": root, "child": left}, {"parent": left, "child": end}]
    assert (down["missing"], down["truncated"]) == ([], WHOLE)
    up = await _ask(client, "/lineage/path", **{"from": end, "to": root})
    assert (up["direction"], _ids(up["path"])) == ("ancestors", [end, left, root])
    assert [node["depth"] for node in up["path"]] == [0, -1, -2]
    assert up["edges"] == down["edges"][::-1]
    nowhere = await _ask(client, "/lineage/path", **{"from": root, "to": root})
    assert (nowhere["found"], nowhere["direction"], _ids(nowhere["path"]), nowhere["edges"]) == (True, None, [root], [])


async def test_no_path_and_a_path_that_nobody_knows_of_are_told_apart(client: httpx.AsyncClient) -> None:
    unseen = str(uuid4())
    chain = [await _publish(client, "apart.first", unseen)]
    for _ in range(4):
        chain.append(await _publish(client, "apart.next", chain[-1]))
    other = [await _publish(client, "apart.other")]
    for _ in range(4):
        other.append(await _publish(client, "apart.other", other[-1]))
    none = await _ask(client, "/lineage/path", **{"from": chain[1], "to": other[1]})
    assert (none["found"], none["direction"], none["path"], none["truncated"]) == (False, None, [], WHOLE)
    assert none["missing"] == [unseen]
    unknown = await _ask(client, "/lineage/path", **{"from": chain[2], "to": other[2]}, max_depth=1, limit=2)
    assert (unknown["found"], unknown["direction"], unknown["path"]) == (None, None, [])
    assert unknown["truncated"]["depth"] or unknown["truncated"]["limit"]


async def test_common_causes_are_the_lowest(client: httpx.AsyncClient) -> None:
    root = await _publish(client, "common.root")
    lower = await _publish(client, "common.lower", root)
    one = await _publish(client, "common.one", lower)
    other = await _publish(client, "common.other", lower, root)
    common = await _ask(client, "/lineage/common", ids=f"{one}, {other},{one}")
    assert (common["ids"], _ids(common["causes"])) == ([one, other], [lower])
    assert common["causes"][0]["depth"] == -1
    assert (common["complete"], common["missing"], common["truncated"]) == (True, [], WHOLE)
    itself = await _ask(client, "/lineage/common", ids=f"{one},{root}")
    assert _ids(itself["causes"]) == [root]
    strangers = await _ask(client, "/lineage/common", ids=f"{one},{await _publish(client, 'common.stranger')}")
    assert (strangers["causes"], strangers["complete"]) == ([], True)
    cut = await _ask(client, "/lineage/common", ids=f"{one},{other}", limit=1)
    assert (cut["causes"], cut["complete"], cut["truncated"]["limit"]) == ([], False, True)


async def test_impact_counts_by_type_source_and_status(client: httpx.AsyncClient) -> None:
    root = await _publish(client, "impact.root")
    left = await _publish(client, "impact.side", root, app="left")
    right = await _publish(client, "impact.side", root, app="right")
    await _publish(client, "impact.failed", left, right, app="left")
    impact = await _ask(client, f"/events/{root}/impact")
    assert impact.pop("first") <= impact.pop("last")
    assert impact == {
        "event_id": root,
        "descendants": 3,
        "by_type": {"impact.side": 2, "impact.failed": 1},
        "by_source": {"left": 2, "right": 1},
        "by_status": {"ok": 2, "failed": 1, "unknown": 0},
        "truncated": WHOLE,
    }
    assert list(impact["by_type"]) == ["impact.side", "impact.failed"]
    none = await _ask(client, f"/events/{await _publish(client, 'impact.none')}/impact")
    assert (none["descendants"], none["by_type"], none["first"], none["last"]) == (0, {}, None, None)
    cut = await _ask(client, f"/events/{root}/impact", max_depth=1)
    assert (cut["descendants"], cut["truncated"]["depth"]) == (2, True)


@pytest.mark.parametrize(
    "path", ["/events/{one}/impact", "/lineage/path?from={one}&to={other}", "/lineage/common?ids={one},{other}"]
)
async def test_questions_are_bounded_by_the_settings(client: httpx.AsyncClient, path: str) -> None:
    ids = {"one": await _publish(client, "bound.one"), "other": await _publish(client, "bound.other")}
    url = httpx.URL(path.format(**ids))
    assert (await client.get(url)).status_code == 200
    for params in ({"max_depth": 0}, {"max_depth": 21}, {"limit": 0}, {"limit": 31}, {"limit": "x"}):
        assert_problem(await client.get(url.copy_merge_params(params)), 400, "invalid_query")
    unknown = path.format(**ids | {"one": uuid4()})
    assert_problem(await client.get(unknown), 404, "event_not_found")


@pytest.mark.parametrize(
    "query",
    [
        "path",
        "path?from={0}",
        "path?from={0}&to=seven",
        "common",
        "common?ids=",
        "common?ids={0}",
        "common?ids={0},{0}",
        "common?ids={0},seven",
        "common?ids={0},",
        "common?ids=" + ",".join(str(number).zfill(32) for number in range(17)),
        "common?ids=" + "0" * 1001,
    ],
)
async def test_what_is_no_question_is_400(client: httpx.AsyncClient, query: str) -> None:
    event_id = await _publish(client, "a.b")
    assert_problem(await client.get(f"/lineage/{query.format(event_id)}"), 400, "invalid_query")


async def test_without_tracking_kin_is_503(tmp_path: Any) -> None:
    async with api(tmp_path, correlation_tracking=False) as client:
        event_id, other = await _publish(client, "a.b"), await _publish(client, "a.b")
        for path in (
            f"/events/{event_id}/impact",
            f"/lineage/path?from={event_id}&to={other}",
            f"/lineage/common?ids={event_id},{other}",
        ):
            assert_problem(await client.get(path), 503, "tracking_disabled")
