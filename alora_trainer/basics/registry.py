"""Named things of one kind that can be added to from outside: estimators, storage formats, backends, methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TypeVar

from alora_trainer.basics.keys import nearest
from alora_trainer.errors import ALoRAError

# A package that adds to a registry names, under this group of entry points, the modules whose import does it:
#     [project.entry-points."alora_trainer.plugins"]
#     anything = "my_package.my_module"
PLUGIN_GROUP = "alora_trainer.plugins"

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry]):
    """Entries by name, in the order that they were registered, those of installed plugins after the package's own.

    Args:
        what: the kind of thing in a message, such as "storage format".
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> Entry:
        """Add an entry, and give it back.

        Raises:
            ALoRAError: there is another one of this name.
        """
        if name in self._entries:
            raise ALoRAError(f"there is a {self.what} {name!r} already: give the new one another name")
        self._entries[name] = entry
        return entry

    def remove(self, name: str) -> Entry:
        """Take an entry out, and give it back: for what was registered for a while, by a test say.

        Raises:
            KeyError: there is none of this name.
        """
        return self._entries.pop(name)

    def find(self, name: object, setting: str | None = None) -> Entry:
        """The entry of this name.

        Args:
            setting: what the name was given for, for the message; None says the kind of thing.

        Raises:
            ALoRAError: there is none; the message has all names, and the nearest one first.
        """
        load_plugins()
        if isinstance(name, str) and name in self._entries:
            return self._entries[name]
        given = repr(name)
        given = given if len(given) <= 42 else f"{given[:39]}...'"
        near = nearest(name, self._entries)
        meant = f"did you mean {near!r}? " if near else ""
        raise ALoRAError(f"{setting or self.what}={given} is unknown: {meant}use one of {', '.join(map(repr, self))}")

    def __getitem__(self, name: str) -> Entry:
        load_plugins()
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        load_plugins()
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        load_plugins()
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.what}: {', '.join(self._entries)})"


def has_plugins() -> bool:
    """Whether an installed package names plugins of ours; none of them is imported."""
    return bool(entry_points(group=PLUGIN_GROUP))


_loaded = False


def load_plugins() -> None:
    """Import the modules that installed packages name as plugins of ours, once a process.

    Raises:
        ALoRAError: one of them cannot be imported; the message names it.
    """
    global _loaded
    if _loaded:
        return
    _loaded = True  # before the imports: a plugin looks things up itself
    for point in entry_points(group=PLUGIN_GROUP):
        try:
            import_module(point.module)
        except Exception as error:
            _loaded = False  # the next look-up says it again, instead of going on without some of the plugins
            raise ALoRAError(
                f"the plugin {point.name!r} ({point.module}) cannot be imported: {type(error).__name__}: {error}"
            ) from error
