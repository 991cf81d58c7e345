"""The committed boards of the small setting, for the tests of what pages say of them."""

from __future__ import annotations

import statistics

from alora_trainer.experiment.board.board_json import read_board_json
from alora_trainer.experiment.board.comparisons import PlannedComparisons
from tests.docs.pages import ROOT

SCIQ, OPENBOOK = "sciq-passages", "openbookqa"


class SmallBoard:
    """A committed board of the small setting, and what its page says of it."""

    def __init__(self, name: str = "board-small") -> None:
        self.whole = read_board_json(ROOT / "results" / f"{name}.json")
        self.page = (ROOT / "docs" / "board.md").read_text(encoding="utf-8")
        self.said = " ".join(self.page.split())
        results = self.whole["results"]
        self.base = results[0]["base"]["cross_entropy"]
        self.figures = {
            (result["task"], final["row"], final["trial"]): {
                name: statistics.fmean(seed[name] for seed in final["seeds"].values()) for name in ("learned", "rise")
            }
            for result in results
            for final in result["finals"]
        }
        self.rows = {(result["task"], row["row"]): row for result in results for row in result["rows"]}
        self.area = {key: f"{row['area']['mean']:.2f}" for key, row in self.rows.items()}
        # Of each row's comparisons with LoRA: corrected, and by itself.
        self.tested = {
            (result["task"], one["measure"], one["row"]): one["p_holm"]
            for result in results
            for one in result["comparisons"]
            if one["against"] == "lora"
        }
        self.alone = {
            (result["task"], one["measure"], one["row"]): one["p"]
            for result in results
            for one in result["comparisons"]
            if one["against"] == "lora"
        }

    def better(self, task: str, against: str = "lora") -> set[tuple[str, str]]:
        """(row, measure) of what is shown over seeds to be better than a row."""
        return self._shown(task, "better", against)

    def worse(self, task: str, against: str = "lora") -> set[tuple[str, str]]:
        """(row, measure) of what is shown over seeds to be worse than a row."""
        return self._shown(task, "worse", against)

    def _shown(self, task: str, verdict: str, against: str) -> set[tuple[str, str]]:
        (result,) = (one for one in self.whole["results"] if one["task"] == task)
        return {
            (one["row"], one["measure"])
            for one in result["comparisons"]
            if (one["over"], one["verdict"], one["against"]) == ("seeds", verdict, against)
        }

    @property
    def planned(self) -> int:
        """How many pairs of rows the board file plans to compare."""
        written = self.whole["written"]
        return len(PlannedComparisons(list(written["rows"]), written["against"]).pairs(written["rows"]))
