"""Version 2 path: `from event_producers.correlation_tracker import CorrelationTracker`."""

from bloodbank.correlation_tracker import CorrelationTracker

__all__ = ["CorrelationTracker"]
