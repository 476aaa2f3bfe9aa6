import re
from xml.etree import ElementTree

import pytest

from holdfast.report.page import Card, Page, cards, data, figure, table
from holdfast.report.svg import Drawing, Scale, axis_below, axis_left, tag


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 120, [0, 20, 40, 60, 80, 100, 120]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0.3, 0.7, [0.3, 0.4, 0.5, 0.6, 0.7]),
    ],
)
def test_ticks_are_round_and_in_range(low, high, ticks):
    assert Scale(low, high, 0, 1).ticks() == pytest.approx(ticks)


def test_a_scale_maps_and_clamps():
    x = Scale(10, 20, 100, 200)
    assert (x(15), x(25), x.clamp(25), x.clamp(0)) == (150, 250, 200, 100)


def test_a_scale_without_extent_is_no_division_by_zero():
    x = Scale(5, 5, 0, 100)
    assert x(5) == 0
    assert x.ticks() == [5]


def test_words_are_escaped_everywhere():
    hostile = '<b a="1">&'
    drawing = Drawing(10, 10, hostile)
    drawing.text((0, 0), hostile)
    drawing.rect(0, 0, 1, 1, class_="run", note=hostile)
    page = Page(title=hostile, verdict=hostile, lead=hostile)
    page.section(hostile, figure(drawing.render(), hostile, [("run", hostile)]))
    page.add(cards([Card(hostile, hostile, hostile)]))
    page.add(table([hostile], [[hostile, hostile]]), data("x", [hostile, "</script>"]))
    assert "<b a" not in page.render()
    assert page.render().count("</script>") == 1


def test_a_drawing_is_well_formed_xml():
    drawing = Drawing(100, 50, "a drawing")
    x, y = Scale(0, 10, 20, 100), Scale(0, 1, 40, 0)
    axis_below(drawing, x, 40, unit="s", grid_to_px=0)
    axis_left(drawing, y, 20, grid_to_px=100)
    drawing.path([(x(0), y(0)), (x(10), y(1))], class_="run")
    drawing.path([], class_="run")
    root = ElementTree.fromstring(drawing.render())
    assert [path.get("d") for path in root.findall("path")] == ["M20.0 40.0L100.0 0.0"]


def test_attributes_are_spelt_as_svg_wants_them():
    mark = tag("rect", class_="run", stroke_width=1.0, x=0.123456, id=None)
    assert mark == '<rect class="run" stroke-width="1" x="0.12"></rect>'


def test_every_class_a_page_uses_for_colour_has_a_rule():
    rules = set(re.findall(r"\.([a-z]+)", Page("", "", "").render()))
    assert {"run", "again", "memory", "disk", "kill", "wait", "down", "pale", "lane", "grid", "fall", "tick"} <= rules
