"""The page: whole, without network, the same twice; several boards side by side; nothing of somebody's JSON is trusted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.board.board_json import read_board_json
from alora_trainer.experiment.board.page import board_page, render_boards, render_picture
from alora_trainer.experiment.board.page_chart import marks_of
from alora_trainer.experiment.board.published import read_published
from alora_trainer.experiment.board.text_table import board_tables
from alora_trainer.experiment.report.drawing.marks import SHAPES
from alora_trainer.experiment.report.drawing.page_script import ARITHMETIC, BEHAVIOUR
from alora_trainer.experiment.report.drawing.scales import log_ticks, spread, ticks
from alora_trainer.experiment.report.style import look
from tests.board.made_up_board import made_up_board

_VOID = {"meta", "input", "br"}


class Parsed(HTMLParser):
    """Every element with its attributes and text; that all are closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        return [
            own
            for name, own in self.found
            if name == tag and (kind is None or kind in (own.get("class") or "").split())
        ]


@pytest.fixture(scope="module")
def two() -> str:
    return board_page([made_up_board(), made_up_board("theirs", "another")])


def test_it_is_whole_and_needs_nothing(two: str) -> None:
    page = Parsed(two)
    assert two.startswith("<!DOCTYPE html>") and page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in (page.all("meta")[1]["content"] or "")
    for tag, own in page.found:
        assert not {"src", "href", "srcset"} & set(own), tag
    assert (
        "http://" not in two.replace("http://www.w3.org/2000/svg", "")
        and "https://" not in two
        and "@import" not in two
    )
    assert "prefers-color-scheme: dark" in two
    assert two == board_page([made_up_board(), made_up_board("theirs", "another")])


def test_two_boards_stand_side_by_side(two: str) -> None:
    page = Parsed(two)
    assert len(page.all("section")) == 2 == len(page.all("figure", "chart"))
    assert [two.count(f'<button type="button">{kind}</button>') for kind in ("books (recorded)", "code")] == [2, 2]
    text = " ".join(page.texts)
    assert "little on sums (made-up)" in text and "another on sums (theirs)" in text
    (table, *_) = re.findall(r"<table class=\"sorted\">.*?</table>", two)
    assert table.count("<tr data-row") == 6 and "another (theirs)" in table
    assert "not finished" in text.lower() and "replay" in text


def test_nothing_of_a_json_becomes_markup(two: str) -> None:
    page = Parsed(two)
    assert not page.all("b") and not page.all("i")
    assert "<b>low" in " ".join(page.texts) and "made-up & </script> ·" in " ".join(page.texts)
    assert two.count("</script>") == 3


def test_charts_have_every_training_in_the_box_and_in_words(two: str) -> None:
    board = made_up_board()
    marks = marks_of(board["results"][0], board["published"])
    assert [mark.row for mark in marks].count("published") == 1 and marks[0].row == "base"
    page = Parsed(two)
    points = [own for own in page.all("g", "point")]
    assert len(points) == 2 * len(marks)
    for own in points:
        where = re.fullmatch(r"translate\((-?[\d.]+) (-?[\d.]+)\)", own["transform"] or "")
        assert where and (own.get("style") or 52 <= float(where[1]) <= 312 and 12 <= float(where[2]) <= 282)
        assert own["tabindex"] == "0" and json.loads(own["data-values"] or "")
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or "accuracy (%) against rise" in (svg["aria-label"] or "")
    (first, *_) = re.findall(r"<svg viewBox=\"0 0 460 330\".*?</svg>", two, re.S)
    assert ElementTree.fromstring(first).tag == "svg"  # well-formed on its own


def test_a_picture_has_the_curves_of_every_model_and_task_and_their_names(tmp_path: Path) -> None:
    (tmp_path / "board.json").write_text(json.dumps(made_up_board()))
    picture = ElementTree.parse(render_picture([tmp_path], tmp_path / "picture.svg"))
    names = ["".join(element.itertext()) for element in picture.iter() if element.tag.rpartition("}")[2] == "text"]
    assert "little on sums" in names
    size = {name: float(picture.getroot().attrib[name]) for name in ("width", "height")}
    left, top, width, height = map(float, picture.getroot().attrib["viewBox"].split())
    assert size["width"] / size["height"] == pytest.approx(width / height) and left == top == 0
    assert any(name.startswith("kfac") for name in names) and any(name.startswith("<b>low") for name in names)


def test_the_tables_as_text_have_a_line_a_row_and_what_is_not_finished() -> None:
    (heading, _, header, _, *rows, _, missing) = board_tables(made_up_board()).splitlines()
    assert heading == "little on sums" and missing == "not finished: replay"
    cells = {name.strip(): [cell.strip() for cell in rest] for _, name, *rest, _ in (row.split("|") for row in rows)}
    assert header.split("|")[2].strip() == "rise at 90 %" and list(cells) == ["lora", "kfac", "&lt;b>low"]
    (result,) = made_up_board()["results"]
    found = result["rows"][1]["equal"]["rise_at_90"]
    assert cells["kfac"][0] == f"{found['mean']:.4f} ± {found['error']:.4f}"
    assert cells["&lt;b>low"][:2] == ["-", "-"]  # it never learned so much


def test_every_marker_has_a_shape() -> None:
    names = [f"row {number}" for number in range(25)]
    assert {look(name, names).marker for name in [*names, "alora", "base"]} <= set(SHAPES)


def test_what_is_concluded_is_said(two: str) -> None:
    text = " ".join(Parsed(two).texts)
    assert re.search(r"kfac against lora: better\. At 90 % .* rises by 0\.01\d\d, with lora by 0\.1[56]\d\d nats", text)
    assert "<b>low against lora: not better, since <b>low did not learn 90 %" in text
    assert "By their seeds alone" in text and "recorded kinds: books; of others: code" in text


def _changed(**changes: Any) -> dict[str, Any]:
    board = made_up_board()
    board["results"][0] |= changes
    return board


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (made_up_board(schema=3), "has schema 3, and this version reads 2"),
        (made_up_board(schema=1), "reads 2: the same `alora board` in its folder writes it anew"),
        ({"schema": 1}, "is no board"),
        ([], "is no board"),
        (made_up_board(title=3), "no 'title' of the right kind"),
        (_changed(finals=[{"row": "lora"}]), r"finals\[0\] has no 'trial'"),
        (_changed(base=[]), "no 'base'"),
        (_changed(comparisons=[3]), r"comparisons\[0\] is no object"),
    ],
)
def test_what_is_no_board_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "board.json").write_text(json.dumps(content))
    with pytest.raises(ALoRAError, match=message):
        read_board_json(tmp_path)


def test_half_a_file_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    whole = json.dumps(made_up_board())
    (tmp_path / "board.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(ALoRAError, match="is damaged"):
        render_boards([tmp_path], tmp_path / "board.html")
    assert not (tmp_path / "board.html").exists()
    with pytest.raises(ALoRAError, match="there is no file"):
        render_boards([tmp_path / "none.json"], tmp_path / "board.html")
    (tmp_path / "board.json").write_text(whole)
    with pytest.raises(ALoRAError, match="named twice"):
        render_boards([tmp_path / "board.json"] * 2, tmp_path / "board.html")
    Parsed(render_boards([tmp_path], tmp_path / "page" / "board.html").read_text())


def test_a_figure_that_is_missing_or_no_number_is_left_out() -> None:
    board = made_up_board()
    for final in board["results"][0]["finals"]:
        for figures in final["seeds"].values():
            figures["kl"] = None
            figures["top_changed"] = "<script>"
    page = board_page([board])
    Parsed(page)
    assert '<option value="kl">' not in page and '<option value="top_changed">' not in page


def test_published_figures_are_checked(tmp_path: Path) -> None:
    good = {"name": "x", "source": "y", "task": "z", "points": [{"label": "a", "rise": 0.1}]}
    path = tmp_path / "p.json"
    for wrong, message in (
        ([], "must be an object"),
        ({**good, "nam": 1}, "did you mean .*name"),
        ({**good, "points": []}, "no points"),
        ({**good, "points": [{"label": "a", "rize": 1}]}, "rise"),
        ({**good, "points": [{"label": "a", "rise": "1"}]}, "is no number"),
        ({**good, "task": None}, "no task"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ALoRAError, match=message):
            read_published(path)
    path.write_text(json.dumps(good))
    assert read_published(path) == good


@given(st.floats(-1e3, 1e3), st.floats(1e-4, 1e3))
def test_ticks_are_round_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 8 and found == sorted(set(found))
    assert all(low - 1e-6 * span <= value <= low + span * (1 + 1e-6) for value in found)


@given(st.lists(st.floats(-50, 150), max_size=9))
def test_names_do_not_lie_on_each_other(wanted: list[float]) -> None:
    """Within 0 and 100 there is room for nine of them twelve apart."""
    found = spread(wanted, 12.0, 0.0, 100.0)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    at = [found[index] for index in order]
    assert all(after - before >= 12 - 1e-6 for before, after in zip(at, at[1:], strict=False))
    assert all(-1e-6 <= one <= 100 + 1e-6 for one in at)


def test_where_there_is_room_a_name_stands_where_it_is_wanted() -> None:
    assert spread([80.0, 10.0, 45.0], 12.0, 0.0, 100.0) == [80.0, 10.0, 45.0]


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("needs node, to try the page's script")
    return found


def test_the_script_is_javascript_and_its_arithmetic_is_that_of_the_page(node: str, tmp_path: Path) -> None:
    (tmp_path / "all.js").write_text(ARITHMETIC + BEHAVIOUR)
    subprocess.run([node, "--check", str(tmp_path / "all.js")], check=True)
    cases = [(0.0, 1.0), (-0.013, 0.19), (31.4, 48.9), (-1.0, 0.0), (0.0021, 0.0029)]
    wanted = [[5.0, 90.0], [50.0, 50.0, 52.0], [99.0, 98.0, 97.0, 1.0], [float(7 * k % 40) for k in range(12)]]
    code = f"""{ARITHMETIC}
    const WANTED = {json.dumps(wanted)};
    const out = {{
      ticks: {json.dumps(cases)}.map(([a, b]) => ticks(a, b)),
      place: [place(0.5, 0, 1, 52, 390), place(0, 0, 1, 282, 12), place(1, 0, 1, 282, 12)],
      extent: [extent([1, 3]), extent([2, 2]), extent([0])],
      zoomed: zoomed([0, 10], 0.5, 2),
      log: [[-3, 0.4], [-0.1, 1.2], [-20, 3]].map(([a, b]) => logTicks(a, b)),
      spread: WANTED.map(one => spread(one, 12, 0, 100)),
      up: ["3", "", "10", "2"].sort((a, b) => compare(a, b, false)),
      down: ["3", "", "10", "2"].sort((a, b) => compare(a, b, true)),
      words: ["b", "a", "c"].sort((a, b) => compare(a, b, false)),
    }};
    console.log(JSON.stringify(out));"""
    done = subprocess.run([node, "-e", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["ticks"] == [pytest.approx(ticks(*case)) for case in cases]
    assert found["place"] == [221, 282, 12]
    assert found["extent"] == [pytest.approx([0.86, 3.14]), pytest.approx([1.86, 2.14]), pytest.approx([-0.07, 0.07])]
    assert found["zoomed"] == [1, 6]
    assert found["log"] == [pytest.approx(log_ticks(*case)) for case in ((-3, 0.4), (-0.1, 1.2), (-20, 3))]
    assert found["spread"] == [pytest.approx(spread(one, 12, 0, 100)) for one in wanted]
    assert (found["up"], found["down"], found["words"]) == (["2", "3", "10", ""], ["10", "3", "2", ""], ["a", "b", "c"])
