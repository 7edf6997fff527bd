"""A short way to the routes that publish.

From the application to an endpoint FastAPI matches every route, opens three exit stacks, solves dependencies and
wraps `send` for each layer that looks out for exceptions. The endpoints here take nothing but the request and the
words of its path, so none of that does anything for them, and it costs more than publishing does.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from bloodbank.errors import BloodbankError
from bloodbank.http.problems import problem_response


class Shortcut:
    """ASGI middleware, the innermost one: calls the endpoint of a POST route itself.

    The routes stay FastAPI's, which describes and serves them: another method, another path, or a mistake in the
    address goes there. Either way the same endpoint runs, and what it raises becomes the same problem.

    routes: whose endpoints take the request and the words of the path. Fixed paths go before those with words.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[APIRoute]) -> None:
        self._app = app
        routes = [route for route in routes if route.methods == {"POST"}]
        self._fixed = {route.path: route for route in routes if not route.param_convertors}
        self._patterns = [(route.path_regex, route) for route in routes if route.param_convertors]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to publish, or pass the request on."""
        route = self._route(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await route.endpoint(Request(scope, receive, send), **scope["path_params"])
        except BloodbankError as error:
            response = problem_response(error, scope)
            # An outage is one error for all who publish meanwhile; it shall not gather a traceback of each.
            error.__traceback__ = None
        await response(scope, receive, send)

    def _route(self, scope: Scope) -> APIRoute | None:
        """Return the route of a path, and note in the scope what FastAPI's router would."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        route, words = self._fixed.get(path), dict[str, str]()
        if route is None:
            for pattern, candidate in self._patterns:
                if match := pattern.match(path):
                    route, words = candidate, match.groupdict()
                    break
            else:
                return None
        scope.update(route=route, endpoint=route.endpoint, path_params=words)
        return route
