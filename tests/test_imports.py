"""The one direction: metarl and envs know neither each other nor the experiments."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STANDARD = set(sys.stdlib_module_names)
ALLOWED = {
    "metarl": {"metarl", "torch", "numpy", "gymnasium"},
    "envs": {"envs", "numpy", "gymnasium", "mujoco", "metaworld"},
}


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_they_may(package):
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.split(".")[0]: path.name for name in names}
    assert set(found) - STANDARD <= ALLOWED[package], found


def test_the_library_imports_neither_the_simulator_nor_the_network():
    code = "import sys, metarl; print([m for m in ('mujoco', 'envs', 'experiments', 'matplotlib') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


def test_dependencies_have_lower_bounds_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    for dependency in project["dependencies"] + extras:
        assert re.fullmatch(r"[\w.-]+>=[\d.]+", dependency)


def test_no_import_needs_the_network():
    scripts = [path.stem for path in (ROOT / "experiments").glob("*.py")]
    code = (
        "import importlib, socket\n"
        "def refuse(*arguments): raise OSError('an import reached for the network')\n"
        "socket.socket.connect = refuse\n"
        f"for name in ['metarl', 'envs', *{scripts}]:\n"
        "    importlib.import_module(name if name in ('metarl', 'envs') else f'experiments.{name}')"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
