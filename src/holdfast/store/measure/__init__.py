"""Measure a tier through its contract: bandwidth by size and calls at once, latency of small calls."""

from holdfast.store.measure.leftovers import BENCH, Room, new_room, room_key, sweep_dead
from holdfast.store.measure.measure import Limits, Measure, Say

__all__ = ["BENCH", "Limits", "Measure", "Room", "Say", "new_room", "room_key", "sweep_dead"]
