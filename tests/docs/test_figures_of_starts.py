"""What the documentation says of where an adapter starts has the figures of the committed results, and no others."""

from __future__ import annotations

import importlib
import json

import pytest

from tests.docs.pages import ROOT
from tests.docs.small_board import OPENBOOK, SCIQ, SmallBoard


def test_how_many_items_choose_first_directions(board: SmallBoard) -> None:
    notes = (ROOT / "docs" / "lab-notes.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "results" / "studies" / "first-directions-items.json").read_text())
    rows = [(row["items"], row["learned"]["mean"], row["rise"]["mean"]) for row in found["rows"]]
    whole = board.figures[SCIQ, "kfac_natural", "learning_rate=0.002, lam=0.0001"]
    assert len(rows) == 3
    for items, learned, rise in (*rows, (512, whole["learned"], whole["rise"])):
        assert f"| {items} | {learned:.3f} | {rise:.4f} |" in notes


def test_what_chosen_starts_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    first_directions = importlib.import_module("first_directions")
    found = json.loads((ROOT / "results" / "studies" / "first-directions.json").read_text())
    page = (ROOT / "docs" / "methods" / "first_directions.md").read_text(encoding="utf-8")
    said = " ".join(page.split())
    for task in (SCIQ, OPENBOOK):
        assert first_directions.format_table(found["summary"][task]) in page
    assert {task: len(seeds) for task, seeds in found["trainings"].items()} == {SCIQ: 3, OPENBOOK: 3}
    assert "Three seeds of SciQ with its passages and of OpenBookQA" in said

    def rises(task: str, *starts: tuple[str, ...]) -> tuple[list[str], list[float], list[list[float]]]:
        """Of each (start, penalty): both rises as the page has them, what was learned, and the rises."""
        rows = {first_directions.described(row["name"]): row for row in found["summary"][task]}
        base = rows["the base model", ""]["choices"]["mean"]
        each = [[rows[start][key]["mean"] for key in ("rise_recorded", "rise_other")] for start in starts]
        learned = [base - rows[start]["choices"]["mean"] for start in starts]
        return [f"{recorded:.3f} and {other:.3f}" for recorded, other in each], learned, each

    plain, natural, contrastive = ((start, "none") for start in ("PEFT's own", "natural", "contrastive"))
    for task in (SCIQ, OPENBOOK):
        _, _, (chosen, other, random) = rises(task, natural, contrastive, plain)
        for one in (chosen, other):  # "about half as much", "six to seven tenths"
            assert 0.45 < one[0] / random[0] < 0.58 and 0.55 < one[1] / random[1] < 0.75
    told, learned, _ = rises(SCIQ, natural, contrastive, plain)
    assert f"{told[0]} (natural), {told[1]} (contrastive) for {told[2]}" in said
    shares = [f"{100 * one / learned[2]:.0f}" for one in learned[:2]]
    assert f"where {shares[0]} and {shares[1]} % as much is learned" in said
    told, learned, _ = rises(OPENBOOK, natural, contrastive, plain)
    assert f"OpenBookQA: {told[0]}, {told[1]} for {told[2]}, where more is learned" in said
    assert f"({learned[0]:.3f} and {learned[1]:.3f} for {learned[2]:.3f})" in said and min(learned[:2]) > learned[2]
    held = ("natural", "Kronecker 0.001"), ("PEFT's own", "Kronecker 0.001"), ("PEFT's own", "EWCLoRA 0.01")
    told, learned, each = rises(SCIQ, *held)
    assert f"forgets {told[0]}, PEFT's own start {told[1]}, EWCLoRA (0.01) {told[2]}" in said
    assert f"learn {learned[0]:.3f}, {learned[1]:.3f} and {learned[2]:.3f}; on OpenBookQA" in said
    told, learned, other_each = rises(OPENBOOK, *held)
    assert f"on OpenBookQA {told[0]} for {told[1]}, and {told[2]}, where they learn" in said
    assert f"learn {learned[0]:.3f}, {learned[1]:.3f} and {learned[2]:.3f}." in said
    for place, words in enumerate(("with natural and 0.001", "with PEFT's start", "with EWCLoRA")):
        times = [f"{of_task[place][1] / of_task[place][0]:.1f}" for of_task in (each, other_each)]
        middle = " times as much is forgotten there" if place == 0 else ""
        assert f"{times[0]} and {times[1]}{middle} {words}" in said
    leads = [[f"{one[0][half] / one[2][half]:.2f}" for one in (each, other_each)] for half in (0, 1)]
    assert f"forget {leads[0][0]} and {leads[0][1]} of what EWCLoRA forgets on recorded kinds" in said
    assert f"and {leads[1][0]} and {leads[1][1]} on others" in said
    frozen, strong = ("contrastive, A frozen", "none"), ("natural", "Kronecker 0.003")
    (one, free, mild), (left, whole, more), _ = rises(SCIQ, frozen, plain, strong)
    (two, other_free, other_mild), (other_left, other_whole, other_more), _ = rises(OPENBOOK, frozen, plain, strong)
    assert f"contrastive {one} on SciQ, {two} on OpenBookQA, where plain LoRA forgets {free}, {other_free};" in said
    assert f"learned {left:.3f} for {whole:.3f}, {other_left:.3f} for {other_whole:.3f}." in said
    assert f"the same rises: {more:.3f} at {mild}, {other_more:.3f} at {other_mild}." in said
    starts = [name for name in first_directions.NAMES.values() if "null space" not in name]
    alone = ("the domain's gradient", "none"), plain, ("general text's null space", "none")
    for task in (SCIQ, OPENBOOK):  # "from there the penalty holds least of what moves"
        kept = {}
        for start in (*starts, "general text's null space"):
            _, _, (free_rises, held_back) = rises(task, (start, "none"), (start, "Kronecker 0.003"))
            kept[start] = held_back[0] / free_rises[0]
        assert max(kept, key=lambda start: kept[start]) == "general text's null space"
        _, _, found_rises = rises(task, *alone)
        assert all(gradient > random for gradient, random in zip(found_rises[0], found_rises[1], strict=True))
    (gradient, *_), _, found_rises = rises(SCIQ, *alone)
    (other_gradient, *_), _, _ = rises(OPENBOOK, *alone)
    assert f"(SciQ {gradient}, OpenBookQA {other_gradient})" in said
    assert all(null > random for null, random in zip(found_rises[2], found_rises[1], strict=True))


def test_when_a_chosen_start_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    questions = importlib.import_module("first_directions_questions")
    found = json.loads((ROOT / "results" / "studies" / "first-directions-questions.json").read_text())
    short = json.loads((ROOT / "results" / "studies" / "first-directions.json").read_text())["trainings"][OPENBOOK]["0"]
    notes = (ROOT / "docs" / "lab-notes.md").read_text(encoding="utf-8")
    said = " ".join(notes.split())
    assert questions.answers_table(found["summary"]) in notes and list(found["trainings"]) == ["0"]
    trainings = {questions.described(name): one for name, one in (short | found["trainings"]["0"]).items()}
    base = trainings["the base model", ""]["choices"]

    def of(start: str, penalty: str = "none") -> dict[str, float]:
        one = trainings[start, penalty]
        return one | {"learned": base - one["choices"]}

    def told(one: dict[str, float]) -> str:
        return f"{one['rise_recorded']:.3f} and {one['rise_other']:.3f}"

    def times(one: dict[str, float], other: dict[str, float], digits: int = 2) -> list[str]:
        return [f"{one[key] / other[key]:.{digits}f}" for key in ("rise_recorded", "rise_other")]

    held = "Kronecker 0.001"
    plain, natural, frozen = of("PEFT's own"), of("natural"), of("contrastive, A frozen")
    assert f"has {told(plain)} at {plain['learned']:.3f} learned from PEFT's own start, {told(natural)} at" in said
    assert f"at {natural['learned']:.3f} from the natural one, {told(frozen)} at {frozen['learned']:.3f} with A" in said
    own, chosen = of("PEFT's own", held), of("natural", held)
    assert f"(0.001) {told(own)} at {own['learned']:.3f}, and {told(chosen)} at {chosen['learned']:.3f}." in said
    long, long_natural = of("longer: PEFT's own"), of("longer: natural")
    recorded, others = times(long_natural, long)
    assert f"forgets {recorded} times as much as PEFT's own on recorded kinds and {others} times on others" in said
    recorded, others = times(natural, plain)
    assert f"({recorded} and {others} at 60 steps), and has learned more" in said
    assert long_natural["learned"] > long["learned"]
    long_held = of("longer: PEFT's own", held)
    recorded, others = times(of("longer: natural", held), long_held)
    assert f"held by the penalty, {recorded} and {others} times" in said
    recorded, others = times(long, long_held, 1)
    assert f"from PEFT's own start {recorded} and {others} times less is forgotten" in said
    long_frozen = of("longer: contrastive, A frozen")
    recorded, others = times(long_frozen, long)
    assert f"{recorded} and {others} of the rises of PEFT's own start" in said
    assert 0.85 < long_frozen["learned"] / long["learned"] < 0.95
    thin, thin_natural = of("rank-2: PEFT's own"), of("rank-2: natural")
    recorded, others = times(thin_natural, thin)
    assert f"({recorded} and {others} of the rises, more learned)" in said
    wide = [of(f"rank-32: {start}")["learned"] for start in ("PEFT's own", "natural", "contrastive, A frozen")]
    assert f"{wide[0]:.3f} and {wide[1]:.3f} learned, where A frozen learns {wide[2]:.3f}" in said
    half = of("half-rate: natural")
    assert f"{half['learned']:.3f} learned at {told(half)}" in said
    left = [f"{100 * one[questions.KEPT]:.0f} %" for one in (long_natural, of("longer: natural", held), long)]
    assert (
        f"{left[0]} of the movement are in the natural directions, {left[1]} if held; from a random start {left[2]}."
        in said
    )
    texts = [of(f"own-text{kind}: natural", held) for kind in ("", "-short", "-long", "-cool")]
    assert f"sampled tokens, {told(texts[0])}, from real text {told(chosen)}. A quarter" in said
    assert f"tokens: {told(texts[1])}; four times as many: {told(texts[2])}, the least" in said
    assert f"holds less ({told(texts[3])})" in said
    assert min(texts, key=lambda one: one["rise_other"]) is texts[2]
    ratios = [f"{one['rise_other'] / one['rise_recorded']:.1f}" for one in (texts[0], chosen)]
    assert f"the other half rises {ratios[0]} times as much" in said and f"of the first half ({ratios[1]})" in said


def test_directions_chosen_anew_and_a_second_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    rows = importlib.import_module("first_directions_in_a_row")
    found = json.loads((ROOT / "results" / "studies" / "first-directions-in-a-row.json").read_text())
    questions = json.loads((ROOT / "results" / "studies" / "first-directions-questions.json").read_text())
    notes = (ROOT / "docs" / "lab-notes.md").read_text(encoding="utf-8")
    said = " ".join(notes.split())
    for part in ("anew", "domains"):
        assert rows.format_table(found["summary"][part]) in notes and list(found["trainings"][part]) == ["0"]
    legs, domains = found["trainings"]["anew"]["0"], found["trainings"]["domains"]["0"]
    before = domains["lora 0"]

    def told(one: dict[str, float]) -> str:
        return f"{one['rise_recorded']:.3f} and {one['rise_other']:.3f} with"

    def learned(one: dict[str, float]) -> str:
        return f"{before['choices_openbookqa'] - one['choices']:.3f}"

    assert f"fell by from {before['choices_openbookqa']:.3f}" in said
    once = questions["trainings"]["0"]["longer kfac@init_adapter=natural_gradient,lam=0.0"]
    assert f"natural starts end at {told(legs['natural 4'])} {learned(legs['natural 4'])} learned" in said
    assert f"at {told(once)} {learned(once)}. Four legs of PEFT's own start: " in said
    assert f"own start: {told(legs['default 4'])} {learned(legs['default 4'])}." in said
    lora, natural = domains["lora 2"], domains["lora_natural 2"]
    times = [f"{natural[key] / lora[key]:.2f}" for key in ("rise_recorded", "rise_other")]
    assert f"`lora_natural` has forgotten {times[0]} and {times[1]} of what `lora` has" in said
    gained = [f"{before['choices_openbookqa'] - one['choices_openbookqa']:.3f}" for one in (natural, lora)]
    assert f"more of OpenBookQA ({gained[0]} for {gained[1]})" in said

    def lost(method: str) -> str:
        return f"{domains[f'{method} 2']['choices_sciq'] - domains[f'{method} 1']['choices_sciq']:.3f}"

    frozen = [domains[f"lora_contrastive_frozen {number}"]["choices_sciq"] for number in (1, 2)]
    assert f"goes from {frozen[0]:.3f} to {frozen[1]:.3f} while" in said
    assert f"rises by {lost('lora_natural')} (natural) to {lost('lora')} (LoRA)" in said
    assert f"does not change that ({lost('kfac_natural')}, {lost('kfac')})" in said
    first = [before["choices_sciq"] - one for one in (frozen[0], domains["lora 1"]["choices_sciq"])]
    assert f"({first[0]:.3f} for {first[1]:.3f}), and knows as much of it after both" in said
    assert f"after both ({frozen[1]:.3f}, {lora['choices_sciq']:.3f})" in said


def test_what_choosing_a_start_costs() -> None:
    found = json.loads((ROOT / "results" / "benchmarks" / "first-directions-cost-cpu.json").read_text())["ways"]
    page = (ROOT / "docs" / "methods" / "first_directions.md").read_text(encoding="utf-8")
    seconds = {name: way["seconds"]["median"] for name, way in found.items()}
    for name, way in found.items():
        assert f"| {name} | {seconds[name]:.1f} | {way['peak_bytes'] / 2**20:.0f} |" in page and way["finished"]
    assert f"takes {seconds['natural_gradient'] / seconds['lora_ga']:.1f} times what LoRA-GA takes" in page
    assert min(seconds, key=lambda name: seconds[name]) == "contrastive"


def test_the_learning_rate_of_a_chosen_start(board: SmallBoard) -> None:
    notes = (ROOT / "docs" / "lab-notes.md").read_text(encoding="utf-8")
    tried = {
        (result["task"], trial["row"], trial["trial"]): (trial["validation"]["learned"], trial["validation"]["rise"])
        for result in board.whole["results"]
        for trial in result["trials"]
    }
    rows = {"kfac": ["lam=0.0003"], "kfac_natural": ["lam=0.0003", "lam=0.0001"], "lora_contrastive_frozen": [""]}
    for row, strengths in rows.items():
        for strength in strengths:
            more = f", {strength}" if strength else ""
            each = [
                tried[task, row, f"learning_rate={rate}{more}"] for task in (SCIQ, OPENBOOK) for rate in (0.002, 0.004)
            ]
            figures = " | ".join(f"{learned:.3f} / {rise:.3f}" for learned, rise in each)
            assert f"| {row}{more.replace('=', ' ')} | {figures} |" in notes
    natural = [[tried[task, "kfac_natural", f"learning_rate={rate}, lam={lam}"] for rate in (0.002, 0.004)]
               for task in (SCIQ, OPENBOOK) for lam in (0.0001, 0.0003)]  # fmt: skip
    assert all(twice[0] < once[0] and 1.6 < twice[1] / once[1] < 2.9 for once, twice in natural)
    learned, rise = tried[SCIQ, "lora_contrastive_frozen", "learning_rate=0.016"]
    assert f"(learned {learned:.3f} on SciQ, at a rise of {rise:.3f})" in notes
