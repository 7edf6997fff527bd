"""Version 2 path: `from event_producers.config import Settings`."""

from bloodbank.config import Settings, load_settings

__all__ = ["Settings", "load_settings"]
