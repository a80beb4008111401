"""What the script says where Meta-World is missing; the rest is in tests/envs/test_meta_world.py."""

import sys

from metarl.experiments import meta_world
from metarl.experiments.runner.training import main
from tests.experiments.runner.helpers import error_of


def test_without_meta_world_there_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "metaworld", None)
    line = error_of(capsys, main, meta_world.EXPERIMENT, ["--benchmark", "ML1", "--env", "reach-v3"])
    assert line == "error: Meta-World is not installed; pip install '.[meta-world]'"
    line = error_of(capsys, main, meta_world.EXPERIMENT, ["--benchmark", "ML2"])
    assert line == "error: --benchmark = 'ML2'; allowed: ML1, ML10, ML25, ML45; the nearest is ML25"
    assert list(tmp_path.iterdir()) == []
