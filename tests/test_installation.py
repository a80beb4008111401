"""The wheel takes one name, metarl, and works beside a project that has packages called envs and experiments."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = ("metarl", "envs", "experiments", "pyproject.toml", "README.md", "LICENSE")
    source.mkdir()
    for name in names:
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel, which takes its dependencies from the one of the tests."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    [site] = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return folder / "bin" / "python"


def test_the_wheel_takes_one_name_and_holds_no_results(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"metarl"}
    assert {"metarl/envs/navigation.py", "metarl/experiments/navigation_2d.py"} <= set(names)
    assert [name for name in names if "results" in name and not name.endswith(".py")] == []


def test_it_works_beside_a_project_with_envs_of_its_own(python, tmp_path):
    for name in ("envs", "experiments"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"MINE = {name!r}\n")
    code = (
        "import envs, experiments, metarl, metarl.envs, metarl.experiments\n"
        "print(envs.MINE, experiments.MINE, metarl.__version__, metarl.envs.Navigation2D.name)"
    )
    printed = subprocess.check_output([str(python), "-c", code], cwd=tmp_path, text=True)
    version = printed.split()[2]
    assert printed.split() == ["envs", "experiments", version, "navigation_2d"]
    assert f"metarl_torch-{version}" in "".join(path.name for path in python.parents[1].rglob("*.dist-info"))


def test_it_trains_outside_the_repository(python, tmp_path):
    sizes = ["--num-tasks", "2", "--episodes-per-task", "2", "--iterations", "1", "--evaluation-tasks", "2"]
    command = [str(python), "-m", "metarl.experiments.navigation_2d", "--run-dir", "run", *sizes]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "run" / "evaluation.json").is_file()
