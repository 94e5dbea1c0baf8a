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
    return parts[0] if len(parts) > 1 and parts[0] not in ("backbones", "config") else "core"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    place, imported = place_of(path), imported_by(path)
    if place != "distributed":
        assert not [name for name in imported if name.split(".")[0] == "ray"], "only distributed/ imports Ray"
    if path.stem != "tracking":
        assert not [name for name in imported if name.split(".")[0] == "mlflow"], "only tracking imports MLflow"
    if place == "core" and path.stem != "__main__":
        assert not [name for name in imported if name.startswith(("scale_ray.distributed", "scale_ray.cli."))]
    if place == "distributed":
        assert not [name for name in imported if name.startswith("scale_ray.cli.")]
    if place == "core" and (path.parent.name == "config" or path.stem in ("options", "errors")):
        ours = {name for name in imported if name.startswith("scale_ray") and not name.startswith("scale_ray.config.")}
        assert ours <= {"scale_ray.options", "scale_ray.errors"}


def test_importing_the_package_loads_neither_ray_nor_torch():
    code = "import sys, scale_ray; print(sorted({'ray', 'torch', 'mlflow', 'av'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_command_line_starts_without_torch():
    code = "import sys, scale_ray.cli.main; print(sorted({'ray', 'torch', 'mlflow', 'av'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
