"""What imports what: the maths knows nothing of Ray, and imports run one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import scale_ray

PACKAGE = Path(scale_ray.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_by(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def place_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if parts[0] in ("cli", "distributed", "stages") else "core"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    place, imported = place_of(path), imported_by(path)
    if place != "distributed":
        assert not [name for name in imported if name.split(".")[0] == "ray"], "only distributed/ imports Ray"
    if path.relative_to(PACKAGE).parts != ("tracking", "mlflow.py"):
        assert not [name for name in imported if name.split(".")[0] == "mlflow"], "only tracking/mlflow imports MLflow"
    above = {"core": ("distributed", "stages", "cli"), "distributed": ("stages", "cli"), "stages": ("cli",), "cli": ()}
    if path.stem != "__main__":
        assert not [
            name for name in imported if f"{name}.".startswith(tuple(f"scale_ray.{one}." for one in above[place]))
        ]
    if path.parent.name == "config" or path.stem in ("option", "errors"):
        ours = {name for name in imported if name.startswith("scale_ray") and not name.startswith("scale_ray.config.")}
        assert ours <= {"scale_ray.errors"}


def test_importing_the_package_loads_neither_ray_nor_torch():
    code = "import sys, scale_ray; print(sorted({'ray', 'torch', 'mlflow', 'av'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_command_line_starts_without_torch():
    code = "import sys, scale_ray.cli.main; print(sorted({'ray', 'torch', 'mlflow', 'av'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
