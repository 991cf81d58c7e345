"""Cards: the whole text, that their code runs as it stands, and that licences are found and never invented."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alora_trainer import ALoRAConfig, ALoRAError
from alora_trainer.artefact.cards.adapter_card import adapter_card, write_adapter_card
from alora_trainer.artefact.cards.evaluation import CardScores, evaluation_entries, forgotten_text
from alora_trainer.artefact.cards.facts import Licences
from alora_trainer.artefact.cards.map_card import write_map_card
from alora_trainer.artefact.cards.tuning import TUNING_FILE, Tuning, prompt_of, read_tuning, with_prompt
from alora_trainer.artefact.config_file import read_config
from alora_trainer.artefact.hub.licences import look_up
from alora_trainer.basics.scores import GeneralScore, Score, TaskScore
from alora_trainer.cli.command_line import main, make_parser
from alora_trainer.data.tasks import get_task
from alora_trainer.experiment.report.results import card_scores
from tests.conftest import BOB
from tests.tiny_map import COMMIT, make_map
from tests.tiny_recipe import write_all

EXPECTED = Path(__file__).parent / "expected"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "hub.md"
SCIQ = {"hub": "allenai/sciq", "split": "test"}
RESULTS = CardScores(
    Score(GeneralScore(token_perplexity=43.44), {"sciq": TaskScore(acc=0.464, acc_norm=0.45, items=250, source=SCIQ)}),
    base=Score(GeneralScore(token_perplexity=42.15), {"sciq": TaskScore(acc=0.3)}),
)
TUNING = Tuning(
    base_model="tiny-org/tiny-llama",
    base_revision=COMMIT,
    map={
        "repo_id": "tiny-org/map",
        "commit": "f" * 40,
        "estimator": "path",
        "storage": "log8",
        "tokens": 12_800,
        "data": {"sources": [{"hub": "tiny-org/books", "split": "train"}]},
    },
    protection={"lam": 0.3, "layer_weights": "l2", "normalize": True},
    training={"steps": 150, "optimizer": "adamw_torch", "learning_rate": 8e-4, "seed": 3},
    data=with_prompt(
        {"task": "sciq", "sources": [{"hub": "allenai/sciq", "split": "train"}]},
        "{support}\nQuestion: {question}\nAnswer:",
    ),
    versions={"torch": "2.13.0", "peft": "0.21.2"},
)


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` sets for its own process is no business of the other tests."""
    monkeypatch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)


def test_the_whole_card_of_a_map(tmp_path: Path) -> None:
    make_map().save_pretrained(tmp_path / "map", storage=["float32", "log8"])
    write_map_card(
        read_config(tmp_path / "map"),
        tmp_path / "card.md",
        picture=True,
        repo_id="tiny-org/map",
        licences=Licences(base="apache-2.0", data={"tiny-org/books": "mit"}),
        results=RESULTS,
    )
    assert (tmp_path / "card.md").read_text() == (EXPECTED / "map_card.md").read_text()


def test_the_whole_card_of_an_adapter(tmp_path: Path) -> None:
    licences = Licences(base="apache-2.0", data={"allenai/sciq": "apache-2.0"})
    write_adapter_card(TUNING, tmp_path / "card.md", repo_id="bob/domain", licences=licences, results=RESULTS)
    assert (tmp_path / "card.md").read_text() == (EXPECTED / "adapter_card.md").read_text()


def test_a_card_leaves_out_what_was_not_set(tmp_path: Path) -> None:
    settings = ALoRAConfig(lam=0.3, application="decoupled").resolved_protecting()
    card = adapter_card(replace(TUNING, protection=settings))
    assert card.protection == "lam_schedule constant, application decoupled, normalize yes"
    budgeted = adapter_card(replace(TUNING, protection=ALoRAConfig(budget=0.01).resolved_protecting()))
    assert "budget 0.01, probe_steps 10" in budgeted.protection
    chosen = ALoRAConfig(init_adapter="contrastive", freeze_a=True).resolved_protecting()
    text = adapter_card(replace(TUNING, protection=chosen)).protection
    assert "init_adapter contrastive, init_items 512" in text and "freeze_a yes" in text
    assert "None" not in text + card.protection + budgeted.protection and "False" not in text


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, None),
        (
            {"predicted_rise": 0.0123456},
            "a rise of 0.01235 nats a token at its end, counted from where the penalty pulls to; none was",
        ),
        ({"predicted_rise": 0.01, "measured_rise": 0.04}, "pulls to; on a probe it was 0.04 |"),
        (
            {"predicted_rise": 0.01, "measured_rise": 0.04, "calibration": 4.0},
            "was 0.04, and 4 times what was predicted",
        ),
        ({"predicted_rise": "[x](http://evil)", "measured_rise": 1.0}, None),
        ({"predicted_rise": 10**400}, None),
    ],
)
def test_what_general_loss_did_stands_in_an_adapters_card(
    tmp_path: Path, training: dict[str, Any], expected: str | None
) -> None:
    write_adapter_card(replace(TUNING, training={**TUNING.training, **training}), tmp_path / "card.md")
    card = (tmp_path / "card.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith("| training |")]
    assert "rise" not in row and "calibration" not in row and "evil" not in card
    rows = [line for line in card.splitlines() if line.startswith("| general loss while training |")]
    assert len(rows) == (expected is not None) and all(str(expected) in line for line in rows)


def _held_by(tmp_path: Path, protection: dict[str, Any] | None = None, **about_the_map: Any) -> str:
    tuning = replace(TUNING, map={**TUNING.map, **about_the_map}, protection=protection or TUNING.protection)
    write_adapter_card(tuning, tmp_path / "card.md")
    return (tmp_path / "card.md").read_text()


@pytest.mark.parametrize(
    ("storage", "estimator", "tag", "said"),
    [
        ("bfloat16", "path", "elementwise", "those elements of the weights"),
        ("kronecker", "kronecker", "kronecker", "in directions that an importance map says matter: `R = tr(D' G D S)`"),
        ("ekfac_bfloat16", "ekfac", "ekfac", "(EK-FAC). The penalty is that of [arXiv"),
        (
            "covariance",
            "covariance",
            "covariance",
            "`R = c tr(D S D')` for a movement D of one weight. The second moments",
        ),
        ("ekfac", "projected", "ekfac", "for a movement D of one weight, recorded along a training"),
    ],
)
def test_a_card_says_by_what_kind_of_importance_it_was_held(
    tmp_path: Path, storage: str, estimator: str, tag: str, said: str
) -> None:
    card = _held_by(tmp_path, storage=storage, estimator=estimator)
    assert said in card and f"- {tag}-regularization\n" in card and card.count("-regularization") == 1
    assert ("elements of the weights" in card and "eq. 16-18" in card) == (tag == "elementwise")


def test_a_card_says_where_nothing_was_held(tmp_path: Path) -> None:
    starts = ALoRAConfig(lam=0.0, init_adapter="contrastive").resolved_protecting()
    card = _held_by(tmp_path, starts, storage="covariance", estimator="covariance")
    assert "from first directions that an importance map chose; nothing held it" in card
    assert "-regularization" not in card and "with a penalty" not in card and "The penalty holds" not in card
    steered = ALoRAConfig(budget=0.01).resolved_protecting()
    assert "with a penalty" in _held_by(tmp_path, steered, storage="kronecker", estimator="kronecker")
    unknown = _held_by(tmp_path, storage="[x](http://evil)")
    assert "where an importance map says that it matters" in unknown and "evil" not in unknown


@pytest.mark.parametrize(
    ("data", "said", "asked"),
    [
        ({}, None, 'tokenizer("Question:", '),
        (with_prompt({}, "{text}"), None, 'tokenizer("Question:", '),
        ({"prompt": 7}, None, 'tokenizer("Question:", '),
        ({"prompt": "no JSON"}, None, 'tokenizer("Question:", '),
        (with_prompt({}, "Q: {q}\nA:"), "prompts of the form in the code below", 'tokenizer("Q: {q}\\nA:", '),
        (with_prompt({}, '"); evil("'), "prompts of the form", 'tokenizer("\\"); evil(\\"", '),
        (
            {"chat_template": True},
            "in the chat template",
            "tokenizer.apply_chat_template(asked, add_generation_prompt=True,",
        ),
    ],
)
def test_a_card_says_in_which_form_to_ask(tmp_path: Path, data: dict[str, Any], said: str | None, asked: str) -> None:
    write_adapter_card(replace(TUNING, data=data), tmp_path / "card.md")
    card = (tmp_path / "card.md").read_text()
    assert asked in card and ("It was tuned on" in card) == (said is not None) and (said or "") in card
    compile(python_of(card), "card", "exec")


@pytest.mark.parametrize("prompt", ["Q:\t{q}\n\nA:", "été \x1b[2J", "\x7f", "x" * 10**6, None])
def test_a_form_of_prompts_is_written_so_that_it_is_read_again(tmp_path: Path, prompt: str | None) -> None:
    tuning = replace(TUNING, data=with_prompt(TUNING.data, prompt))
    (tmp_path / TUNING_FILE).write_text(tuning.to_json(), encoding="utf-8")
    assert read_tuning(tmp_path).data["task"] == "sciq"  # nothing in it is refused
    told = prompt is not None and len(prompt) < 1000
    assert prompt_of(read_tuning(tmp_path).data) == (prompt if told else None)


def test_built_in_tasks_tell_the_form_of_their_prompts() -> None:
    columns = ("question", "support", "goal", "opa", "opb", "opc", "opd", "question_stem")
    doc = {name: f"<{name}>" for name in columns}
    for name in ("sciq", "piqa", "medmcqa", "openbookqa"):
        task = get_task(name)
        assert task.prompt_format is not None and task.prompt_format.format(**doc) == task.prompt(doc)
    alpaca = get_task("alpaca")
    record = {"instruction": "{instruction}", "input": "{input}", "output": "x"}
    assert alpaca.prompt_format == alpaca.prompt(alpaca.convert(record))


def test_no_tag_can_be_taken_for_activated_lora() -> None:
    for card in ("map_card.md", "adapter_card.md"):
        metadata = (EXPECTED / card).read_text().split("---")[1]
        assert "alora" not in metadata.lower() and 'Activated LoRA"' in (EXPECTED / card).read_text()


def test_a_card_without_facts_says_so(tmp_path: Path) -> None:
    blank = make_map(
        base_model=None, base_revision=None, data={}, cost={}, versions={}, learning_rate=None, optimizer=None, seed=None,
        earlier_tasks=[{"estimator": "path"}],
    )  # fmt: skip
    blank.save_pretrained(tmp_path / "map")
    card = (tmp_path / "map" / "README.md").read_text()
    assert "None" not in card and "{{" not in card and "base_model" not in card.split("---")[1]
    assert "| text | not described |" in card and "| cost of the recording | not measured |" in card
    assert (
        "importance of 1 earlier recording is added up" in card
        and 'from_pretrained("FOLDER_OF_THE_BASE_MODEL")' in card
    )


def python_of(card: str) -> str:
    (code,) = re.findall(r"<!-- python -->\n```python\n(.*?)```", card, re.DOTALL)
    return str(code)


def test_the_cards_code_runs_as_it_stands(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = write_all(tmp_path / "made").parent / "model"
    hub.store.add("model", "tiny-org/tiny-llama", {path.name: path.read_bytes() for path in folder.iterdir()})
    commit = hub.store.repos["model", "tiny-org/tiny-llama"].refs["main"]
    make_map(base_revision=commit).push_to_hub("tiny-org/map")
    stored = hub.store.repos["model", "tiny-org/map"]
    card = stored.commits[stored.refs["main"]]["README.md"].content.decode()
    (tmp_path / "domain.jsonl").write_text('{"text": "one and two is three"}\n' * 4)
    monkeypatch.chdir(tmp_path)
    exec(compile(python_of(card), "card", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    for line in re.findall(r"^alora .*$", card, re.MULTILINE):
        assert make_parser().parse_known_args(shlex.split(line)[1:])[0].command in line
        if not line.startswith("alora tune"):
            assert main(shlex.split(line)[1:]) == 0

    base = AutoModelForCausalLM.from_pretrained(folder)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "tuned"))
    tuning = TUNING.public("tiny-org/tiny-llama")
    (tmp_path / "tuned" / "importance_tuning.json").write_text(
        json.dumps(json.loads(tuning.to_json()) | {"base_revision": commit})
    )
    assert main(["push", "tuned", "tiny-org/adapter", "--license", "mit"]) == 0
    stored = hub.store.repos["model", "tiny-org/adapter"]
    content = stored.commits[stored.refs["main"]]
    assert set(content) == {
        ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "importance_tuning.json",
    }  # fmt: skip
    assert json.loads(content["adapter_config.json"].content)["auto_mapping"] is None
    exec(compile(python_of(content["README.md"].content.decode()), "card", "exec"), {})
    assert "Question:" in capsys.readouterr().out


def block(marker: str) -> list[str]:
    (code,) = re.findall(rf"<!-- {marker} -->\n```bash\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return str(code).splitlines()


def test_from_one_person_to_another_as_documented(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_all(tmp_path)
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    hub.store.add("model", "tiny-org/tiny-llama", files | {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    recipe.write_text(recipe.read_text().replace("path: model", "path: tiny-org/tiny-llama"))
    (tmp_path / "model").rename(tmp_path / "not-here")
    monkeypatch.chdir(tmp_path)
    first, second = block("first person"), block("second person")
    assert len(first) + len(second) <= 10
    for line in first:
        assert main(shlex.split(line)[1:]) == 0, line
    assert "base model    tiny-org/tiny-llama, revision " in capsys.readouterr().out
    monkeypatch.setenv("HF_TOKEN", BOB)
    for line in second:
        assert main(shlex.split(line)[1:]) == 0, line
    printed = capsys.readouterr().out
    assert "ann/tiny-llama-importance  elementwise  projected" in printed and "float32" in printed
    stored = hub.store.repos["model", "bob/tiny-llama-domain"]
    card = stored.commits[stored.refs["main"]]["README.md"].content.decode()
    source = hub.store.repos["model", "ann/tiny-llama-importance"]
    assert (
        f"[ann/tiny-llama-importance](https://huggingface.co/ann/tiny-llama-importance/tree/{source.refs['main']})"
        in card
    )
    settings = json.loads((tmp_path / "tuned" / "alora" / "settings.json").read_text())
    assert settings["recording"] == f"ann/tiny-llama-importance@{source.refs['main']}"  # the run keeps to this commit
    assert "| lambda | 0.5 |" in card and "Perplexity on held-out general text went from" in card
    assert "license" not in card.split("---")[1]  # the texts' licences are not known
    assert [entry["dataset"]["name"] for entry in stored.card(stored.refs["main"])["model-index"][0]["results"]] == [
        "sums", "held-out general text",
    ]  # fmt: skip
    recorded = source.commits[source.refs["main"]]
    about = json.loads(recorded["importance_config.json"].content)
    assert about["data"]["sources"] == [{"path": "words_train.jsonl"}] and about["cost"]["seconds"] > 0
    assert about["base_revision"] == hub.store.repos["model", "tiny-org/tiny-llama"].refs["main"]
    for name, blob in [*recorded.items(), *stored.commits[stored.refs["main"]].items()]:
        assert str(tmp_path).encode() not in blob.content, name


def test_licences_are_looked_up_and_never_invented(hub: Any) -> None:
    card = b"---\nlicense: %s\n---\n"
    hub.store.add("model", "a/base", {"README.md": card % b"mit"})
    hub.store.add("model", "a/silent", {"README.md": b"no metadata"})
    hub.store.add("dataset", "a/same", {"README.md": card % b"mit"})
    hub.store.add("dataset", "a/other", {"README.md": card % b"cc-by-4.0"})
    assert look_up("a/base", ["a/same"], None, None).for_metadata == "mit"
    assert look_up("a/base", [], None, None).for_metadata == "mit"
    for base, texts in (
        ("a/base", ["a/same", "a/other"]), ("a/base", ["a/gone"]), ("a/base", ["words.jsonl"]), ("a/silent", ["a/same"]),
        ("some/folder/base", ["a/same"]),
    ):  # fmt: skip
        assert look_up(base, texts, None, None).for_metadata is None
    stated = look_up("a/base", ["a/other"], "cc-by-4.0", None)
    assert stated.for_metadata == "cc-by-4.0"
    assert stated.text == (
        "Licence: cc-by-4.0, as its publisher states. Licence of the base model: mit; of a/other: cc-by-4.0."
    )


def test_results_for_a_card(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    ours = {"general": {"token_perplexity": 43.44}}
    methods = {"base": {"general": {"token_perplexity": 42.15}, "tasks": {"sciq": {"acc": 0.3}}}, "alora": ours}
    path.write_text(json.dumps({"schema": 1, "recipe": {}, "methods": methods}))
    assert forgotten_text(card_scores(path, "alora")) == (
        "Perplexity on held-out general text went from 42.15 (base model) to 43.44 (+3.1 %)."
    )
    assert forgotten_text(CardScores(Score.from_json({"general": {"token_perplexity": None}}, "a result"))) is None
    with pytest.raises(ALoRAError, match="no results of 'lora': it has those of base, alora"):
        card_scores(path, "lora")
    with pytest.raises(ALoRAError, match="there is no file"):
        card_scores(tmp_path / "none.json", "lora")


def test_a_card_names_the_data_set_that_a_tasks_items_are_of() -> None:
    def entry(task: TaskScore) -> Any:
        (found,) = evaluation_entries(CardScores(Score(tasks={"sciq": task})))
        return found

    other = entry(TaskScore(acc=0.5, source={"hub": "somebody/other", "split": "validation"}))
    assert (other.dataset_name, other.dataset_type, other.dataset_split) == ("sciq", "somebody/other", "validation")
    old = entry(TaskScore(acc=0.5))  # results that are older than `source`
    assert (old.dataset_name, old.dataset_type, old.dataset_split) == ("sciq", "not-stated", None)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"alora": {"tasks": {"sciq": {"acc": "much"}}}}, "methods.alora.tasks.sciq.acc is 'much', not a number"),
        ({"alora": {"tasks": {"sciq": {"acc": True}}}}, "methods.alora.tasks.sciq.acc is True, not a number"),
        ({"alora": {"tasks": {"sciq": [0.5]}}}, "methods.alora.tasks.sciq is .*, not an object"),
        ({"alora": {"tasks": {"sciq": {"source": "allenai/sciq"}}}}, "source is 'allenai/sciq', not an object"),
        ({"alora": {"general": {"token_perplexity": {}}}}, "general.token_perplexity is {}, not a number"),
        ({"alora": {"general": 3}}, "methods.alora.general is 3, not an object"),
        ({"alora": None}, "methods.alora is None, not an object"),
        (["alora"], "methods is .*, not an object"),
    ],
)
def test_damaged_results_are_an_error_in_one_line(methods: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"schema": 1, "recipe": {}, "methods": methods}))
    with pytest.raises(ALoRAError, match=message):
        card_scores(path, "alora")
