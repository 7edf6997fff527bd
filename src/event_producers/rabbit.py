"""Version 2 path: `from event_producers.rabbit import Publisher`."""

from bloodbank.publisher import Publisher, PublishResult

__all__ = ["PublishResult", "Publisher"]
