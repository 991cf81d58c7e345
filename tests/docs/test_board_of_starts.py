"""What the documentation says of the board of starts has the committed board's figures, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from alora_trainer.experiment.board.board_file import read_board
from alora_trainer.experiment.board.page import render_picture
from alora_trainer.experiment.board.text_table import board_tables
from tests.docs.pages import ROOT
from tests.docs.small_board import OPENBOOK, SCIQ, SmallBoard

TASKS = (SCIQ, OPENBOOK)
OURS = ("lora_natural", "lora_contrastive", "lora_natural_frozen", "lora_contrastive_frozen", "kfac_contrastive")


@pytest.fixture(scope="module")
def starts() -> SmallBoard:
    return SmallBoard("board-starts")


def rivals(starts: SmallBoard, board: SmallBoard) -> list[str]:
    """Rows that are whole, and neither the small board's nor ours."""
    small = {row for _, row in board.rows}
    return [row for task, row in starts.rows if task == SCIQ and row not in small and row not in OURS]


def sentences(starts: SmallBoard, board: SmallBoard) -> list[str]:
    """What the page says, by the figures."""
    area, tested, figures, rows = starts.area, starts.tested, starts.figures, starts.rows
    own = "lora_natural"
    at = {
        share: [rows[OPENBOOK, row]["equal"][f"rise_at_{share}"]["mean"] for row in (own, "lora")]
        for share in ("90", "95")
    }
    natural, lora = (figures[SCIQ, row, "learning_rate=0.001"] for row in (own, "lora"))
    each = ", ".join(f"`{row}` {area[SCIQ, row]} and {area[OPENBOOK, row]}" for row in rivals(starts, board))
    late = rows[OPENBOOK, "kfac_natural"]["equal"]["rise_at_95"]["mean"]
    taken = [rows[task, own]["taken"]["figures"] for task in TASKS]
    times = [one["rise_other"]["mean"] / one["rise_recorded"]["mean"] for one in taken]
    unfinished = starts.whole["results"][0]["not_finished"]
    new = len(starts.whole["written"]["rows"].keys() - board.whole["written"]["rows"].keys())
    sure = [tested[OPENBOOK, f"rise_at_{share}", own] for share in ("90", "95")]
    return [
        f"{new - len(unfinished)} of its {new} new rows are whole",
        f"rose by {at['90'][0]:.3f} for {at['90'][1]:.3f} at 90 % of what LoRA learned, and by {at['95'][0]:.3f} for "
        f"{at['95'][1]:.3f} at 95 % (P = {sure[0]:.3f} and {sure[1]:.3f} after Holm's correction over the {starts.planned} "
        f"comparisons that the board plans); its area is {area[OPENBOOK, own]} for {area[OPENBOOK, 'lora']} "
        f"(P = {tested[OPENBOOK, 'area', own]:.2f})",
        f"area {area[SCIQ, own]} for {area[SCIQ, 'lora']}, P = {starts.alone[SCIQ, 'area', own]:.3f} before any correction",
        f"it learned {natural['learned']:.3f} and forgot {natural['rise']:.3f}, where LoRA learned {lora['learned']:.3f} and "
        f"forgot {lora['rise']:.3f}",
        f"{each} (SciQ and OpenBookQA; LoRA {area[SCIQ, 'lora']} and {area[OPENBOOK, 'lora']}, `{own}` {area[SCIQ, own]} and "
        f"{area[OPENBOOK, own]})",
        f"Shown to be worse than `{own}` on OpenBookQA: {_worse(starts)}",
        f"area {area[SCIQ, 'kfac_natural']} for {area[SCIQ, own]} on SciQ, {area[OPENBOOK, 'kfac_natural']} for "
        f"{area[OPENBOOK, own]} on OpenBookQA, where it got to 95 % at {late:.3f} for {at['95'][0]:.3f}",
        f"forgets {times[0]:.1f} (SciQ) and {times[1]:.1f} times (OpenBookQA) as much",
    ]


_MEASURES = {"rise_at_90": "at 90 %", "rise_at_95": "at 95 %", "area": "by area"}


def _worse(starts: SmallBoard) -> str:
    (result,) = (one for one in starts.whole["results"] if one["task"] == OPENBOOK)
    worse = [
        f"`{one['row']}` ({_MEASURES[one['measure']]}, P = {one['p_holm']:.3f})"
        for one in result["comparisons"]
        if (one["against"], one["over"], one["verdict"]) == ("lora_natural", "seeds", "worse")
    ]
    return ", ".join(worse)


def test_the_page_has_its_tables_and_figures(starts: SmallBoard, board: SmallBoard) -> None:
    assert board_tables(starts.whole) in starts.page
    for sentence in sentences(starts, board):
        assert sentence in starts.said, sentence


def test_the_readme_says_the_same(starts: SmallBoard) -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    own, lora = (starts.rows[OPENBOOK, row]["equal"]["rise_at_95"]["mean"] for row in ("lora_natural", "lora"))
    said = f"raised general loss by {own:.3f} nats for {lora:.3f} on OpenBookQA where as much was learned (95 %)"
    assert f"{said}; on SciQ no difference is shown" in readme


def test_what_is_shown_and_what_is_not(starts: SmallBoard, board: SmallBoard) -> None:
    """Words that no figure stands in."""
    own = "lora_natural"
    assert not starts.better(SCIQ) and not starts.worse(SCIQ, own)
    assert not any(each is not None for each in starts.rows[SCIQ, own]["equal"]["rise_at_90"]["each"].values())
    assert {(own, "rise_at_90"), (own, "rise_at_95")} <= starts.better(OPENBOOK)
    assert (own, "area") not in starts.better(OPENBOOK)
    for task in TASKS:
        others = set(rivals(starts, board))
        assert not {row for row, _ in starts.better(task)} & others
        assert not starts.better(task, own)
        assert {row for row, _ in starts.worse(task, own)} <= others
        assert all(float(starts.area[task, row]) < float(starts.area[task, own]) for row in others)


def test_how_many_documents_there_are(starts: SmallBoard, board: SmallBoard) -> None:
    """And that the small board's are not compared, whose answers are gone."""
    found = [
        {one["units"] for one in result["comparisons"] if one["over"] == "documents"}
        for each in (starts, board)
        for result in each.whole["results"]
    ]
    (count,) = found[0] - {None}
    assert found == [{None, count}] * 2 + [{None}] * 2
    assert f"the documents are few ({count} on the committed boards" in starts.said


def test_the_picture(starts: SmallBoard, tmp_path: Path) -> None:
    drawn = render_picture([ROOT / "results" / "board-starts.json"], tmp_path / "board.svg")
    assert drawn.read_text(encoding="utf-8") == (ROOT / "results" / "board-starts.svg").read_text(encoding="utf-8")


def test_it_is_the_board_that_is_shipped(starts: SmallBoard) -> None:
    assert starts.whole["written"] == read_board(ROOT / "recipes" / "boards" / "starts.yaml").written
