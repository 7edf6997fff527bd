"""What can be wrong with a request itself, before there is an event or a question in it.

RequestRefused                the request is at fault                                   400
├── InvalidJson               the body is no JSON                                       400
│   └── JsonTooDeep           the body nests deeper than the settings allow             400
├── KeyRequired               no API key, or a wrong one                                401
├── InvalidSignature          a webhook is not signed, or not with a secret of ours     401
├── ScopeMissing              the key may not do this                                   403
├── LoopbackOnly              no keys are set and the client is not on this machine     403
├── CrossSite                 no keys are set and a page of another site sent it        403
├── WebhookSecretMissing      the webhook cannot be verified: no secret is set          403
├── SchemaNotFound            no payload model is registered for the type               404
├── JobNotFound               no job of this server has this id                         404
├── DemoUnavailable           the demo is not played on this bus                        409
├── BodyTimeout               the body did not arrive in time                           408
├── BodyTooLarge              the body is over its limit                                413
│   └── BatchTooLarge         more events than one request may bring                    413
├── AddressTooLong            path or query over their limit                            414
├── UnsupportedMediaType      the body is not declared as JSON                          415
└── TooManyHeaders            more header fields than a request may have                431
"""

from __future__ import annotations

from collections.abc import Mapping

from bloodbank.errors import BloodbankError


class RequestRefused(BloodbankError):
    """The request is at fault; nothing was done. `headers` go into the answer."""

    code = "invalid_request"

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = dict(headers or {})


class InvalidJson(RequestRefused):
    """The body is no JSON."""

    code = "invalid_json"


class JsonTooDeep(InvalidJson):
    """The body nests deeper than the settings allow."""

    code = "json_too_deep"


class KeyRequired(RequestRefused):
    """No API key, or a wrong one."""

    code = "key_required"


class InvalidSignature(RequestRefused):
    """A webhook is not signed, or not with a secret of ours."""

    code = "invalid_signature"


class ScopeMissing(RequestRefused):
    """The key may not do this."""

    code = "insufficient_scope"


class LoopbackOnly(RequestRefused):
    """No keys are set and the client is not on this machine."""

    code = "loopback_only"


class CrossSite(RequestRefused):
    """No keys are set, and a page of another site sent a request that changes something."""

    code = "cross_site"


class DemoUnavailable(RequestRefused):
    """The demo is played on the embedded bus only."""

    code = "demo_unavailable"


class WebhookSecretMissing(RequestRefused):
    """The webhook cannot be verified: no secret is set."""

    code = "webhook_secret_missing"


class SchemaNotFound(RequestRefused):
    """No payload model is registered for the type."""

    code = "schema_not_found"


class JobNotFound(RequestRefused):
    """No job of this server has this id, or it ended long ago."""

    code = "job_not_found"


class BodyTimeout(RequestRefused):
    """The body did not arrive in time."""

    code = "body_timeout"


class BodyTooLarge(RequestRefused):
    """The body is over its limit."""

    code = "body_too_large"


class BatchTooLarge(BodyTooLarge):
    """More events than one request may bring."""

    code = "batch_too_large"


class AddressTooLong(RequestRefused):
    """Path or query over their limit."""

    code = "address_too_long"


class UnsupportedMediaType(RequestRefused):
    """The body is not declared as JSON."""

    code = "unsupported_media_type"


class TooManyHeaders(RequestRefused):
    """More header fields than a request may have."""

    code = "too_many_headers"
