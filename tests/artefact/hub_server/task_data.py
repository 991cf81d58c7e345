"""The task data sets under their real ids, in their real schemas and file formats, with a few items of our own."""

from __future__ import annotations

import io
import json
from typing import Any

from tests.artefact.hub_server.store import Store

_FACTS = [
    ("How many legs has a spider?", ["eight", "six", "ten", "four"], "Spiders have eight legs, insects six."),
    ("What do plants take up from the air?", ["carbon dioxide", "helium", "iron", "salt"], ""),
    ("Which of these is a metal?", ["copper", "sulphur", "neon", "wood"], "Copper conducts electricity."),
    ("What falls from clouds?", ["rain", "sand", "light", "soil"], "Water that gathers in clouds falls as rain."),
    ("What do bees make?", ["honey", "milk", "silk", "paper"], ""),
]

SCIQ: list[dict[str, Any]] = [
    {
        "question": question,
        "distractor3": choices[3],
        "distractor1": choices[1],
        "distractor2": choices[2],
        "correct_answer": choices[0],
        "support": support,
    }
    for question, choices, support in _FACTS
]
PIQA: list[dict[str, Any]] = [
    {"goal": "To dry a wet shirt,", "sol1": "hang it in the sun.", "sol2": "put it into water.", "label": 0},
    {"goal": "To open a tin,", "sol1": "blow on it.", "sol2": "use a tin opener.", "label": 1},
    {"goal": "To cool tea,", "sol1": "wait a while.", "sol2": "boil it again.", "label": 0},
    {"goal": "To sharpen a pencil,", "sol1": "turn it in a sharpener.", "sol2": "dip it into ink.", "label": 0},
]
MEDMCQA: list[dict[str, Any]] = [
    {
        "id": f"own-{number}",
        "question": question,
        **{f"op{letter}": choice for letter, choice in zip("abcd", choices, strict=True)},
        "cop": answer,
        "choice_type": "single",
        "exp": None,
        "subject_name": "Anatomy",
        "topic_name": None,
    }
    for number, (question, choices, answer) in enumerate(
        [
            ("Where is the femur?", ["arm", "thigh", "skull", "foot"], 1),
            ("Which organ pumps blood?", ["liver", "lung", "skin", "heart"], 3),
            ("Which vitamin does sunlight make?", ["D", "A", "C", "K"], 0),
        ]
    )
]


def add_task_data(store: Store) -> None:
    """Serve the three data sets: SciQ as parquet files, the others as JSON lines."""
    parquet = {f"data/{split}-00000-of-00001.parquet": _parquet(SCIQ) for split in ("train", "validation", "test")}
    store.add("dataset", "allenai/sciq", parquet | {"README.md": b"---\nlicense: cc-by-nc-3.0\n---\n"})
    store.add("dataset", "baber/piqa", {f"{split}.jsonl": _lines(PIQA) for split in ("train", "validation")})
    splits = ("train", "validation", "test")
    store.add("dataset", "openlifescienceai/medmcqa", {f"data/{split}.jsonl": _lines(MEDMCQA) for split in splits})


def _lines(items: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(item) + "\n" for item in items).encode()


def _parquet(items: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(items), buffer)
    return buffer.getvalue()
