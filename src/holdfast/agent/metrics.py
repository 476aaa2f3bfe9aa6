"""`/metrics`: what the agent knows, in Prometheus' text format. Names are fixed in docs/reference.md."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from holdfast.agent.view import AgentView, Shelved
from holdfast.wire.pages import SlotState


class _ViewCollector(Collector):
    """One look, told once."""

    def __init__(self, view: AgentView) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        view = self._view
        yield from self._arena()
        yield from self._trainers()
        yield from self._tiers()
        yield CounterMetricFamily("holdfast_errors", "Errors behind the training loop", view.error_count)
        yield GaugeMetricFamily("holdfast_attempt", "The attempt this agent owns", view.attempt)

    def _arena(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("holdfast_arena_bytes", "Shared memory of all slots", self._view.arena_bytes)
        slots = GaugeMetricFamily("holdfast_slots", "Slots by state", labels=["state"])
        states = [room.page.state for room in self._view.rooms.values()]
        for state in SlotState:
            slots.add_metric([state.name.lower()], states.count(state))
        yield slots

    def _trainers(self) -> Iterator[Metric]:
        saves = CounterMetricFamily("holdfast_saves", "Saves begun", labels=["rank"])
        stall = CounterMetricFamily("holdfast_stall_seconds", "Seconds training waited in save", labels=["rank"])
        last = GaugeMetricFamily("holdfast_stall_last_seconds", "The last save's stall", labels=["rank"])
        step = GaugeMetricFamily("holdfast_step", "The rank's current step", labels=["rank"])
        for trainer in self._view.trainers:
            rank = [str(trainer.rank)]
            saves.add_metric(rank, trainer.saves)
            stall.add_metric(rank, trainer.stall_s)
            last.add_metric(rank, trainer.stall_last_s)
            step.add_metric(rank, trainer.step)
        yield from (saves, stall, last, step)

    def _tiers(self) -> Iterator[Metric]:
        flushed = CounterMetricFamily("holdfast_flushed_bytes", "Bytes flushed to a tier", labels=["tier"])
        spent = CounterMetricFamily("holdfast_flush_seconds", "Seconds spent flushing to a tier", labels=["tier"])
        lagging = GaugeMetricFamily("holdfast_tier_lagging", "1 while a tier lags", labels=["tier"])
        degraded = GaugeMetricFamily("holdfast_tier_degraded", "1 while a tier fails", labels=["tier"])
        newest = GaugeMetricFamily("holdfast_committed_step", "Newest step committed on a tier", labels=["tier"])
        oldest = GaugeMetricFamily(
            "holdfast_flush_lag_seconds", "Age of the oldest image not there yet", labels=["tier"]
        )
        repaired = CounterMetricFamily("holdfast_repaired", "Bad copies re-made", labels=["tier"])
        files = GaugeMetricFamily("holdfast_recyclable_files", "Files that wait for new images", labels=["tier"])
        room = GaugeMetricFamily("holdfast_recyclable_bytes", "Their bytes", labels=["tier"])
        known = {v.name: v for v in self._view.tiers}
        for name in (r.name for r in self._view.settings.beyond_memory):
            state = known.get(name)
            shelved = self._view.shelved.get(name, Shelved())
            flushed.add_metric([name], shelved.flushed_bytes)
            spent.add_metric([name], shelved.flush_s)
            lagging.add_metric([name], int(state is not None and state.lagging))
            degraded.add_metric([name], int(state is not None and state.degraded is not None))
            newest.add_metric([name], self._view.newest_committed(name))
            oldest.add_metric([name], self._view.oldest_s(name))
            repaired.add_metric([name], shelved.repaired)
            files.add_metric([name], shelved.recyclable_files)
            room.add_metric([name], shelved.recyclable_bytes)
        yield from (flushed, spent, lagging, degraded, newest, oldest, repaired, files, room)


def metrics_text(view: AgentView) -> bytes:
    """Everything above, as the scrape answers it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ViewCollector(view))
    return generate_latest(registry)
