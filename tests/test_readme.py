"""The README's example runs as printed, only shorter."""

import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_learns_adapts_and_acts(capsys):
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip() and not line.startswith("import")]) < 15
    shorter = example.replace("range(100)", "range(2)").replace("tasks=20, episodes=20", "tasks=3, episodes=4")
    names: dict = {}
    exec(shorter, names)
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert len(names["stages"]) == 4
    assert names["distribution"].action_space.contains(names["action"].astype(np.float64))


@pytest.mark.parametrize("script", sorted(set(re.findall(r"experiments/(\w+)\.py", README))))
def test_every_script_it_names_exists(script):
    assert (Path(__file__).parent.parent / "experiments" / f"{script}.py").exists()
