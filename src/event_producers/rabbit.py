"""Version 2 path: `from event_producers.rabbit import Publisher`."""

from bloodbank.acceptance import PublishResult
from bloodbank.publisher import Publisher

__all__ = ["PublishResult", "Publisher"]
