"""Files of agents with other content than an agent's: what their tests share."""

import pytest
import torch

from metarl.runs import RunError, load_checkpoint, save_checkpoint

WRONG = ["text", None, 2.5, [1, "x"], {"a": 1}, torch.ones(7)]


def assert_refused_with(agent, path, wrong, file):
    """A file of this agent that holds something wrong at a path of names is refused, in one line that names it."""
    agent.save(file)
    state = load_checkpoint(file)
    holder = state
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = wrong
    save_checkpoint(file, state)
    with pytest.raises(RunError) as refusal:
        type(agent).load(file)
    assert str(refusal.value).startswith(f"{file}: ")
    assert "\n" not in str(refusal.value)
