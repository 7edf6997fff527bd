"""A steady load, run as a process of its own: `python -m bench._steady URL EVENTS_A_SECOND SECONDS`.

Publishes over HTTP in batches, at a fixed pace: what a slow answer held up is made up for. Prints the ids that were
accepted, one a line, and on stderr how long it took. An answer other than "published" ends it.
"""

from __future__ import annotations

import asyncio
import sys
import time

import httpx
import orjson

BATCHES_A_SECOND = 20
TYPES = ("step.begun", "step.done", "memo.filed", "memo.failed")
TIMEOUT_SECONDS = 10.0


def batch(first: int, size: int) -> bytes:
    """Return a batch of events, one in forty of which is a failure."""
    events = [
        {
            "event_type": TYPES[3] if number % 40 == 0 else TYPES[number % 3],
            "payload": {
                "provider": "anthropic",
                "prompt": f"What did they say in call {number}?",
                "response": f"They spoke about the launch, for the {number}th time, and agreed on Friday.",
                "error": {"code": "timeout", "message": "No answer within 30 s."},
            },
        }
        for number in range(first, first + size)
    ]
    return orjson.dumps({"events": events})


async def publish(url: str, events_a_second: int, seconds: float) -> None:
    """Publish for so long, and print what was accepted."""
    size = events_a_second // BATCHES_A_SECOND
    begun = time.monotonic()
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
        for number in range(round(seconds * BATCHES_A_SECOND)):
            await asyncio.sleep(begun + number / BATCHES_A_SECOND - time.monotonic())
            body = batch(number * size, size)
            answer = await client.post(
                f"{url}/events/batch", content=body, headers={"Content-Type": "application/json"}
            )
            for result in orjson.loads(answer.raise_for_status().content)["results"]:
                if result.get("status") != "published":
                    raise SystemExit(f"Not published: {result}")
                print(result["event_id"])
    print(f"{time.monotonic() - begun:.2f}", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(publish(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
