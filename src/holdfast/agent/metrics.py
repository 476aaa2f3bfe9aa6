"""`/metrics`: what the agent knows, in Prometheus' text format. Names are fixed in docs/reference.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from holdfast.wire.pages import SlotState

if TYPE_CHECKING:
    from holdfast.agent.agent import Agent


class _AgentCollector(Collector):
    """Reads pages and machines when asked; keeps nothing."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def collect(self) -> Iterator[Metric]:
        yield from self._arena()
        yield from self._trainers()
        yield from self._tiers()
        yield CounterMetricFamily("holdfast_errors", "Errors behind the training loop", self._agent.run_page.errors)
        yield GaugeMetricFamily("holdfast_attempt", "The attempt this agent owns", self._agent.run_page.attempt)

    def _arena(self) -> Iterator[Metric]:
        arena = self._agent.arena
        yield GaugeMetricFamily("holdfast_arena_bytes", "Shared memory of all slots", arena.used_bytes)
        slots = GaugeMetricFamily("holdfast_slots", "Slots by state", labels=["state"])
        for state in SlotState:
            slots.add_metric([state.name.lower()], sum(1 for _ in arena.find(state)))
        yield slots

    def _trainers(self) -> Iterator[Metric]:
        saves = CounterMetricFamily("holdfast_saves", "Saves begun", labels=["rank"])
        stall = CounterMetricFamily("holdfast_stall_seconds", "Seconds training waited in save", labels=["rank"])
        last = GaugeMetricFamily("holdfast_stall_last_seconds", "The last save's stall", labels=["rank"])
        step = GaugeMetricFamily("holdfast_step", "The rank's current step", labels=["rank"])
        for rank, trainer in sorted(self._agent.launches.trainers.items()):
            page = trainer.page
            saves.add_metric([str(rank)], page.saves)
            stall.add_metric([str(rank)], page.stall_ns / 1e9)
            last.add_metric([str(rank)], page.stall_last_ns / 1e9)
            step.add_metric([str(rank)], page.current_step)
        yield from (saves, stall, last, step)

    def _tiers(self) -> Iterator[Metric]:
        flushed = CounterMetricFamily("holdfast_flushed_bytes", "Bytes flushed to a tier", labels=["tier"])
        spent = CounterMetricFamily("holdfast_flush_seconds", "Seconds spent flushing to a tier", labels=["tier"])
        lagging = GaugeMetricFamily("holdfast_tier_lagging", "1 while a tier lags", labels=["tier"])
        degraded = GaugeMetricFamily("holdfast_tier_degraded", "1 while a tier fails", labels=["tier"])
        newest = GaugeMetricFamily("holdfast_committed_step", "Newest step committed on a tier", labels=["tier"])
        files = GaugeMetricFamily("holdfast_recyclable_files", "Files that wait for new images", labels=["tier"])
        room = GaugeMetricFamily("holdfast_recyclable_bytes", "Their bytes", labels=["tier"])
        views = {v.name: v for v in self._agent.executor.node.tiers()}
        for rule in self._agent.settings.tiers:
            if rule.is_memory:
                continue
            state = views.get(rule.name)
            n_bytes, seconds = self._agent.shelf.flushed.get(rule.name, (0, 0.0))
            flushed.add_metric([rule.name], n_bytes)
            spent.add_metric([rule.name], seconds)
            lagging.add_metric([rule.name], int(state is not None and state.lagging))
            degraded.add_metric([rule.name], int(state is not None and state.degraded is not None))
            newest.add_metric([rule.name], self._agent.newest_committed(rule.name))
            for family, value in zip((files, room), self._agent.shelf.recyclable(rule.name), strict=True):
                family.add_metric([rule.name], value)
        yield from (flushed, spent, lagging, degraded, newest, files, room)


def metrics_text(agent: Agent) -> bytes:
    """Everything above, as the scrape answers it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_AgentCollector(agent))
    return generate_latest(registry)
