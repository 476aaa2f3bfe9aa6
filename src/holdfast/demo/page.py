"""The demo's page: verdict, numbers, losses, timeline, and each kill from near."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from holdfast.demo import drawings
from holdfast.demo.events import Event
from holdfast.demo.facts import Flush
from holdfast.demo.summary import HEAD, SCENES, Summary
from holdfast.report.page import Card, Page, cards, data, figure, listing, paragraph, table
from holdfast.units import format_bytes, format_seconds

_CURVES_KEY = (
    ("pale", "never interrupted, without Holdfast"),
    ("run", "killed and restarted"),
    ("again", "trained again"),
)
_LANES_KEY = (
    ("run", "a step"),
    ("again", "a step trained again"),
    ("kill", "cut by the kill"),
    ("memory", "training waits for a save; memory"),
    ("disk", "on its way to disk, until committed"),
    ("down", "not training"),
)


def render(
    summary: Summary, events: dict[str, list[Event]], *, command: str, machine: Sequence[tuple[str, str]]
) -> str:
    """The whole page. `events` are those of both runs, kept in it for whoever wants to compute anything again."""
    page = Page(title="holdfast demo", verdict=summary.headline(), lead=_lead(summary), good=summary.good)
    for surprise in summary.surprises:
        page.add(paragraph(f"Not as told: {surprise}."))
    page.add(cards(_cards(summary)))
    page.section("Losses", figure(drawings.losses(summary.reference, summary.run), _curves_words(summary), _CURVES_KEY))
    page.section("What happened", figure(drawings.timeline(summary.run), _timeline_words(summary), _LANES_KEY))
    page.section("Each kill from near", *_close_ups(summary))
    page.section("In numbers", table(HEAD, summary.rows()), table(_FLUSH_HEAD, _flush_rows(summary)))
    page.section("Made with", listing(command), table(("", ""), machine), paragraph(_EVENTS))
    page.add(data("summary", summary.to_dict()), data("events", {"script": asdict(summary.script), **events}))
    return page.render()


_EVENTS = (
    "Every number here is computed from the event logs of the processes. They are part of this page, as JSON, in the "
    "element with the id “events”; the numbers above are in “summary”."
)
_FLUSH_HEAD = ("checkpoint", "attempt", "on disk", "committed after the save")


def _lead(summary: Summary) -> str:
    run, verdict, script = summary.run, summary.verdict, summary.script
    return (
        f"A GPT of {run.parameters / 1e6:.3g} million parameters, trained by two processes on the sources of Python's "
        f"standard library for {script.steps} steps: once undisturbed, once killed again and again. The "
        f"{verdict.compared} losses that its two ranks ever computed the second time were compared with the first "
        f"run's, and {'all are equal' if not verdict.different else f'{len(verdict.different)} differ'}; "
        f"so {'are' if verdict.weights_equal else 'are not'} the final weights."
    )


def _cards(summary: Summary) -> list[Card]:
    run, verdict, script = summary.run, summary.verdict, summary.script
    stalls, flushes = summary.stalls_s(), summary.due_flushes()
    cuts = run.interruptions
    loads = ", ".join(f"{format_seconds(cut.life.load_s)} from {cut.life.source}" for cut in cuts)
    return [
        Card(
            "losses equal",
            f"{verdict.compared - len(verdict.different)} of {verdict.compared}",
            "compared as bits, not within a tolerance",
        ),
        Card(
            "training waits for a save",
            format_seconds(statistics.median(stalls)) if stalls else "-",
            f"median of {len(stalls)}, at most {format_seconds(max(stalls, default=0.0))}; "
            f"every {script.memory_every} steps, {format_bytes(summary.state_bytes())} in two shares",
        ),
        Card(
            "on disk after",
            format_seconds(statistics.median([f.flush_s for f in flushes])) if flushes else "-",
            f"median of {len(flushes)} flushes, one every {script.disk_every} steps; nobody waits for them",
        ),
        Card("finished steps lost", " / ".join(str(cut.lost_steps) for cut in cuts), "at each kill; trained again"),
        Card(
            "training again after",
            " / ".join(f"{cut.recovery_s:.1f}" for cut in cuts) + " s",
            f"of which the loads took {loads}",
        ),
        Card(
            "a step takes",
            format_seconds(run.step_s()),
            f"median, saves included; {format_seconds(summary.reference.step_s())} in the run without Holdfast",
        ),
    ]


def _curves_words(summary: Summary) -> str:
    first, last = summary.reference.curve()[0], summary.reference.curve()[-1]
    return (
        f"The mean of both ranks' losses, from {first[1]:.3f} at step {first[0]} to {last[1]:.3f} at step {last[0]}. "
        "The red lines stand where a kill cut the training."
    )


def _timeline_words(summary: Summary) -> str:
    return (
        f"Seconds after the launch of the interrupted run, {format_seconds(summary.run.ended)} in all. Above, the step "
        "that training had reached: it falls back by what was lost and climbs again. Rest the pointer on a bar."
    )


def _close_ups(summary: Summary) -> list[str]:
    out = []
    for number, cut in enumerate(summary.run.interruptions, 1):
        parts = ", ".join(f"{name} {format_seconds(end - start)}" for name, start, end in drawings.recovery_parts(cut))
        drawing = drawings.close_up(summary.run, number, SCENES[cut.scene])
        out.append(figure(drawing, f"The way back: {parts}."))
    return out


def _flush_rows(summary: Summary) -> list[Sequence[str]]:
    return [
        (
            f"step {f.step}",
            str(f.attempt),
            format_bytes(f.size_bytes),
            ", ".join([format_seconds(f.flush_s), *_circumstances(summary, f)]),
        )
        for f in summary.run.flushes
    ]


def _circumstances(summary: Summary, flush: Flush) -> Iterator[str]:
    if not flush.due:
        yield "promoted though not due"
    for number, cut in enumerate(summary.run.interruptions, 1):
        if flush.saved < cut.t < flush.committed:
            yield f"by the agent, after kill {number}"
