"""Events of the log, delivered to consumers again."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from bloodbank.errors import InvalidQuery
from bloodbank.http import description, examples
from bloodbank.http.body import read_object
from bloodbank.http.bus import Bus, bus_of
from bloodbank.http.jobs import job_response
from bloodbank.http.shapes import JobOut, ReplayIn
from bloodbank.progress import Progress, Report
from bloodbank.replay import Selection

router = APIRouter(tags=["dead letters"])


@router.post(
    "/replay",
    summary="Deliver events of the log again",
    response_class=Response,
    status_code=202,
    responses={202: description.answer(JobOut, "A job has begun; `total` is how many events there are.")}
    | description.refusals(400, 401, 403, 404, 413, 415, 422, 503),
    openapi_extra=description.json_body(ReplayIn, examples=examples.REPLAY),
)
async def replay(request: Request) -> Response:
    """Begin a job that delivers events again, marked as replayed: to one group, or to all whose patterns fit.

    The events are those of a type and a time, or one with or without all that it led to. Handlers run again.
    """
    bus = bus_of(request)
    limits = bus.settings
    fields = await read_object(request, limit_bytes=limits.body_limit_bytes, depth_limit=limits.json_depth_limit)
    asked = _read(fields)
    if asked.to is not None:
        # Told now, and not after all has been counted.
        await bus.publisher.transport.replay([], group=asked.to)

    async def work(report: Report) -> Progress:
        selection = await _select(bus, asked)
        if asked.dry_run:
            return Progress(total=selection.count)
        return await bus.replay.send(selection, to=asked.to, on_progress=report)

    return job_response(await bus.jobs.begin("count" if asked.dry_run else "replay", work), 202)


def _read(fields: dict[str, object]) -> ReplayIn:
    try:
        asked = ReplayIn.model_validate(fields)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)[:5]
        )
        raise InvalidQuery(f"{wrong}. Nothing was sent.") from error
    if asked.to is None and not asked.to_all and not asked.dry_run:
        raise InvalidQuery(
            'Say who gets the events: "to": "GROUP", or "to_all": true for every group whose patterns fit. Nothing was '
            "sent."
        )
    if asked.to is not None and asked.to_all:
        raise InvalidQuery("Give either to or to_all. Nothing was sent.")
    if asked.event_id is not None and (asked.type, asked.since, asked.until) != ("#", None, None):
        raise InvalidQuery("Give either event_id, or type, since and until. Nothing was sent.")
    if asked.descendants and asked.event_id is None:
        raise InvalidQuery("descendants are those of an event: give its event_id. Nothing was sent.")
    return asked


async def _select(bus: Bus, asked: ReplayIn) -> Selection:
    if asked.event_id is not None:
        return await bus.replay.select_event(asked.event_id, descendants=asked.descendants)
    return await bus.replay.select(pattern=asked.type, since=asked.since, until=asked.until)
