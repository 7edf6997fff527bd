"""Version 2 path: `uvicorn event_producers.http:app`."""

from bloodbank.http.app import create_app

__all__ = ["app"]

# Nothing is read or opened before the server starts.
app = create_app()
