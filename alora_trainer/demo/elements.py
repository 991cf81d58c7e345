"""A domain of our own: facts about the first 103 chemical elements, and multiple-choice questions made from them.

Conventions where chemists differ: lanthanides and actinides before lutetium and lawrencium have no group and are the
f-block, lutetium and lawrencium close group 3; group 12 counts as transition metals; the phase is the one at 25 degrees
Celsius, and is left out for elements never seen in bulk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from alora_trainer.demo.corpus import write_jsonl

TEST_QUESTIONS = 300
CHOICES = 4

# number symbol name group period block phase category; "-" where there is none or it is not known.
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
55 Cs caesium 1 6 s solid alkali-metal
56 Ba barium 2 6 s solid alkaline-earth-metal
57 La lanthanum - 6 f solid lanthanide
58 Ce cerium - 6 f solid lanthanide
59 Pr praseodymium - 6 f solid lanthanide
60 Nd neodymium - 6 f solid lanthanide
61 Pm promethium - 6 f solid lanthanide
62 Sm samarium - 6 f solid lanthanide
63 Eu europium - 6 f solid lanthanide
64 Gd gadolinium - 6 f solid lanthanide
65 Tb terbium - 6 f solid lanthanide
66 Dy dysprosium - 6 f solid lanthanide
67 Ho holmium - 6 f solid lanthanide
68 Er erbium - 6 f solid lanthanide
69 Tm thulium - 6 f solid lanthanide
70 Yb ytterbium - 6 f solid lanthanide
71 Lu lutetium 3 6 d solid lanthanide
72 Hf hafnium 4 6 d solid transition-metal
73 Ta tantalum 5 6 d solid transition-metal
74 W tungsten 6 6 d solid transition-metal
75 Re rhenium 7 6 d solid transition-metal
76 Os osmium 8 6 d solid transition-metal
77 Ir iridium 9 6 d solid transition-metal
78 Pt platinum 10 6 d solid transition-metal
79 Au gold 11 6 d solid transition-metal
80 Hg mercury 12 6 d liquid transition-metal
81 Tl thallium 13 6 p solid post-transition-metal
82 Pb lead 14 6 p solid post-transition-metal
83 Bi bismuth 15 6 p solid post-transition-metal
84 Po polonium 16 6 p solid post-transition-metal
85 At astatine 17 6 p - halogen
86 Rn radon 18 6 p gas noble-gas
87 Fr francium 1 7 s - alkali-metal
88 Ra radium 2 7 s solid alkaline-earth-metal
89 Ac actinium - 7 f solid actinide
90 Th thorium - 7 f solid actinide
91 Pa protactinium - 7 f solid actinide
92 U uranium - 7 f solid actinide
93 Np neptunium - 7 f solid actinide
94 Pu plutonium - 7 f solid actinide
95 Am americium - 7 f solid actinide
96 Cm curium - 7 f solid actinide
97 Bk berkelium - 7 f solid actinide
98 Cf californium - 7 f solid actinide
99 Es einsteinium - 7 f solid actinide
100 Fm fermium - 7 f - actinide
101 Md mendelevium - 7 f - actinide
102 No nobelium - 7 f - actinide
103 Lr lawrencium 3 7 d - actinide
"""


@dataclass(frozen=True)
class Element:
    """One element; ``group`` and ``phase`` are None where the table has none."""

    number: int
    symbol: str
    name: str
    group: int | None
    period: int
    block: str
    phase: str | None
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
                group=None if group == "-" else int(group),
                period=int(period),
                block=f"{block}-block",
                phase=None if phase == "-" else phase,
                category="post-transition metal" if category.startswith("post-") else category.replace("-", " "),
            )
        )
    return rows


@dataclass(frozen=True)
class _Kind:
    """A kind of fact: phrasings of its question and its answer; wrong choices are the answers of other elements."""

    name: str
    phrasings: tuple[str, ...]
    answer: Callable[[Element], str | None]


# What tells an element apart by its name comes first, then the directions that lead to a name.
_KINDS = (
    _Kind(
        "symbol",
        (
            "What is the chemical symbol of {name}?",
            "Which symbol stands for {name} in the periodic table?",
            "In chemical formulas, how is {name} written?",
            "Element {number} is {name}; what is its symbol?",
        ),
        lambda e: e.symbol,
    ),
    _Kind(
        "number",
        (
            "What is the atomic number of {name}?",
            "How many protons does an atom of {name} have?",
            "At which number does {name} ({symbol}) stand in the periodic table?",
            "What is the nuclear charge of {name}?",
        ),
        lambda e: str(e.number),
    ),
    _Kind(
        "group",
        (
            "Which group of the periodic table does {name} belong to?",
            "In which column of the periodic table is {name}?",
            "What is the group of the element with the symbol {symbol}?",
            "{Name} belongs to which group?",
        ),
        lambda e: None if e.group is None else f"group {e.group}",
    ),
    _Kind(
        "period",
        (
            "Which period of the periodic table does {name} belong to?",
            "In which row of the periodic table is {name}?",
            "What is the period of the element with the symbol {symbol}?",
            "{Name} belongs to which period?",
        ),
        lambda e: f"period {e.period}",
    ),
    _Kind(
        "block",
        (
            "Which block of the periodic table does {name} belong to?",
            "In which block is the element with the symbol {symbol}?",
            "{Name} is an element of which block?",
        ),
        lambda e: e.block,
    ),
    _Kind(
        "phase",
        (
            "What is the phase of {name} at room temperature?",
            "At 25 degrees Celsius, in which state is {name}?",
            "In which state of matter is {name} ({symbol}) at room temperature?",
        ),
        lambda e: e.phase,
    ),
    _Kind(
        "category",
        (
            "What kind of element is {name}?",
            "Which family of elements does {name} belong to?",
            "How is the element with the symbol {symbol} classified?",
            "{Name} is counted among which elements?",
        ),
        lambda e: e.category,
    ),
    _Kind(
        "name of symbol",
        (
            "Which element has the symbol {symbol}?",
            "What is the name of the element written {symbol}?",
            "What does {symbol} stand for in the periodic table?",
        ),
        lambda e: e.name,
    ),
    _Kind(
        "name of number",
        (
            "Which element has the atomic number {number}?",
            "What is the name of the element with {number} protons?",
            "Which element stands at number {number} in the periodic table?",
        ),
        lambda e: e.name,
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
        write_jsonl(paths[f"elements_{split}"], [question.record() for question in asked])
    return paths


def _all_questions(table: list[Element]) -> Iterator[Question]:
    for kind in _KINDS:
        pool = sorted({answer for element in table if (answer := kind.answer(element)) is not None})
        if kind.name == "phase":
            pool.append("plasma")
        for element in table:
            answer = kind.answer(element)
            if answer is None:
                continue
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
