"""`alora fit` from end to end, in miniature: through the command, stopped and gone on with, kept and not kept."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from alora_trainer.artefact.cards.adapter_card import adapter_card
from alora_trainer.artefact.cards.tuning import prompt_of, read_tuning
from alora_trainer.artefact.hub.search import FoundMap
from alora_trainer.artefact.scaled_adapter import scale_adapter
from alora_trainer.basics.scores import GeneralScore
from alora_trainer.cli.command_line import main
from alora_trainer.data.sources import read_lines
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.fit import earlier, probing, whole_fit
from alora_trainer.experiment.fit.earlier import with_earlier
from alora_trainer.experiment.fit.general_parts import PARTS, in_parts, passages
from alora_trainer.experiment.fit.look import general_texts
from alora_trainer.experiment.fit.page import percent
from alora_trainer.experiment.fit.request import FitRequest
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.gate import run_gate
from alora_trainer.experiment.report.method_result import MethodResult
from alora_trainer.penalty.strength.promise import bound_of
from tests.tiny_recipe import WORDS, make_collecting_cheap, write_all

QUIET = ["--tune.use_cpu", "true", "--tune.disable_tqdm", "true", "--evaluation.bootstrap_iters", "10"]


def said(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(WORDS, k=count))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, sums to learn (one of them twice, one without an answer), general text in many documents and in few."""
    make_collecting_cheap()
    folder = tmp_path_factory.mktemp("fit")
    write_all(folder)
    sums = [{"question": f"{a} and {b}", "answer": str(a + b)} for a in range(7) for b in range(8)]
    sums += [sums[0], {"question": "7 and 7", "answer": None}]
    (folder / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sums))
    chance = random.Random(0)
    for name, count in (("many", 420), ("few", 40), ("other", 30)):
        texts = [{"text": said(chance, 40)} for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    return folder


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)


def command(folder: Path, output: Path, *more: str, general: str | None = "many", name: str = "fit") -> int:
    given = ["--general", str(folder / f"{general}.jsonl")] if general else []
    arguments = [name, str(folder / "model"), str(folder / "sums.jsonl"), "--output_dir", str(output), *given]
    return main([*arguments, "--max-steps", "4", *QUIET, *more])


@pytest.fixture(scope="module")
def fitted(tiny: Path) -> Path:
    """A fit that was stopped before its promise, and gone on with."""
    output = tiny / "fitted"
    settings = ["--max-general-rise", "50%", "--unseen", str(tiny / "other.jsonl")]
    with pytest.MonkeyPatch.context() as patched:

        def stopped(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(whole_fit, "keep_promise", stopped)
        assert command(tiny, output, *settings) == 130
    trained = output / "run" / "kfac_natural" / "training.json"
    before = trained.stat().st_mtime_ns
    assert not (output / "adapter").exists()
    assert command(tiny, output, *settings) == 0
    assert trained.stat().st_mtime_ns == before  # it went on, and did not begin anew
    return output


def test_what_comes_out_is_a_plain_adapter_that_says_what_it_promises(tiny: Path, fitted: Path, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny / "model"), str(fitted / "adapter"))
    outcome = json.loads((fitted / "promise" / "promise.json").read_text())
    sentence = outcome["promise"]["sentence"]
    assert sentence.startswith("KEPT: general cross-entropy rose by")
    for path in (fitted / "adapter" / "README.md", fitted / "report.html"):
        assert sentence in path.read_text(encoding="utf-8").replace("&#x27;", "'")
    written = (fitted / "adapter" / "README.md").read_text(encoding="utf-8")
    card = yaml.safe_load(written.split("---")[1])
    assert card["library_name"] == "peft" and "kronecker-regularization" in card["tags"]
    # The recipe's own template is {prompt}: how a fit asks is known from the form that the data were found in.
    assert prompt_of(read_tuning(fitted / "adapter").data) == "Question: {question}\nAnswer:"
    assert r'tokenizer("Question: {question}\nAnswer:", ' in written
    # A push writes the card anew, and what is promised is of this adapter alone.
    tuning = read_tuning(fitted / "adapter").public("organisation/base")
    assert adapter_card(tuning).promises.startswith(sentence) and "| training |" in written
    half = scale_adapter(fitted / "adapter", 0.5, tmp_path / "half")
    assert sentence not in (half / "README.md").read_text(encoding="utf-8")
    assert any(parameter.any() for name, parameter in model.named_parameters() if "lora_B" in name)
    assert "torch==" in (fitted / "versions.lock").read_text()


def test_the_promise_can_be_computed_again_from_its_passages_and_the_model(tiny: Path, fitted: Path) -> None:
    promise = json.loads((fitted / "promise" / "promise.json").read_text())["promise"]
    again = bound_of(promise["before"], promise["after"])
    assert (again.rise, again.upper) == (promise["rise"]["rise"], promise["rise"]["upper"])
    assert promise["kept"] == (again.upper <= 0.5) and again.sequences >= 60
    # Against the model itself, one passage at a time: documents are shorter than a passage may be, or begin anywhere.
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny / "model"), str(fitted / "adapter")
    ).eval()
    texts = [row["text"] for row in read_lines(fitted / "data" / "general" / "promise" / "many.jsonl")]
    assert len(texts) == again.sequences
    short = [(place, ids) for place, ids in enumerate(tokenizer(texts)["input_ids"]) if len(ids) <= 64][:5]
    assert short
    for place, ids in short:
        with torch.no_grad():
            loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() * (len(ids) - 1)
        assert loss == pytest.approx(promise["after"][place], rel=1e-4)


def test_no_part_of_the_general_text_has_a_document_of_another(fitted: Path) -> None:
    parts = {
        part: {row["text"] for row in read_lines(fitted / "data" / "general" / part / "many.jsonl")} for part in PARTS
    }
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 420
    written = load_recipe(fitted / "recipe.yaml")
    used = {written.general.train["many"], written.general.probe["many"], written.general.test["many"]}
    assert len(used) == 3


def test_what_was_found_and_left_out_is_told(fitted: Path) -> None:
    found = json.loads((fitted / "data" / "found.json").read_text())
    assert (found["duplicates"], found["files"][0]["left_out"]) == (1, 1)
    assert found["files"][0]["first"].startswith("line 58 of ") and "it has no answer" in found["files"][0]["first"]
    assert found["train_items"] + found["test_items"] == 56 and found["held_out"]
    asked = {row["prompt"] for row in read_lines(fitted / "data" / "test.jsonl")}
    assert not asked & {row["prompt"] for row in read_lines(fitted / "data" / "train.jsonl")}
    page = (fitted / "report.html").read_text(encoding="utf-8")
    for words in ("question and answer", "1 duplicates left out", "kind of text that no part saw", "other", "before: "):
        assert words in page
    for words in (
        "Did it forget?",
        "the loss of the right answers went from",
        "prefers-color-scheme: dark",
        'class="chart"',
    ):
        assert words in page
    assert [percent(share) for share in (-1e-5, 1e-5, -0.0123)] == ["0.00%", "0.00%", "-1.23%"]
    assert "| method" not in page


def test_the_recipe_is_an_ordinary_one_and_says_why(fitted: Path) -> None:
    text = (fitted / "recipe.yaml").read_text()
    assert "budget: 0.5 # the largest rise of general cross-entropy" in text
    recipe = load_recipe(fitted / "recipe.yaml")
    assert recipe.alora.budget == 0.5 and [method.name for method in recipe.methods] == ["base", "kfac_natural"]
    assert recipe.alora.init_items == 64 and "init_items: 64 # that choose the directions" in text
    assert recipe.tune["use_cpu"] is True  # an override is in it, too


def test_a_finished_fit_is_not_done_again_and_other_data_are_refused(
    tiny: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [fitted / "run" / "kfac_natural" / "training.json", fitted / "promise" / "promise.json"]
    before = [path.stat().st_mtime_ns for path in files]
    settings = ["--max-general-rise", "50%", "--unseen", str(tiny / "other.jsonl")]
    assert command(tiny, fitted, *settings) == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    assert "KEPT: general" in capsys.readouterr().out
    assert command(tiny, fitted, *settings, general="few") == 2
    assert "was made with other settings" in capsys.readouterr().err
    assert command(tiny, fitted, *settings, "--lora.r", "2") == 2
    assert "another recipe than this command writes" in capsys.readouterr().err


def test_too_little_text_promises_nothing_and_the_adapter_is_there_all_the_same(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{"prompt": f"{a} and 1 is", "completion": f" {a + 1}"} for a in range(4)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    keep = ["--keep", f"{tmp_path / 'asked.jsonl'}=-100pt"]
    assert command(tiny, tmp_path / "out", "--merged", *keep, general="few") == 3
    said = capsys.readouterr().out
    assert "gate passed: keep_asked exact_match,said's change over base is" in said
    assert "NOT KEPT: " in said and "a promise needs 60 passages at least: give more general text" in said
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny / "model"), str(tmp_path / "out" / "adapter")
    )
    ids = torch.arange(10)[None]
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits)


def test_init_samples_general_text_where_none_is_given_and_its_recipe_loads(tiny: Path, tmp_path: Path) -> None:
    assert command(tiny, tmp_path / "out", "--general-tokens", "4096", general=None, name="init") == 0
    recipe = load_recipe(tmp_path / "out" / "recipe.yaml")
    for part in ("train", "probe", "test"):
        (path,) = getattr(recipe.general, part).values()
        assert read_lines(tmp_path / "out" / path)
    assert not (tmp_path / "out" / "run").exists()


def test_a_dry_run_says_all_and_writes_nothing(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path / "out", "--dry-run") == 0
    told = capsys.readouterr().out
    for words in ("58 records", "example 1", "base model", "# the map is measured on it"):
        assert words in told
    assert not (tmp_path / "out").exists()


def test_short_trainings_find_what_learns_and_hold_the_long_one_by_their_map(tiny: Path, tmp_path: Path) -> None:
    """Of the rates, far too small but for the last one, the largest must win its rounds, whatever else is tried."""
    written = [
        "--tune.learning_rate",
        "0.00002",
        "--probing",
        "100%",
        "--max-general-rise",
        "50%",
        "--try",
        "covariance",
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(probing, "FACTORS", (0.5, 1.0, 1000.0))
        assert command(tiny, tmp_path / "out", *written) == 0
    outcome = json.loads((tmp_path / "out" / "probes" / "choice" / "choice.json").read_text())
    assert [one["steps"] for one in outcome["tried"]] == [2, 2, 2, 2, 4, 4]
    assert {one["method"] for one in outcome["tried"]} == {"kfac_natural", "covariance"}
    losses = {(one["method"], one["rate"]): one["loss"] for one in outcome["tried"][4:]}
    best = min(losses, key=losses.__getitem__)
    assert best == tuple(outcome["best"].values()) == ("kfac_natural", pytest.approx(0.02))
    recipe = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert recipe.tune["learning_rate"] == outcome["best"]["rate"]
    # What judges is neither trained on nor in the test.
    data = tmp_path / "out" / "data"
    parts = [
        {row["item"] for row in read_lines(data / f"{name}.jsonl")}
        for name in ("probe_train", "probe_validation", "test")
    ]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 56
    # The map of the short trainings holds the long one: the run has none of its own.
    assert not (tmp_path / "out" / "run" / "curvature_kronecker").exists()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Short trainings" in page and "covariance" in page


def test_after_an_earlier_fit_its_items_and_its_map_are_taken_over(tiny: Path, fitted: Path, tmp_path: Path) -> None:
    more = [{"question": f"{a} and {b}", "answer": str(a + b)} for a in range(20, 25) for b in range(6)]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(one) + "\n" for one in more))
    request = FitRequest(
        str(tiny / "model"),
        (str(tmp_path / "more.jsonl"),),
        tmp_path / "out",
        general=(str(tiny / "many.jsonl"),),
        after=fitted,
        overrides={"tune.use_cpu": "true"},
    )
    assert with_earlier(request).importance == str(fitted / "run" / "curvature_kronecker" / "map")
    assert with_earlier(replace(request, importance="mine")).importance == "mine"
    whole_fit.init(request)
    learned, kept_apart = (
        {row["prompt"] for row in read_lines(folder / "data" / f"{name}.jsonl")}
        for folder, name in ((tmp_path / "out", "train"), (fitted, "test"))
    )
    assert any("20 and" in prompt for prompt in learned) and any("2 and" in prompt for prompt in learned)
    assert not learned & kept_apart  # the earlier test is trained on by nobody
    with pytest.raises(ALoRAError, match="holds no fit"):
        with_earlier(replace(request, after=tmp_path))


def test_a_map_is_searched_for_only_when_asked_and_the_same_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def maps(model: str) -> list[FoundMap]:
        asked.append(model)
        return [FoundMap(f"someone/{name}", "x", name, None, {}, (), None, None) for name in ("projected", "kronecker")]

    monkeypatch.setattr(earlier, "search_maps", maps)
    request = FitRequest("someone/base", ("a.jsonl",), tmp_path)
    assert earlier.with_found_map(request) == request and not asked
    for _ in range(2):
        assert earlier.with_found_map(replace(request, importance="search")).importance == "someone/kronecker"
    assert asked == ["someone/base"]
    monkeypatch.setattr(earlier, "search_maps", lambda _: [])
    other = replace(request, importance="search", output_dir=tmp_path / "other")
    assert earlier.with_found_map(other).importance is None
    with pytest.raises(ALoRAError, match="is a folder: name a map"):
        earlier.with_found_map(replace(other, model=str(tmp_path)))


def test_a_task_to_keep_is_a_gate_beside_the_promise() -> None:
    methods = {
        name: MethodResult(general=GeneralScore(tasks={"hellaswag": {"acc": acc, "acc_stderr": 0.1}}))
        for name, acc in (("base", 0.5), ("kfac", 0.485))
    }
    (check,) = run_gate(methods, "kfac", keep={"hellaswag": -0.02})
    assert check.passed and str(check) == "gate passed: hellaswag acc's change over base is -1.5 %, wanted >= -2 %"
    (check,) = run_gate(methods, "kfac", keep={"hellaswag": -0.01})
    assert not check.passed
    with pytest.raises(ALoRAError, match="needs a score of arc from both kfac and base"):
        run_gate(methods, "kfac", keep={"arc": 0.0})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--max-general-rise", "much"], "write 0.01 or 1%"),
        (["--max-general-rise", "0"], "must be a positive share"),
        (["--method", "lora"], "held by a map measured at the base model"),
        (["--prompt", "{question}"], "given together"),
        (["--try", "ekfac"], "say by --probing"),
        (["--try", "lora", "--probing", "10%"], "method lora cannot be held"),
        (["--probing", "300%"], "must be a share of the training's steps"),
        (["--keep", "hellaswag"], "write TASK=-1pt"),
        (["--test", "nowhere.jsonl"], "no file nowhere.jsonl"),
        (["--general", "nowhere.jsonl"], "no file nowhere.jsonl"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert command(tiny, tmp_path / "out", *more) == 2
    told = capsys.readouterr().err.splitlines()
    (line,) = [one for one in told if one.startswith("alora: error: ")]
    assert words in line
    if "no file" in words:  # before anything heavy is loaded
        assert told == [line]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["fit", "init"])
def test_a_mistyped_model_is_told_before_anything_heavy_is_loaded(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    (tmp_path / "model").mkdir()
    assert main([verb, str(tmp_path / "modle"), "items.jsonl"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no model folder" in line and "did you mean" in line


def test_parts_have_their_shares_whatever_the_sources() -> None:
    chance = random.Random(1)
    sources = {name: [said(chance, 30) for _ in range(500)] for name in ("a", "b")}
    sources["b"] += sources["a"][:100]  # what both have is in one part alone
    parts = in_parts(sources, 10**6)
    every = [text for kinds in parts.values() for texts in kinds.values() for text in texts]
    assert len(every) == len(set(every)) == 1000
    for part, share in PARTS.items():
        assert sum(map(len, parts[part].values())) / 1000 == pytest.approx(share, abs=0.03)
    few = in_parts(sources, 2000)
    assert sum(len(text.encode()) for kinds in few.values() for own in kinds.values() for text in own) < 2 * 4 * 2000
    with pytest.raises(ALoRAError, match="too little for its four parts"):
        in_parts({"a": ["one document"]}, 10**6)


def test_passages_of_a_book_are_the_book() -> None:
    book = "\n\n".join(f"Chapter {n}. " + "There was a town by the sea. " * 20 for n in range(30))
    found = passages([book])
    assert len(found) > 10
    assert "".join("".join(found).split()) == "".join(book.split())


def test_the_python_function_takes_one_or_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[FitRequest] = []
    monkeypatch.setattr(whole_fit, "run_fit", lambda request, **_: asked.append(request))
    from alora_trainer import fit

    fit("model", "a.jsonl", general="g.jsonl", output_dir=tmp_path, seed=3)
    fit(Path("model"), ["a.jsonl", tmp_path], max_general_rise=0.02)
    assert asked[0] == FitRequest("model", ("a.jsonl",), tmp_path, general=("g.jsonl",), seed=3)
    assert (asked[1].data, asked[1].max_general_rise) == (("a.jsonl", str(tmp_path)), 0.02)


def test_a_folder_of_texts_is_one_source_and_may_have_an_empty_file(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "two"), ("empty", " \n")):
        (tmp_path / f"{name}.txt").write_text(text)
    assert general_texts((str(tmp_path),)) == {tmp_path.name: ["one", "two"]}
    assert general_texts((str(tmp_path / "[ab].txt"),)) == {tmp_path.name: ["one", "two"]}
    assert general_texts((str(tmp_path / "a.txt"),)) == {"a": ["one"]}
    for name in ("books", "code"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    assert list(general_texts((str(tmp_path / "*.jsonl"),))) == ["books", "code"]  # kinds of text, each by its name
    with pytest.raises(ALoRAError, match="only blank documents"):
        general_texts((str(tmp_path / "empty.txt"),))
