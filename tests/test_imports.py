"""The one direction: core below rl and few_shot, these below runs and check; envs by itself; experiments above all."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import metarl

ROOT = Path(__file__).parent.parent
STANDARD = set(sys.stdlib_module_names)
LIBRARY = {"torch", "numpy", "gymnasium"}
# what each room may import, by the longest name that fits; rooms of the library know nothing of those above them
ALLOWED = {
    "metarl/core": {"metarl.core", *LIBRARY},
    "metarl/rl": {"metarl.core", "metarl.rl", "metarl.runs", *LIBRARY},
    "metarl/few_shot": {"metarl.core", "metarl.few_shot", "metarl.runs", *LIBRARY},
    "metarl/few_shot/images/pictures.py": {"metarl.core", "metarl.few_shot", "metarl.runs", "PIL", *LIBRARY},
    "envs": {"numpy", "gymnasium", "mujoco", "metaworld", "scipy"},  # scipy where Meta-World, which needs it, is used
}


def imported(path: Path) -> set[str]:
    """The modules that a file imports; of relative imports none, for they stay in the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return {name for name in found if name.split(".")[0] not in STANDARD}


def may(name: str, allowed: set[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_they_may(room):
    files = [ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py")
    rules = {path: path.relative_to(ROOT).as_posix() for path in files}
    found = {n: path.name for path, own in rules.items() if own == room or own not in ALLOWED for n in imported(path)}
    assert {name: file for name, file in found.items() if not may(name, ALLOWED[room])} == {}


def test_relative_imports_stay_in_their_package():
    for path in ROOT.glob("*/**/*.py"):
        if path.parts[len(ROOT.parts)] in ("metarl", "envs", "experiments"):
            levels = [n.level for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
            assert max(levels, default=0) <= 1, path


def test_the_library_imports_neither_the_simulator_nor_the_network():
    names = ("mujoco", "metarl.envs", "metarl.experiments", "matplotlib", "PIL")
    code = f"""
import sys, metarl
for name in metarl.__all__:
    getattr(metarl, name)
print([name for name in {names} if name in sys.modules])"""
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


def test_importing_the_library_changes_no_environment_variable_and_needs_no_torch():
    code = (
        "import os, sys; before = dict(os.environ); import metarl; "
        "print(dict(os.environ) == before, 'torch' in sys.modules); "
        "import gymnasium; before = dict(os.environ); "  # which sets a variable of its own
        "metarl.Learner; print(dict(os.environ) == before)"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    assert printed == ["True", "False", "True"]


def test_every_public_name_is_there_and_is_what_type_checkers_see():
    tree = ast.parse((ROOT / "metarl/__init__.py").read_text())
    [checked] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name for node in checked.body for alias in node.names}
    assert seen | {"__version__"} == set(metarl.__all__) <= set(dir(metarl))
    assert all(hasattr(metarl, name) for name in metarl.__all__)
    with pytest.raises(AttributeError):
        metarl.Lerner  # noqa: B018


def test_dependencies_have_lower_bounds_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    for dependency in project["dependencies"] + extras:
        assert re.fullmatch(r"[\w.-]+>=[\d.]+", dependency)


def test_no_import_needs_the_network():
    modules = [
        ".".join(["metarl", "experiments", *path.relative_to(ROOT / "experiments").with_suffix("").parts])
        for path in (ROOT / "experiments").rglob("*.py")
        if path.name != "__init__.py"
    ]
    code = (
        "import importlib, socket\n"
        "def refuse(*arguments): raise OSError('an import reached for the network')\n"
        "socket.socket.connect = refuse\n"
        f"for name in ['metarl.envs', *{modules}]:\n"
        "    importlib.import_module(name)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
