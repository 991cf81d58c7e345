"""Named things: found, added once, and told apart from what was meant."""

from __future__ import annotations

import pytest

from alora_trainer.basics.registry import Registry
from alora_trainer.errors import ALoRAError


def test_entries_keep_their_order_and_are_found_by_name() -> None:
    shapes: Registry[int] = Registry("shape")
    assert shapes.register("square", 4) == 4 and shapes.register("triangle", 3) == 3
    assert list(shapes) == ["square", "triangle"] and shapes["square"] == shapes.find("square") == 4
    assert "circle" not in shapes and None not in shapes and ["square"] not in shapes


def test_a_name_is_given_once() -> None:
    shapes: Registry[int] = Registry("shape")
    shapes.register("square", 4)
    with pytest.raises(ALoRAError, match="there is a shape 'square' already"):
        shapes.register("square", 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sqare", "form='sqare' is unknown: did you mean 'square'\\? use one of 'square', 'triangle'$"),
        ("circle", "form='circle' is unknown: use one of"),
        (None, "form=None is unknown"),
        (["square"], "form=\\['square'\\] is unknown"),
        ("x" * 500, "form='x{30,40}.{3,5} is unknown"),
    ],
)
def test_what_is_not_there_is_told(name: object, message: str) -> None:
    shapes: Registry[int] = Registry("shape")
    for shape, corners in (("square", 4), ("triangle", 3)):
        shapes.register(shape, corners)
    with pytest.raises(ALoRAError, match=message):
        shapes.find(name, "form")
