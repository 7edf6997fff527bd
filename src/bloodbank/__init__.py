"""Bloodbank: an event bus for agent pipelines that knows what caused what."""
