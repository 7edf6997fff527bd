"""`GET /events/stream`: what comes, in which order, behind which cursor, and what is said when not all is well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bloodbank import create_envelope
from bloodbank.http.cursors import cursor_of, position_of
from tests.api.http_app import api, app_of, assert_problem, bus_of
from tests.api.logs import Away
from tests.api.sse import DEADLINE_SECONDS, event_source
from tests.conformance.messages import message, publish


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with api(tmp_path) as client:
        yield client


async def _send(client: httpx.AsyncClient, count: int, event_type: str = "call.recorded", size: int = 0) -> list[str]:
    """Publish events and return their ids."""
    envelopes = [create_envelope(event_type, {"n": n, "text": "x" * size}) for n in range(count)]
    await bus_of(client).publisher.publish_many(envelopes)
    return [str(envelope.event_id) for envelope in envelopes]


def _said(*, resumed: bool, cursor: str | None) -> dict[str, Any]:
    """Return what `hello` says where the settings are the default."""
    return {"resumed": resumed, "cursor": cursor, "heartbeat_seconds": 15.0}


def _stream(client: httpx.AsyncClient, **arguments: Any) -> Any:
    return event_source(app_of(client), **arguments)


async def test_what_is_published_comes_in_order_with_its_envelope(client: httpx.AsyncClient) -> None:
    before = await _send(client, 2)
    async with _stream(client) as source:
        assert source.status == 200
        assert source.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert source.headers["cache-control"] == "no-store"
        hello = await source.next_of("hello")
        assert hello.data == _said(resumed=False, cursor=hello.id)
        first = await client.post(
            "/events/llm/prompt",
            json={"provider": "a", "prompt": "line\nline\r\u2028"},
            headers={"X-Bloodbank-Parents": before[0]},
        )
        later = await _send(client, 30)
        event = await source.next_of("event")
        assert event.data == (await client.get(f"/events/{first.json()['event_id']}")).json()
        assert event.data["correlation_ids"] == [before[0]]
        assert await source.ids(30) == later


async def test_only_what_fits_the_pattern_comes(client: httpx.AsyncClient) -> None:
    async with _stream(client, type="llm.*") as source:
        await source.next_of("hello")
        await _send(client, 3)
        wanted = await _send(client, 2, "llm.answer")
        await _send(client, 3)
        assert await source.ids(2) == wanted


async def test_a_client_goes_on_behind_the_last_event_that_it_got(client: httpx.AsyncClient) -> None:
    async with _stream(client) as source:
        await source.next_of("hello")
        sent = await _send(client, 5)
        cursor = [await source.next_of("event") for _ in range(3)][-1].id
    sent += await _send(client, 4)
    async with _stream(client, headers={"Last-Event-ID": cursor}) as source:
        hello = await source.next_of("hello")
        # Its cursor is where the log ends, and not where this client goes on.
        assert (hello.data, hello.id) == (_said(resumed=True, cursor=cursor_of(9)), "")
        sent += await _send(client, 1)
        assert await source.ids(7) == sent[3:]


async def test_a_cursor_may_stand_in_the_query_and_the_header_goes_first(client: httpx.AsyncClient) -> None:
    async with _stream(client) as source:
        await source.next_of("hello")
        sent = await _send(client, 3)
        cursors = [(await source.next_of("event")).id for _ in range(3)]
    async with _stream(client, after=cursors[0]) as source:
        await source.next_of("hello")
        assert await source.ids(2) == sent[1:]
    async with _stream(client, after=cursors[0], headers={"Last-Event-ID": cursors[1]}) as source:
        await source.next_of("hello")
        assert await source.ids(1) == sent[2:]


async def test_hello_on_an_empty_log_has_a_cursor_that_loses_nothing(client: httpx.AsyncClient) -> None:
    async with _stream(client) as source:
        hello = await source.next_of("hello")
    sent = await _send(client, 3)
    async with _stream(client, headers={"Last-Event-ID": hello.id}) as source:
        await source.next_of("hello")
        assert await source.ids(3) == sent


async def test_what_came_before_the_servers_start_is_read_from_the_log(tmp_path: Path) -> None:
    async with api(tmp_path, stream_ring_events=8) as client, _stream(client) as source:
        await source.next_of("hello")
        sent = await _send(client, 1)
        cursor = (await source.next_of("event")).id
        sent += await _send(client, 699)
    async with api(tmp_path, stream_ring_events=8) as client, _stream(client, after=cursor) as source:
        assert (await source.next_of("hello")).data["resumed"]
        assert await source.ids(699) == sent[1:]
        # And then what comes now, without a seam.
        assert await _send(client, 5) == await source.ids(5)


async def test_a_slow_reader_is_told_and_goes_on_where_it_left_off(tmp_path: Path) -> None:
    async with api(tmp_path, stream_ring_events=50) as client, _stream(client) as source, _stream(client) as quick:
        await source.next_of("hello")
        await quick.next_of("hello")
        source.hold()
        sent: list[str] = []
        received: list[str] = []
        for _ in range(20):
            sent += await _send(client, 25)
            received += await quick.ids(25)
        assert received == sent
        source.go_on()
        got = await source.next()
        slow: list[str] = []
        while got.event != "behind":
            slow.append(got.data["event_id"])
            got = await source.next()
        assert position_of(got.data["missed_from"]) == len(slow)
        assert "slower" in got.data["reason"]
        while (got := await source.next_of_any()).event != "hello":
            slow.append(got.data["event_id"])
        # It has caught up, and is no longer behind.
        assert got.data == _said(resumed=True, cursor=cursor_of(len(sent)))
        slow += await source.ids(len(sent) - len(slow))
        assert slow == sent
        assert await _send(client, 10) == await source.ids(10)


async def test_large_events_are_kept_in_few(tmp_path: Path) -> None:
    async with api(tmp_path, stream_ring_bytes=65_536) as client, _stream(client) as source:
        await source.next_of("hello")
        source.hold()
        sent = [(await _send(client, 1, size=20_000))[0] for _ in range(12)]
        feed = bus_of(client).feed
        async with asyncio.timeout(DEADLINE_SECONDS):
            while feed.ring.head < len(sent):
                await asyncio.sleep(0)
        assert feed.ring.floor >= len(sent) - 4
        source.go_on()
        received: list[str] = []
        while len(received) < len(sent):
            found = await source.next()
            if found.event == "event":
                received.append(found.data["event_id"])
        assert received == sent


async def test_what_the_log_has_forgotten_is_a_gap(tmp_path: Path) -> None:
    async with api(tmp_path, stream_ring_events=4) as client:
        sent = await _send(client, 20)
        await _forget(client, 10)
        async with _stream(client, after=cursor_of(5)) as source:
            await source.next_of("hello")
            gap = await source.next_of("gap")
            assert gap.data["after"] == cursor_of(5)
            assert await source.ids(10) == sent[10:]


async def test_what_was_forgotten_since_the_log_was_empty_is_a_gap(tmp_path: Path) -> None:
    async with api(tmp_path, stream_ring_events=4) as client:
        async with _stream(client) as source:
            empty = (await source.next_of("hello")).id
        sent = await _send(client, 20)
        async with _stream(client, after=empty) as source:
            await source.next_of("hello")
            assert await source.ids(20) == sent
        await _forget(client, 10)
        async with _stream(client, after=empty) as source:
            await source.next_of("hello")
            assert (await source.next_of("gap")).data["after"] == empty
            assert await source.ids(10) == sent[10:]


async def test_a_cursor_whose_event_is_the_last_forgotten_one_has_no_gap(tmp_path: Path) -> None:
    async with api(tmp_path, stream_ring_events=4) as client:
        sent = await _send(client, 20)
        await _forget(client, 10)
        async with _stream(client, after=cursor_of(10)) as source:
            await source.next_of("hello")
            assert await source.ids(10) == sent[10:]


async def test_a_log_that_has_forgotten_more_than_the_server_keeps_is_a_gap(tmp_path: Path) -> None:
    async with api(tmp_path, stream_ring_events=4) as client:
        async with _stream(client) as source:
            await source.next_of("hello")
            sent = await _send(client, 20)
            while (await source.next_of_any()).data.get("event_id") != sent[-1]:
                pass
        await _forget(client, 20)
        async with _stream(client, after=cursor_of(5)) as source:
            await source.next_of("hello")
            gap = await source.next_of("gap")
            assert (gap.data["after"], gap.id) == (cursor_of(5), cursor_of(16))
            assert await source.ids(4) == sent[16:]


async def test_a_cursor_of_another_log_is_a_gap_and_the_stream_goes_on_from_now(client: httpx.AsyncClient) -> None:
    await _send(client, 2)
    async with _stream(client, after=cursor_of(4_000)) as source:
        await source.next_of("hello")
        gap = await source.next_of("gap")
        assert (gap.data["after"], gap.id) == (cursor_of(4_000), cursor_of(2))
        assert await _send(client, 1) == await source.ids(1)


async def test_a_heartbeat_comes_when_nothing_else_does_and_moves_on_behind_what_does_not_fit(tmp_path: Path) -> None:
    async with api(tmp_path, stream_heartbeat_seconds=0.05) as client, _stream(client, type="llm.*") as source:
        await source.next_of("hello")
        assert (await source.next()).comment == "heartbeat"
        await _send(client, 3)
        while source.last_id != cursor_of(3):
            assert (await source.next()).comment == "heartbeat"


async def test_what_is_no_envelope_is_passed_over(client: httpx.AsyncClient) -> None:
    async with _stream(client) as source:
        await source.next_of("hello")
        await publish(bus_of(client).publisher.transport, message("call.recorded", b"no JSON"), message(body=b"{}"))
        assert await _send(client, 1) == await source.ids(1)


async def test_what_comes_together_is_sent_together(client: httpx.AsyncClient) -> None:
    async with _stream(client) as source:
        await source.next_of("hello")
        sent = await _send(client, 400)
        assert await source.ids(400) == sent
        assert len(source.sends) < 40


async def test_a_stream_too_many_is_refused_until_one_ends(tmp_path: Path) -> None:
    async with api(tmp_path, stream_clients=2) as client:
        async with _stream(client) as first, _stream(client):
            await first.next_of("hello")
            refused = await client.get("/events/stream")
            assert_problem(refused, 503, "too_many_streams")
            assert int(refused.headers["retry-after"]) > 0
        async with _stream(client) as again:
            await again.next_of("hello")


@pytest.mark.parametrize(
    "query", ["type=a..b", "type=%20", "after=!", "after=LTI", "after=" + "A" * 33, "type=" + "a" * 256]
)
async def test_a_question_that_is_none_is_refused(client: httpx.AsyncClient, query: str) -> None:
    assert_problem(await client.get(f"/events/stream?{query}"), 400, "invalid_query")


async def test_a_stream_needs_the_scope_read(tmp_path: Path) -> None:
    async with api(tmp_path, api_keys={"key-read1": {"read"}, "key-publish1": {"publish"}}) as client:
        assert_problem(await client.get("/events/stream"), 401, "key_required")
        wrong = {"Authorization": "Bearer key-publish1"}
        assert_problem(await client.get("/events/stream", headers=wrong), 403, "insufficient_scope")
        async with _stream(client, headers={"Authorization": "Bearer key-read1"}) as source:
            await source.next_of("hello")


async def test_when_the_server_stops_streams_end_at_once_and_none_begins(client: httpx.AsyncClient) -> None:
    async with _stream(client) as source:
        await source.next_of("hello")
        app_of(client).state.is_stopping = True
        async with asyncio.timeout(DEADLINE_SECONDS):
            await source.ended.wait()
        refused = await client.get("/events/stream")
        assert_problem(refused, 503, "not_open")


async def test_a_log_that_cannot_be_read_is_told_once_and_nothing_is_lost(client: httpx.AsyncClient) -> None:
    away = Away(client)
    async with _stream(client) as source:
        await source.next_of("hello")
        sent = await _send(client, 3)
        assert await source.ids(3) == sent
        away.is_away.set()
        trouble = await source.next_of("trouble")
        assert trouble.data == {"code": "transport_unavailable", "detail": "The log is on holiday."}
        sent = await _send(client, 5)
        away.is_away.clear()
        # Also where nothing was published meanwhile.
        assert (await source.next_of("hello")).data["resumed"] is True
        assert await source.ids(5) == sent


async def test_a_stream_that_begins_without_a_log_says_so_and_begins_when_it_is_there(
    client: httpx.AsyncClient,
) -> None:
    await _send(client, 2)
    away = Away(client)
    away.is_away.set()
    async with _stream(client) as source, _stream(client, after=cursor_of(1)) as resumed:
        assert (await source.next_of("hello")).data == _said(resumed=False, cursor=None)
        await source.next_of("trouble")
        await resumed.next_of("hello")
        await resumed.next_of("trouble")
        away.is_away.clear()
        again = await source.next_of("hello")
        assert (again.id, again.data) == (cursor_of(2), _said(resumed=False, cursor=cursor_of(2)))
        assert (await resumed.next_of("hello")).data["resumed"] is True
        await resumed.ids(1)
        assert await _send(client, 2) == await source.ids(2)
        assert len(await resumed.ids(2)) == 2


async def test_the_log_is_read_once_however_many_listen_and_not_before_somebody_does(client: httpx.AsyncClient) -> None:
    transport = bus_of(client).publisher.transport
    follows: list[dict[str, Any]] = []
    read = transport.read_log

    def read_log(**arguments: Any) -> Any:
        follows.append(arguments)
        return read(**arguments)

    transport.read_log = read_log  # type: ignore[method-assign]
    await client.get("/events")
    assert not [arguments for arguments in follows if arguments.get("follow")]
    async with _stream(client) as one, _stream(client) as other:
        await one.next_of("hello")
        await other.next_of("hello")
        sent = await _send(client, 2)
        assert await one.ids(2) == await other.ids(2) == sent
    assert len([arguments for arguments in follows if arguments.get("follow")]) == 1


async def _forget(client: httpx.AsyncClient, count: int) -> None:
    """Remove the oldest entries from the log, as its retention does."""
    database = bus_of(client).publisher.transport._database  # type: ignore[attr-defined]
    await database.write(lambda connection: connection.execute("DELETE FROM log WHERE position <= ?", (count,)))
