"""The four rules of imports: one way, by the packages' faces, Ray and MLflow in their places, light at the start.

The rules are functions of a file's path and text, so that each is seen to fail on a planted violation.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import scale_ray

PACKAGE = Path(scale_ray.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# A file imports only from an earlier layer or from its own package.
LAYERS = (
    {"errors", "hashing"},
    {"console", "files"},
    {"config"},
    {"aggregator", "backbones", "clips", "corpus", "tracking", "warmup"},
    {"decoding", "store"},
    {"clip_sets", "extraction", "inspection"},
    {"embedding", "pretraining", "probes", "search"},
    {"distributed", "reports"},
    {"stages"},
    {"cli"},
)
# Packages without a face: their modules bring Ray, torch, PyAV or pyarrow, each its own.
BY_MODULE = {"cli", "distributed", "files", "stages"}
BY_ITSELF = {"scale_ray.corpus.sample_videos"}
# `scale_ray` itself is no layer: its version, and the names that it resolves when they are first used.
TOP = {"__init__.py", "__main__.py"}
CONSTANTS = {"scale_ray.__version__", "scale_ray.CLASSES", "scale_ray.STAGES"}


def imported(text: str) -> Iterator[str]:
    """The full name of every module, or name in a module, that a text imports, wherever it does so."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def layer_of(package: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if package in layer)


def against_the_layers(file: str, text: str) -> list[str]:
    own = package_of(file)
    return [
        name
        for name in imported(text)
        if name.startswith("scale_ray.") and name not in CONSTANTS
        if (other := name.split(".")[1]) != own and layer_of(other) >= layer_of(own)
    ]


def past_a_face(file: str, text: str) -> list[str]:
    own = package_of(file)
    return [
        name
        for name in imported(text)
        if name.startswith("scale_ray.")
        and (parts := name.split("."))[1] not in {own, *BY_MODULE}
        and (PACKAGE / parts[1]).is_dir()
        and (len(parts) > 3 or ((PACKAGE / parts[1] / f"{parts[2]}.py").exists() and parts[2] not in face(parts[1])))
        and not any(name.startswith(f"{module}.") for module in BY_ITSELF)
    ]


def face(package: str) -> set[str]:
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text())
    return {alias.asname or alias.name for n in tree.body if isinstance(n, ast.ImportFrom) for alias in n.names}


def out_of_place(file: str, text: str) -> list[str]:
    places = {
        "ray": package_of(file) == "distributed",
        "mlflow": file in ("tracking/mlflow.py", "tracking/run_record.py"),
        # Files from elsewhere are read in one place, which checks their types.
        **{f"pyarrow.{module}": file == "files/tables.py" for module in ("parquet", "dataset", "ipc", "feather")},
    }
    return [
        name
        for name in imported(text)
        if not all(in_place for module, in_place in places.items() if f"{name}.".startswith(f"{module}."))
    ]


@pytest.mark.parametrize("file", [file for file in FILES if file not in TOP])
def test_imports_run_one_way_by_the_faces_and_in_place(file):
    text = (PACKAGE / file).read_text()
    assert not against_the_layers(file, text)
    assert not past_a_face(file, text)
    assert not out_of_place(file, text)


def test_every_package_has_a_layer():
    layered = set().union(*LAYERS)
    assert {package_of(file) for file in FILES if file not in TOP} == layered


def test_a_planted_violation_of_each_rule_is_found():
    assert against_the_layers("store/lease.py", "def f():\n    from scale_ray.probes import ProbeTable")
    assert against_the_layers("probes/knn.py", "from scale_ray.pretraining import fit")
    assert against_the_layers("clips.py", "if TYPE_CHECKING:\n    from scale_ray.cli.main import main")
    assert past_a_face("probes/knn.py", "from scale_ray.store.lease import Lease")
    assert past_a_face("probes/knn.py", "from scale_ray.store import lease")
    assert not past_a_face("stages/demo.py", "from scale_ray.corpus.sample_videos import MOTIONS")
    assert out_of_place("stages/extract.py", "import ray.data")
    assert out_of_place("tracking/run_folder.py", "from mlflow.entities import Metric")
    assert out_of_place("store/shard_store.py", "import pyarrow.parquet as pq")
    assert out_of_place("store/shard_store.py", "from pyarrow import dataset")
    assert not out_of_place("store/shard_store.py", "from pyarrow import fs")


LIGHT = [
    ("scale_ray", {"ray", "torch", "mlflow", "av"}),
    ("scale_ray.cli.main", {"ray", "torch", "mlflow", "av"}),
    ("scale_ray.decoding", {"torch", "pyarrow"}),
    ("scale_ray.distributed.stream", {"torch"}),
    ("scale_ray.store", {"av"}),
    ("scale_ray.reports", {"torchvision"}),
    ("scale_ray.probes", {"sklearn"}),
    ("scale_ray.stages.embed", {"mlflow", "sklearn", "torchvision"}),
    ("scale_ray.stages.pretrain", {"mlflow", "sklearn", "torchvision"}),
]


def loaded_with(module: str, heavy: set[str]) -> str:
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


@pytest.mark.parametrize(("module", "heavy"), LIGHT, ids=[module for module, _ in LIGHT])
def test_a_module_loads_only_what_it_needs(module, heavy):
    assert loaded_with(module, heavy) == ""


def test_a_heavy_import_is_found():
    assert loaded_with("scale_ray.aggregator", {"torch", "ray"}) == "torch"
