"""Prints what an event came from; the examples share it."""

from uuid import UUID

from bloodbank import CorrelationTracker, Direction


async def print_lineage(tracker: CorrelationTracker, event_id: UUID, way: Direction = Direction.ANCESTORS) -> None:
    """Print the event and its causes or effects, causes first, each with the types of its direct causes."""
    graph = await tracker.walk(event_id, way)
    types = {step.node.event_id: step.node.link.event_type for step in graph.steps if step.node.link}
    for step in graph.steps:
        causes = [types[parent] for parent in step.node.parents if parent in types]
        print(f"  {types[step.node.event_id]}", *(["  because of", ", ".join(causes)] if causes else []))
