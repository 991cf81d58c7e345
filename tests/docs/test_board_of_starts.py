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


def shown(starts: SmallBoard, task: str, verdict: str, against: str) -> set[str]:
    """Rows of which something is shown over seeds."""
    (result,) = (one for one in starts.whole["results"] if one["task"] == task)
    return {
        one["row"]
        for one in result["comparisons"]
        if one["over"] == "seeds" and one["verdict"] == verdict and one["against"] == against
    }


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
    alone, so_far = _areas_tested(starts)
    whole = 2 * len(starts.whole["written"]["rows"]) - 3  # each beside LoRA, and each of the others beside the start
    return [
        f"{new - len(unfinished)} of its {new} new rows are whole",
        f"area {area[SCIQ, own]} for {area[SCIQ, 'lora']} (P = {tested[SCIQ, 'hypervolume', own]:.3f} after Holm's correction "
        f"over the {so_far} comparisons so far; uncorrected {alone:.4f}, which all {whole} of the whole board would make "
        f"{whole * alone:.3f})",
        f"rose by {at['90'][0]:.3f} for {at['90'][1]:.3f} at 90 % of what LoRA learned, and by {at['95'][0]:.3f} for "
        f"{at['95'][1]:.3f} at 95 % (P = {tested[OPENBOOK, 'rise_at_90', own]:.3f} and "
        f"{tested[OPENBOOK, 'rise_at_95', own]:.3f})",
        f"it learned {natural['learned']:.3f} and forgot {natural['rise']:.3f}, where LoRA learned {lora['learned']:.3f} and "
        f"forgot {lora['rise']:.3f}",
        f"{each} (SciQ and OpenBookQA; LoRA {area[SCIQ, 'lora']} and {area[OPENBOOK, 'lora']}, `{own}` {area[SCIQ, own]} and "
        f"{area[OPENBOOK, own]})",
        f"area {area[SCIQ, 'kfac_natural']} for {area[SCIQ, own]} on SciQ, {area[OPENBOOK, 'kfac_natural']} for "
        f"{area[OPENBOOK, own]} on OpenBookQA, where it got to 95 % at {late:.3f} for {at['95'][0]:.3f}",
        f"forgets {times[0]:.1f} (SciQ) and {times[1]:.1f} times (OpenBookQA) as much",
        f"Shown to be worse than `{own}` on OpenBookQA, by area: {_worse(starts)}",
    ]


def _areas_tested(starts: SmallBoard) -> tuple[float, int]:
    """P of `lora_natural`'s area beside LoRA's on SciQ, uncorrected, and of how many comparisons it is one."""
    (result,) = (one for one in starts.whole["results"] if one["task"] == SCIQ)
    areas = {(one["row"], one["against"]): one["p"] for one in result["comparisons"] if one["measure"] == "hypervolume"}
    assert None not in areas.values() and areas["lora_natural", "lora"] == min(areas.values())
    return areas["lora_natural", "lora"], len(areas)


def _worse(starts: SmallBoard) -> str:
    (result,) = (one for one in starts.whole["results"] if one["task"] == OPENBOOK)
    worse = {
        one["row"]: one["p_holm"]
        for one in result["comparisons"]
        if (one["against"], one["measure"], one["verdict"]) == ("lora_natural", "hypervolume", "worse")
    }
    return ", ".join(f"`{row}` (P = {p:.3f})" for row, p in worse.items())


def test_the_page_has_its_tables_and_figures(starts: SmallBoard, board: SmallBoard) -> None:
    assert board_tables(starts.whole) in starts.page
    for sentence in sentences(starts, board):
        assert sentence in starts.said, sentence


def test_the_readme_says_the_same(starts: SmallBoard) -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    own, lora = (starts.rows[OPENBOOK, row]["equal"]["rise_at_95"]["mean"] for row in ("lora_natural", "lora"))
    said = f"raised general loss by {own:.3f} nats for {lora:.3f} on OpenBookQA where as much was learned (95 %)"
    areas = {row: float(area) for (task, row), area in starts.area.items() if task == SCIQ}
    assert said in readme and "the largest area there on SciQ" in readme
    assert max(areas, key=areas.__getitem__) == "lora_natural"


def test_what_is_shown_and_what_is_not(starts: SmallBoard, board: SmallBoard) -> None:
    """Words that no figure stands in."""
    own = "lora_natural"
    assert shown(starts, SCIQ, "better", "lora") == {own}
    assert not any(rows is not None for rows in starts.rows[SCIQ, own]["equal"]["rise_at_90"]["each"].values())
    assert own in shown(starts, OPENBOOK, "better", "lora")
    (small,) = (one for one in board.whole["results"] if one["task"] == SCIQ)
    assert not any(one["verdict"] == "better" for one in small["comparisons"] if one["over"] == "seeds")
    for task in TASKS:
        assert not shown(starts, task, "better", "lora") & set(rivals(starts, board))
        assert not shown(starts, task, "better", own)
        assert bool(shown(starts, task, "worse", own)) == (task == OPENBOOK)
        assert shown(starts, task, "worse", own) <= {*rivals(starts, board)}
        for row in rivals(starts, board):
            assert float(starts.area[task, row]) < float(starts.area[task, own])


def test_the_picture(starts: SmallBoard, tmp_path: Path) -> None:
    drawn = render_picture([ROOT / "results" / "board-starts.json"], tmp_path / "board.svg")
    assert drawn.read_text(encoding="utf-8") == (ROOT / "results" / "board-starts.svg").read_text(encoding="utf-8")


def test_it_is_the_board_that_is_shipped(starts: SmallBoard) -> None:
    assert starts.whole["written"] == read_board(ROOT / "recipes" / "boards" / "starts.yaml").written
