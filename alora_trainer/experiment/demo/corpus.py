"""General text that every Python brings along: docstrings, help topics and source code of the standard library.

The text is read from the source files with :mod:`ast`; nothing is imported or executed. Each module belongs to one of
three splits, chosen by a hash of its family name, so that the text a model was pretrained on and the text it is tested
on never come from the same module, on whatever Python version either was extracted.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alora_trainer.data.sources import write_lines
from alora_trainer.errors import ALoRAError

SUBSETS = ("docstrings", "topics", "code")
SPLITS = ("pretrain", "train", "test")
TRAIN_BYTES = 400_000
TEST_BYTES = 60_000
MIN_CHARACTERS = 120
MAX_TEST_DOCUMENT = 4_000

_SPLIT_SALT = "alora-demo-1:"
_MODULE_SHARES = (0.76, 0.12)
_TOPIC_SHARES = (0.5, 0.25)  # topics are few; the rest of each pair is the test part
_SHORTEST_PARAGRAPH = 60  # shorter ones ("Returns None.") recur everywhere and give nothing away

_SKIPPED_DIRECTORIES = frozenset(
    {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "ensurepip",
        "pydoc_data",
        "__pycache__",
        "__phello__",
        "lib-dynload",
    }
)

# Modules that are, or once were, part of another one: they share text, so they must share a split.
_FAMILIES = {
    "annotationlib": "typing",
    "genericpath": "posixpath",
    "ntpath": "posixpath",
    "nturl2path": "urllib",
    "sre_compile": "re",
    "sre_constants": "re",
    "sre_parse": "re",
    "weakrefset": "weakref",
    "_compat_pickle": "pickle",
    "_sitebuiltins": "site",
}


@dataclass(frozen=True)
class Document:
    """One text of the corpus: its subset, its split, the name it was filed under and the text itself."""

    subset: str
    split: str
    name: str
    text: str


def split_of(name: str, shares: tuple[float, float] = _MODULE_SHARES) -> str:
    """The split of a module family or help topic: ``pretrain``, ``train`` or ``test``; a pure function of the name."""
    digest = hashlib.sha1((_SPLIT_SALT + name).encode("utf-8")).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    if share < shares[0]:
        return "pretrain"
    return "train" if share < sum(shares) else "test"


def family(module: str) -> str:
    """The name that decides a module's split: its top-level package without the marks of a private twin.

    ``_pydatetime`` and ``datetime`` hold the same text on different Python versions, and files move inside a package;
    neither may carry text from one split to another.
    """
    top = module.partition(".")[0]
    if top in _FAMILIES:
        return _FAMILIES[top]
    if top.startswith("_") and not top.startswith("__"):
        top = top[1:].removeprefix("py_")
        if top.startswith("py"):
            top = top[2:]
        top = top.partition("_")[0] or top
    return _FAMILIES.get(top, top)


def standard_library() -> Path:
    """The folder of the standard library's sources; :class:`ALoRAError` if this Python has none."""
    folder = Path(sysconfig.get_path("stdlib"))
    if not (folder / "pydoc_data" / "topics.py").is_file() or not (folder / "textwrap.py").is_file():
        raise ALoRAError(
            f"the demo takes its text from the standard library's source files, but {folder} has none; "
            "run it with a Python that is installed with its .py files and pydoc_data (not a stripped or zipped one)"
        )
    return folder


def documents(folder: Path | None = None) -> list[Document]:
    """Every document of the corpus, in an order that depends on names alone, each paragraph in one split only.

    Text that occurs in several splits (help topics quote each other, modules copy functions) is kept where it counts
    against us least: in the pretraining part before the training part, and there before the test part, so that no test
    text was ever trained on. Inside a split only whole documents are held to be duplicates.
    """
    folder = standard_library() if folder is None else folder
    found = sorted(
        (*_module_documents(folder), *_topic_documents(folder)),
        key=lambda document: (SPLITS.index(document.split), document.subset, document.name, document.text),
    )
    kept = []
    bodies: set[str] = set()
    earlier: set[str] = set()
    for split in SPLITS:
        current: set[str] = set()
        for document in found:
            if document.split != split:
                continue
            paragraphs = [(paragraph, " ".join(paragraph.split())) for paragraph in document.text.split("\n\n")]
            text = "\n\n".join(paragraph for paragraph, key in paragraphs if key not in earlier)
            body = " ".join(text.split("\n", 1)[-1].split())
            if len(text) >= MIN_CHARACTERS and body not in bodies:
                bodies.add(body)
                kept.append(Document(document.subset, split, document.name, text))
                current.update(key for _, key in paragraphs if len(key) >= _SHORTEST_PARAGRAPH)
        earlier |= current
    return kept


def write_general_text(folder: Path) -> dict[str, Path]:
    """Write ``FOLDER/{docstrings,topics,code}_{train,test}.jsonl`` (one ``{"text": ...}`` a line); name -> path.

    The held-out parts are extracted anew from the Python that runs. Which documents are taken, when a part has more
    than enough, is decided by a hash of their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    corpus = documents()
    paths = {}
    for subset in SUBSETS:
        for split, limit in (("train", TRAIN_BYTES), ("test", TEST_BYTES)):
            chosen = [document for document in corpus if (document.subset, document.split) == (subset, split)]
            texts = _take(chosen, limit, MAX_TEST_DOCUMENT if split == "test" else None)
            path = folder / f"{subset}_{split}.jsonl"
            write_lines(path, [{"text": text} for text in texts])
            paths[f"{subset}_{split}"] = path
    return paths


def _take(chosen: list[Document], limit: int, longest: int | None) -> list[str]:
    """Texts of at most ``limit`` bytes together, in the order of the hash of their names."""
    texts: list[str] = []
    size = 0
    for document in sorted(chosen, key=lambda d: hashlib.sha1(f"{d.subset}:{d.name}".encode()).hexdigest()):
        text = document.text if longest is None else _clip(document.text, longest)
        length = len(text.encode("utf-8"))
        if size + length <= limit:
            texts.append(text)
            size += length
    return texts


def _clip(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return text[: max(text.rfind("\n", 0, longest), 1)].rstrip()


def _topic_documents(folder: Path) -> Iterator[Document]:
    """The texts of ``help('TOPIC')``, read from the literal in ``pydoc_data/topics.py``."""
    tree = ast.parse((folder / "pydoc_data" / "topics.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                yield Document("topics", split_of(name, _TOPIC_SHARES), name, text.strip())


def _module_documents(folder: Path) -> Iterator[Document]:
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if _SKIPPED_DIRECTORIES.intersection(relative.parts) or relative.name.startswith("_sysconfigdata"):
            continue
        parts = [*relative.parts[:-1], relative.stem]
        module = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        with tokenize.open(path) as stream:
            source = stream.read()
        yield from module_documents(module, source)


def module_documents(module: str, source: str) -> Iterator[Document]:
    """A module's documents: its own docstring, and for each top-level class or function its help text and its code."""
    split = split_of(family(module))
    tree = ast.parse(source)
    docstring = ast.get_docstring(tree)
    if docstring:
        yield Document("docstrings", split, module, f"module {module}\n\n{docstring}")
    lines = source.splitlines()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{module}.{node.name}"
            help_text = "\n\n".join(_help_entries(node, ""))
            if help_text:
                yield Document("docstrings", split, name, help_text)
            yield Document("code", split, name, _code(node, lines))


def _help_entries(node: ast.AST, prefix: str) -> Iterator[str]:
    """What help() would say of a class or function and of the members that have docstrings, one text each."""
    for member in [node] if not prefix else ast.iter_child_nodes(node):
        if not isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        docstring = ast.get_docstring(member)
        if isinstance(member, ast.ClassDef):
            if docstring:
                yield f"class {prefix}{member.name}\n\n{docstring}"
            yield from _help_entries(member, f"{prefix}{member.name}.")
        elif docstring:
            yield f"{prefix}{member.name}({ast.unparse(member.args)})\n\n{docstring}"


def _code(node: ast.AST, lines: list[str]) -> str:
    """The source of a class or function without its docstrings, which are a subset of their own."""
    dropped: set[int] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(inner):
            statement = inner.body[0]
            dropped.update(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
    return "\n".join(lines[number - 1].rstrip() for number in range(first, last + 1) if number not in dropped)
