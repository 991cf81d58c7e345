"""Stand-ins for the libraries that the package is built on, while its docstrings are read for the site.

The reference needs names, signatures and docstrings of alora_trainer, for which PyTorch, transformers and PEFT do not have to
be imported: that takes longer than reading all pages. Sphinx's own `autodoc_mock_imports` imports them all the same as soon as
it looks into a module's source, and fails at `X | Y`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class _StandIn:
    """What a name of such a library stands for: it can be asked for more, decorate, and be derived from."""

    def __init__(self, module: str, name: str) -> None:
        self.__module__, self.__qualname__, self.__name__ = module, name, name.rpartition(".")[2]

    def __getattr__(self, name: str) -> _StandIn:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _StandIn(self.__module__, f"{self.__qualname__}.{name}")
        setattr(self, name, made)
        return made

    def __call__(self, *given: Any, **settings: Any) -> Any:
        return given[0] if len(given) == 1 and callable(given[0]) and not settings else self

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type]:
        return (type(self.__name__, (), {"__module__": self.__module__, "__qualname__": self.__qualname__}),)

    def __repr__(self) -> str:
        return f"{self.__module__}.{self.__qualname__}"

    def __or__(self, other: Any) -> _StandIn:
        return self

    __ror__ = __or__


class _Module(ModuleType):
    def __getattr__(self, name: str) -> _StandIn:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _StandIn(self.__name__, name)
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, packages: Iterable[str]) -> None:
        self._packages = frozenset(packages)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        known = name.partition(".")[0] in self._packages
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in_for(packages: Iterable[str]) -> None:
    """Let every import of these packages and their modules give a stand-in, until this process ends.

    Args:
        packages: their names. What is imported already stays as it is.
    """
    sys.meta_path.insert(0, _Finder(packages))
