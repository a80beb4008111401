"""Every module of the library's rooms has a test file of its own, in the same place under `tests`."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WITHOUT = {
    "__init__.py",
    "errors.py",
    "learner_state.py",
}  # nothing in them does anything, or tests of the learner show it


@pytest.mark.parametrize(
    "room",
    [
        "metarl/core",
        "metarl/rl",
        "metarl/rl/rl2",
        "metarl/few_shot",
        "metarl/few_shot/methods",
        "metarl/few_shot/images",
    ],
)
def test_every_module_has_its_test_file(room):
    modules = {path.name for path in (ROOT / "metarl" / room).glob("*.py")} - WITHOUT
    missing = [name for name in sorted(modules) if not (ROOT / "tests" / "metarl" / room / f"test_{name}").exists()]
    assert missing == []
