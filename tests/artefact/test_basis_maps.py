"""Importance in a basis in files: what weights share is there once, no adapter is, and what strangers wrote is checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alora_trainer import ALoRAError, ImportanceMap
from alora_trainer.artefact.config_file import read_config
from alora_trainer.artefact.hub.download import needed_files, pull
from alora_trainer.artefact.hub.inspect import describe
from alora_trainer.artefact.importance_map import load_reference
from alora_trainer.artefact.reading import check_reference, verify_map
from alora_trainer.artefact.theta_files import THETA_FILES
from alora_trainer.basics.safetensors_writer import tensor_digest
from alora_trainer.importance.controls import control_map
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.penalty.streaming import ResidentOmegas
from alora_trainer.weights.reference import Reference
from alora_trainer.weights.theta import AdapterTheta, BaseTheta
from tests.basis_map import KINDS, SHAPES, basis_map
from tests.dense_metric import dense_metric
from tests.tiny_map import change_config, make_map

Q0, V0, DOWN0 = (f"model.layers.0.{name}" for name in SHAPES)
INPUTS = "input_vectors"
MAPS = Path(__file__).parent / "maps"


def schema(folder: Path) -> int:
    return int(json.loads((folder / "importance_config.json").read_text())["schema_version"])


def stored_once(importance: ImportanceMap) -> int:
    """Bytes by the formula of plans and cards."""
    total = 0
    for name in importance:
        stored = importance.stored(name)
        assert isinstance(stored, InBasis)
        total += type(stored).stored_bytes(stored.shape, 5, inputs_shared=name.endswith("v_proj"))
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_what_weights_share_is_stored_once_and_read_as_one_tensor(kind: str, tmp_path: Path) -> None:
    made = basis_map(kind)
    formats = [kind, f"{kind}_bfloat16"]
    made.save_pretrained(tmp_path, storage=formats)
    assert made.nbytes == stored_once(made)
    for storage, file in zip(formats, ("importance", f"importance.{kind}_bfloat16"), strict=True):
        expected, read = made.convert(storage), ImportanceMap.from_pretrained(tmp_path, storage=storage)
        assert read == expected and read.storage == storage and read.at_base
        tensors = load_file(tmp_path / f"{file}.safetensors")
        assert f"{V0}.{INPUTS}" not in tensors and f"{Q0}.{INPUTS}" in tensors
        stored = sum(tensor.nbytes for tensor in tensors.values())
        assert stored == expected.nbytes == read.nbytes == stored_once(expected)
        for importance in (expected, read):
            q, v = (importance.stored(name).parts[INPUTS] for name in (Q0, V0))
            assert q is v and q is not importance.stored(DOWN0).parts[INPUTS]
    whole = ImportanceMap.from_pretrained(tmp_path, storage=kind).convert(formats[1])  # and converted after reading
    assert whole == made.convert(formats[1]) and whole.nbytes == stored_once(whole)
    verify_map(tmp_path)
    assert verify_map(tmp_path).kept_trace == pytest.approx(made.kept_trace)


def test_reading_in_a_format_that_is_not_there_shares_as_well(tmp_path: Path) -> None:
    basis_map().save_pretrained(tmp_path)
    read = ImportanceMap.from_pretrained(tmp_path, storage="kronecker_bfloat16")
    assert read == basis_map().convert("kronecker_bfloat16") and read.nbytes == stored_once(read)
    back = tmp_path / "back"
    read.save_pretrained(back, storage=["kronecker", "kronecker_bfloat16"])  # from the smaller one to the larger
    assert ImportanceMap.from_pretrained(back, storage="kronecker_bfloat16") == read


def test_on_another_device_it_is_one_tensor_as_well() -> None:
    made, away = basis_map(), torch.device("meta")
    omegas = [made.stored(name) for name in (Q0, V0, DOWN0)]
    q, v, down = (o.parts[INPUTS] for o in ResidentOmegas(omegas, [away] * 3).in_order())
    assert q.device == away and q is v and q is not down
    here = list(ResidentOmegas(omegas, [torch.device("cpu")] * 3).in_order())
    for one, there in zip(here, omegas, strict=True):  # nothing is copied where it is there already
        assert all(one.parts[part] is tensor for part, tensor in there.parts.items())


@pytest.mark.parametrize("keep", [0, None])
def test_nothing_kept_and_all_kept(keep: int | None, tmp_path: Path) -> None:
    made = basis_map(keep=keep)
    made.save_pretrained(tmp_path)
    assert ImportanceMap.from_pretrained(tmp_path) == made
    assert made.kept_trace == ({} if keep == 0 else {"outputs": pytest.approx(1), "inputs": pytest.approx(1)})
    card = (tmp_path / "README.md").read_text()
    assert ("0 directions of the outputs" if keep == 0 else "all directions kept") in card


def test_the_share_of_the_trace_is_that_of_the_dense_metric() -> None:
    made = basis_map("ekfac", blocks=1)
    kept, whole = 0.0, 0.0
    for name in made:
        stored = made.stored(name)
        assert isinstance(stored, InBasis)
        metric, inputs = dense_metric(stored), stored.input_vectors(torch.float64)
        projection = torch.kron(torch.eye(stored.shape[0], dtype=torch.float64), inputs @ inputs.T)
        kept, whole = kept + float((metric @ projection).trace()), whole + float(metric.trace())
    assert made.kept_trace["inputs"] == pytest.approx(kept / whole, rel=1e-4)


def test_a_map_has_the_oldest_schema_that_can_say_it(tmp_path: Path) -> None:
    alone = basis_map().select([Q0, DOWN0])
    theta = AdapterTheta({name: alone.reference[name] for name in alone})
    for name, importance, number in (
        ("elementwise", make_map(), 2),
        ("at the base", alone, 3),
        ("shared", basis_map(), 3),
    ):
        importance.save_pretrained(tmp_path / name)
        assert schema(tmp_path / name) == number
    assert BaseTheta({}).holds(theta.parameterization) and theta != alone.theta


def test_a_map_of_schema_2_still_loads_and_is_written_again(tmp_path: Path) -> None:
    """`maps/kronecker` was written before anything was shared, with an adapter of zeros."""
    folder = MAPS / "kronecker"
    assert schema(folder) == 2
    old = ImportanceMap.from_pretrained(folder)
    assert (old.kind, old.at_base, old.info.labels, old.info.tokens) == ("kronecker", False, None, 64)
    assert old.adapter_config.r == 1 and not bool(old.reference["layers.0.q_proj"].b.any())
    written = load_file(folder / "importance.safetensors")
    for name in old:
        stored = old.stored(name)
        for part, tensor in stored.parts.items():
            assert torch.equal(tensor, written[f"{name}.{part}"])
    old.save_pretrained(tmp_path / "again")
    assert schema(tmp_path / "again") == 3  # q and v share their inputs' directions
    assert ImportanceMap.from_pretrained(tmp_path / "again") == old
    before, after = (
        sum(t.nbytes for t in load_file(f / "importance.safetensors").values()) for f in (folder, tmp_path / "again")
    )
    assert after == before - old.stored("layers.0.v_proj").parts[INPUTS].nbytes
    assert "adapter       4 tensors" in describe(str(folder))


def test_the_file_of_a_shared_basis_is_fetched_with_whoever_uses_it(hub: Any, tmp_path: Path) -> None:
    made = basis_map()
    made.push_to_hub("tiny-org/map", max_shard_bytes=1)  # a file a weight, even within a block
    folder = tmp_path / "own"
    made.save_pretrained(folder, max_shard_bytes=1)
    config = read_config(folder)
    entry = config.formats["kronecker"][V0][INPUTS]
    assert (
        entry == config.formats["kronecker"][Q0][INPUTS]
        and entry.file != config.formats["kronecker"][V0]["output_values"].file
    )
    assert {entry.file, config.formats["kronecker"][V0]["output_values"].file} < set(needed_files(config, None, [V0]))
    follower = ImportanceMap.from_pretrained("tiny-org/map", layers=[V0])
    assert follower == made.select([V0])
    pull("tiny-org/map", tmp_path / "pulled", layers=["*.v_proj"])
    assert ImportanceMap.from_pretrained(tmp_path / "pulled") == made.select(["*.v_proj"])
    assert schema(tmp_path / "pulled") == 3 and not read_config(tmp_path / "pulled").shares_tensors


def test_published_and_pulled_as_it_is(hub: Any, tmp_path: Path) -> None:
    make_map().push_to_hub("tiny-org/map")  # whose adapter goes away with it
    basis_map().push_to_hub("tiny-org/map", storage=["kronecker", "kronecker_bfloat16"])
    stored = hub.store.repos["model", "tiny-org/map"]
    names = set(stored.commits[stored.refs["main"]])
    assert not {"adapter_model.safetensors", "adapter_config.json", "reference.safetensors"} & names
    for storage in (None, "kronecker_bfloat16"):
        pull("tiny-org/map", tmp_path / str(storage), storage=storage)
        expected = basis_map().convert(storage or "kronecker")
        assert ImportanceMap.from_pretrained(tmp_path / str(storage)) == expected
    assert "theta*        the base weights" in describe("tiny-org/map")


def test_everything_else_that_a_map_can_do(tmp_path: Path) -> None:
    made = basis_map("ekfac")
    assert made.adapter_config is None and made.adapter_state == {} and made.layer_weights == "none"
    assert list(made.select([1])) == [name for name in made if ".1." in name] and made.select([1]).at_base
    for control in ("uniform", "even"):
        controlled = control_map(control, made)
        assert controlled.at_base and controlled.theta == made.theta
        controlled.save_pretrained(tmp_path / control)
        assert ImportanceMap.from_pretrained(tmp_path / control) == controlled
    twice = made + basis_map("ekfac")
    assert twice.at_base and twice.mean == pytest.approx(2 * made.mean, rel=1e-4)
    assert made.with_info(license="mit") == made and made == basis_map("ekfac") and made != basis_map("ekfac", keep=4)
    folder = tmp_path / "map"
    make_map().save_pretrained(folder)
    made.save_pretrained(folder)
    assert not list(folder.glob("adapter*"))  # of the map that was there before
    with pytest.raises(ALoRAError, match="measured at the base weights, so that no adapter belongs to it"):
        check_reference(folder)
    with pytest.raises(ALoRAError, match="there is nothing to set"):
        load_reference(torch.nn.Linear(2, 2), made)
    assert set(THETA_FILES) >= {type(made.theta), AdapterTheta}


# ---- what a stranger may have done ----


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "map"
    basis_map().save_pretrained(folder, storage=["kronecker", "kronecker_bfloat16"])
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "map"))


def entry(config: dict[str, Any], name: str, part: str = INPUTS, storage: str = "kronecker") -> dict[str, Any]:
    found: dict[str, Any] = config["formats"][storage]["parts"][name][part]
    return found


LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "to a missing tensor": (lambda c: entry(c, V0).update(key="nothing"), "holds other tensors"),
    "to itself, which is nowhere": (lambda c: entry(c, V0).update(key=f"{V0}.{INPUTS}"), "holds other tensors"),
    "to another file": (
        lambda c: entry(c, V0).update(file="importance.kronecker_bfloat16.safetensors"),
        "two parts are one tensor.*as kronecker|holds other tensors",
    ),
    "of another format": (
        lambda c: entry(c, V0, storage="kronecker_bfloat16").update(file="importance.safetensors"),
        "two parts are one tensor: .*v_proj' has its 'input_vectors' where another weight has its 'input_vectors' as kronecker",
    ),
    "of another part": (
        lambda c: entry(c, V0, "output_values").update(entry(c, Q0, "input_values")),
        "two parts are one tensor: .*v_proj' has its 'output_values' where another weight has its 'input_values'",
    ),
    "of what is not shared": (
        lambda c: entry(c, V0, "input_values").update(entry(c, Q0, "input_values")),
        "two parts are one tensor: .* kronecker shares none",
    ),
    "of another shape": (lambda c: entry(c, DOWN0).update(entry(c, Q0)), r"is 'float32' \[16, 5\] and should be"),
    "with another number": (lambda c: entry(c, V0).update(shape=[16, 4]), "input values do not fit the vectors"),
    "with another dtype": (lambda c: entry(c, V0).update(dtype="bfloat16"), "should be torch.float32"),
    "with another checksum": (lambda c: entry(c, V0).update(sha256="0" * 64), "differ in dtype, shape or checksum"),
    "too old a schema": (lambda c: c.update(schema_version=2), "more than a map of its schema"),
    "more than the base": (lambda c: c.update(base_weights={"a": 1}), "there is more of it"),
    "the base is a list": (lambda c: c.update(base_weights=[]), "there is more of it"),
    "theta* twice": (lambda c: c.update(adapter={}), "theta\\* is not one"),
    "no theta*": (lambda c: c.pop("base_weights"), "theta\\* is not one"),
    "a scaling": (lambda c: c["tensors"][Q0].update(scaling=2.0), "a weight has an adapter"),
    "more than the trace": (lambda c: c["kept_trace"].update(inputs=1.5), "more than all of it"),
    "no share": (lambda c: c["kept_trace"].update(inputs="all"), "a share of the trace is 'all'"),
    "another side": (lambda c: c["kept_trace"].update(above=0.5), "other sides"),
    "labels": (lambda c: c.update(labels=3), "labels is a int"),
    "draws": (lambda c: c.update(draws="twice"), "draws is a str"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_config_that_lies(folder: Path, lie: str) -> None:
    change, message = LIES[lie]
    change_config(folder, change)
    for read in (lambda: ImportanceMap.from_pretrained(folder), lambda: verify_map(folder)):
        with pytest.raises(ALoRAError, match=message):
            read()
            ImportanceMap.from_pretrained(folder, storage="kronecker_bfloat16")


def forge(folder: Path, part: str, change: Callable[[torch.Tensor], Any], name: str = Q0) -> None:
    """Change a tensor, and tell all who share it so, with checksums that are right."""
    file = folder / "importance.safetensors"
    tensors = load_file(file)
    change(tensors[f"{name}.{part}"])
    save_file(tensors, file, metadata={"format": "pt"})

    def tell(config: dict[str, Any]) -> None:
        for parts in config["formats"]["kronecker"]["parts"].values():
            for each in parts.values():
                each["sha256"] = tensor_digest(tensors[each["key"]])

    change_config(folder, tell)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (INPUTS, lambda t: t[:, 0].mul_(1.1), "input vectors of the importance of .* are not orthonormal"),
        (INPUTS, lambda t: t.view(-1)[:1].fill_(float("nan")), "input vectors of .* hold NaN"),
        ("output_vectors", lambda t: t[:, 1].copy_(t[:, 0]), "output vectors of .* are not orthonormal"),
        ("input_values", lambda t: t[:1].neg_(), "eigenvalues of the importance of .* hold NaN or negative"),
        ("output_values", lambda t: t[-1:].fill_(float("inf")), "NaN or infinite"),
    ],
)
def test_bases_that_are_none(folder: Path, part: str, change: Callable[[torch.Tensor], Any], message: str) -> None:
    forge(folder, part, change)
    # Also for the weight that has the tensor from another one alone.
    reads: list[Callable[[], Any]] = [lambda: ImportanceMap.from_pretrained(folder), lambda: verify_map(folder)]
    if part == INPUTS:
        reads.append(lambda: ImportanceMap.from_pretrained(folder, layers=[V0]))
    for read in reads:
        with pytest.raises(ALoRAError, match=message):
            read()


def test_what_reads_all_formats_checks_all(folder: Path) -> None:
    verify_map(folder)
    assert ImportanceMap.from_pretrained(folder) == basis_map()
    made = make_map()
    assert isinstance(made.reference[Q0], Reference) and not made.at_base and made.kept_trace == {}
