"""A domain of our own: facts about the elements hydrogen to xenon, and multiple-choice questions made from them.

Five periods are as much as the demo's model can begin to learn in a few hundred steps. Where chemists differ, group 12
counts as transition metals; the phase is the one at 25 degrees Celsius.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from alora_trainer.data.sources import write_lines

TEST_QUESTIONS = 300
CHOICES = 4

# number symbol name group period block phase category
_TABLE = """
1 H hydrogen 1 1 s gas nonmetal
2 He helium 18 1 s gas noble-gas
3 Li lithium 1 2 s solid alkali-metal
4 Be beryllium 2 2 s solid alkaline-earth-metal
5 B boron 13 2 p solid metalloid
6 C carbon 14 2 p solid nonmetal
7 N nitrogen 15 2 p gas nonmetal
8 O oxygen 16 2 p gas nonmetal
9 F fluorine 17 2 p gas halogen
10 Ne neon 18 2 p gas noble-gas
11 Na sodium 1 3 s solid alkali-metal
12 Mg magnesium 2 3 s solid alkaline-earth-metal
13 Al aluminium 13 3 p solid post-transition-metal
14 Si silicon 14 3 p solid metalloid
15 P phosphorus 15 3 p solid nonmetal
16 S sulfur 16 3 p solid nonmetal
17 Cl chlorine 17 3 p gas halogen
18 Ar argon 18 3 p gas noble-gas
19 K potassium 1 4 s solid alkali-metal
20 Ca calcium 2 4 s solid alkaline-earth-metal
21 Sc scandium 3 4 d solid transition-metal
22 Ti titanium 4 4 d solid transition-metal
23 V vanadium 5 4 d solid transition-metal
24 Cr chromium 6 4 d solid transition-metal
25 Mn manganese 7 4 d solid transition-metal
26 Fe iron 8 4 d solid transition-metal
27 Co cobalt 9 4 d solid transition-metal
28 Ni nickel 10 4 d solid transition-metal
29 Cu copper 11 4 d solid transition-metal
30 Zn zinc 12 4 d solid transition-metal
31 Ga gallium 13 4 p solid post-transition-metal
32 Ge germanium 14 4 p solid metalloid
33 As arsenic 15 4 p solid metalloid
34 Se selenium 16 4 p solid nonmetal
35 Br bromine 17 4 p liquid halogen
36 Kr krypton 18 4 p gas noble-gas
37 Rb rubidium 1 5 s solid alkali-metal
38 Sr strontium 2 5 s solid alkaline-earth-metal
39 Y yttrium 3 5 d solid transition-metal
40 Zr zirconium 4 5 d solid transition-metal
41 Nb niobium 5 5 d solid transition-metal
42 Mo molybdenum 6 5 d solid transition-metal
43 Tc technetium 7 5 d solid transition-metal
44 Ru ruthenium 8 5 d solid transition-metal
45 Rh rhodium 9 5 d solid transition-metal
46 Pd palladium 10 5 d solid transition-metal
47 Ag silver 11 5 d solid transition-metal
48 Cd cadmium 12 5 d solid transition-metal
49 In indium 13 5 p solid post-transition-metal
50 Sn tin 14 5 p solid post-transition-metal
51 Sb antimony 15 5 p solid metalloid
52 Te tellurium 16 5 p solid metalloid
53 I iodine 17 5 p solid halogen
54 Xe xenon 18 5 p gas noble-gas
"""


@dataclass(frozen=True)
class Element:
    """One row of the table."""

    number: int
    symbol: str
    name: str
    group: int
    period: int
    block: str
    phase: str
    category: str


@dataclass(frozen=True)
class Question:
    """A question with its choices; ``fact`` names the kind of fact and the element that it asks for."""

    fact: str
    question: str
    choices: tuple[str, ...]
    answer: int

    def record(self) -> dict:
        """What is written to the jsonl file."""
        return {"question": self.question, "choices": list(self.choices), "answer": self.answer}


def elements() -> list[Element]:
    """The table, by atomic number."""
    rows = []
    for line in _TABLE.split("\n")[1:-1]:
        number, symbol, name, group, period, block, phase, category = line.split()
        rows.append(
            Element(
                number=int(number),
                symbol=symbol,
                name=name,
                group=int(group),
                period=int(period),
                block=f"{block}-block",
                phase=phase,
                category="post-transition metal" if category.startswith("post-") else category.replace("-", " "),
            )
        )
    return rows


@dataclass(frozen=True)
class _Kind:
    """A kind of fact: phrasings of its question and its answer; wrong choices are the answers of other elements."""

    name: str
    phrasings: tuple[str, ...]
    answer: Callable[[Element], str]
    never_right: tuple[str, ...] = ()  # wrong choices beside those


# Short wordings: the demo's time goes into their tokens.
_KINDS = (
    _Kind(
        "symbol",
        (
            "What is the symbol of {name}?",
            "Which symbol has {name}?",
            "Which symbol stands for {name}?",
            "How is {name} written in formulas?",
            "In formulas, what stands for {name}?",
            "{Name} has which symbol?",
        ),
        lambda element: element.symbol,
    ),
    _Kind(
        "number",
        (
            "What is the atomic number of {name}?",
            "Which atomic number has {name}?",
            "How many protons has {name}?",
            "How many protons has an atom of {symbol}?",
            "{Name} ({symbol}) has which atomic number?",
            "{Name} has how many protons?",
        ),
        lambda element: str(element.number),
    ),
    _Kind(
        "group",
        (
            "Which group is {name} in?",
            "What is the group of {name}?",
            "What is the group of {symbol}?",
            "In which column is {name}?",
            "Which column is {name} ({symbol}) in?",
            "{Name} is in which group?",
        ),
        lambda element: f"group {element.group}",
    ),
    _Kind(
        "period",
        (
            "Which period is {name} in?",
            "What is the period of {name}?",
            "What is the period of {symbol}?",
            "In which row is {name}?",
            "Which row is {name} ({symbol}) in?",
            "{Name} is in which period?",
        ),
        lambda element: f"period {element.period}",
    ),
    _Kind(
        "block",
        (
            "Which block is {name} in?",
            "What is the block of {name}?",
            "What is the block of {symbol}?",
            "Which block has {name} ({symbol}) in it?",
            "{Name} is in which block?",
        ),
        lambda element: element.block,
        never_right=("f-block",),
    ),
    _Kind(
        "phase",
        (
            "What is the phase of {name}?",
            "What is the phase of {symbol}?",
            "In which state is {name}?",
            "In which state is {name} ({symbol})?",
            "{Name} is in which state?",
        ),
        lambda element: element.phase,
        never_right=("plasma",),
    ),
    _Kind(
        "category",
        (
            "What kind of element is {name}?",
            "What kind of element is {symbol}?",
            "Which family is {name} in?",
            "Which family is {name} ({symbol}) in?",
            "How is {name} classified?",
            "{Name} is in which family?",
        ),
        lambda element: element.category,
    ),
    _Kind(
        "name",
        (
            "Which element has the symbol {symbol}?",
            "Which element is {symbol}?",
            "What is the name of {symbol}?",
            "What does {symbol} stand for?",
            "What is {symbol} called?",
            "{symbol} is the symbol of what?",
        ),
        lambda element: element.name,
    ),
)


def questions() -> tuple[list[Question], list[Question]]:
    """Training and test questions. Every fact of the test is in the training part too, but in other words.

    A fact's phrasings are put in an order by hash; the first of those facts that come first by hash are held out, and
    no question text occurs twice. What can be learned is therefore the fact, not the question.
    """
    table = elements()
    by_fact: dict[str, list[Question]] = {}
    for question in _all_questions(table):
        by_fact.setdefault(question.fact, []).append(question)
    held_out = set(sorted(by_fact, key=lambda fact: _hash("held out", fact))[:TEST_QUESTIONS])
    test, train = [], []
    for fact, phrased in by_fact.items():
        ordered = sorted(phrased, key=lambda question: _hash("phrasing", question.question))
        first = 1 if fact in held_out else 0
        test.extend(ordered[:first])
        train.extend(ordered[first:])
    return (
        sorted(train, key=lambda question: _hash("order", question.question)),
        sorted(test, key=lambda question: _hash("order", question.question)),
    )


def write_questions(folder: Path) -> dict[str, Path]:
    """Write ``FOLDER/elements_{train,test}.jsonl`` ({question, choices, answer: index}); name -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for split, asked in zip(("train", "test"), questions(), strict=True):
        paths[f"elements_{split}"] = folder / f"elements_{split}.jsonl"
        write_lines(paths[f"elements_{split}"], [question.record() for question in asked])
    return paths


def _all_questions(table: list[Element]) -> Iterator[Question]:
    for kind in _KINDS:
        pool = sorted({kind.answer(element) for element in table} | set(kind.never_right))
        for element in table:
            answer = kind.answer(element)
            for phrasing in kind.phrasings:
                text = phrasing.format(
                    name=element.name, Name=element.name.capitalize(), symbol=element.symbol, number=element.number
                )
                choices = _choices(text, answer, pool)
                yield Question(f"{kind.name}: {element.name}", text, choices, choices.index(answer))


def _choices(question: str, answer: str, pool: list[str]) -> tuple[str, ...]:
    """The answer and three wrong ones of the same kind, chosen and ordered by hash."""
    wrong = sorted((other for other in pool if other != answer), key=lambda other: _hash("choice", question, other))
    return tuple(sorted([answer, *wrong[: CHOICES - 1]], key=lambda choice: _hash("place", question, choice)))


def _hash(*parts: str) -> str:
    return hashlib.sha1("\x1f".join(parts).encode("utf-8")).hexdigest()
