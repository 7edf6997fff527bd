"""Events of language models: a prompt, its response, or the error that came instead."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from bloodbank.events.failures import FailurePayload, Payload, no_fields, no_items
from bloodbank.events.registry import event


@event("llm.prompt")
class LLMPrompt(Payload):
    """A prompt was sent to a model.

    provider: for example `anthropic`, `openai`, `google`.
    model: name of the model as the provider writes it.
    tools: definitions of the tools that the model may call, as the provider takes them.
    """

    provider: str = Field(min_length=1)
    model: str | None = None
    prompt: str
    project: str | None = None
    working_dir: str | None = None
    domain: str | None = None
    tags: list[str] = Field(default_factory=no_items)
    temperature: float | None = Field(None, ge=0)
    tools: list[dict[str, Any]] = Field(default_factory=no_items)
    metadata: dict[str, Any] = Field(default_factory=no_fields)


@event("llm.response")
class LLMResponse(Payload):
    """A model answered.

    prompt_id: deprecated; name the prompt's event in `correlation_ids`.
    tokens_used: tokens of prompt and response together.
    duration_ms: milliseconds from sending the prompt to the last token.
    usage: token counts as the provider reports them.
    """

    provider: str = Field(min_length=1)
    model: str | None = None
    response: str
    prompt_id: str | None = None
    tokens_used: int | None = Field(None, ge=0)
    duration_ms: int | None = Field(None, ge=0)
    usage: dict[str, Any] | None = None
    metadata: dict[str, Any] = Field(default_factory=no_fields)


@event("llm.error")
class LLMErrorPayload(FailurePayload):
    """A model call failed: rate limit, timeout, refusal, network."""

    provider: str = Field(min_length=1)
    model: str | None = None
