"""How far a job is, and what became of it."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import orjson
from fastapi import APIRouter, Path, Request, Response

from bloodbank.http import description
from bloodbank.http.answers import job_answer
from bloodbank.http.background import Job
from bloodbank.http.bus import bus_of
from bloodbank.http.shapes import JobOut

router = APIRouter(tags=["dead letters"])


def job_response(job: Job, status: int = 200) -> Response:
    """Return the answer that tells of a job. status: 202 for one that has just begun."""
    told = job_answer(job.progress, job_id=job.job_id, kind=job.kind, finished=job.finished, error=job.error)
    return Response(orjson.dumps(told), status, media_type="application/json")


@router.get(
    "/jobs/{job_id}",
    summary="Ask how far a job is",
    response_class=Response,
    responses={200: description.answer(JobOut, "How far it is, or its outcome.")}
    | description.refusals(400, 401, 403, 404),
)
async def read_job(
    request: Request, job_id: Annotated[UUID, Path(description="`job` of the answer that began it.")]
) -> Response:
    """Tell how far a job of this server is. Its outcome can be read for an hour, unless settings say otherwise."""
    return job_response(bus_of(request).jobs.get(job_id))
