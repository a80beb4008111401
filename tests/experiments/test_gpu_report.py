"""The report on a GPU: its parts run on the CPU, where both devices are the same."""

import json

import pytest
import torch

from metarl.experiments import gpu_report
from metarl.experiments.runner import device_parity
from metarl.experiments.runner.device_parity import Parity
from tests.experiments.runner.helpers import error_of

TINY = {"num_tasks": 2, "episodes_per_task": 2, "horizon": 5, "hidden_sizes": (8,), "hvp_sample_fraction": 1.0}
POLICIES = {"navigation": ("navigation_2d", "paper", TINY)}


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_report, "REPEATS", {"cpu": 1})
        patch.setattr(gpu_report, "RECORDED", 1)
        return gpu_report.report("cpu", POLICIES, 2)


def test_the_cpu_agrees_with_itself(found):
    assert {name: (of["difference"], of["holds"]) for name, of in found["parity"].items()} == {
        **{
            f"navigation: {name}": (0.0, True)
            for name in ("adapted parameters", "meta-gradient", "Hessian-vector product", "loss and KL after a step")
        },
        **{
            f"Omniglot, {steps}: {name}": (0.0, True)
            for steps in ("1 inner step", "5 inner steps")
            for name in ("meta-gradient", "losses")
        },
    }


def test_times_memory_and_operations_are_told(found):
    assert set(found["times"]) == {"navigation", "Omniglot, 2 tasks, 1 inner step", "Omniglot, 2 tasks, 5 inner steps"}
    assert set(found["times"]["navigation"]) == {"cpu"}
    measured = found["times"]["navigation"]["cpu"]
    assert measured["update_seconds"]["median"] < measured["meta_iteration_seconds"]["max"]
    assert measured["peak_memory_mb"] > 50
    shares = [of["share"] for of in found["operations"]["navigation"]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1


def test_a_device_that_computes_something_else_fails(monkeypatch):
    exact = device_parity._of_images

    def off(method, theta, tasks, device):
        numbers = exact(method, theta, tasks, "cpu")
        return numbers if device == "cpu" else {name: value * 1.01 for name, value in numbers.items()}

    monkeypatch.setattr(device_parity, "_of_images", off)
    found = device_parity.few_shot_parity(1, 2, "other")
    assert [of.difference for of in found] == pytest.approx([0.01, 0.01], rel=1e-3)
    assert not any(of.holds for of in found)
    assert not Parity("nothing", float("nan")).holds


def test_the_script_prints_a_table_and_writes_the_report(found, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(gpu_report, "report", lambda *of: asked.append(of) or found)
    gpu_report.main(["--device", "cpu", "--output", str(tmp_path / "report.json")])
    assert asked == [("cpu", gpu_report.POLICIES, 32)]
    text = capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text()) == found
    update = found["times"]["navigation"]["cpu"]["update_seconds"]["median"]
    [line] = [line for line in text.splitlines() if "navigation: update" in line]
    assert line.split()[-3:] == [f"{update:.4f}", f"{update:.4f}", "1.0"]
    assert "FAILS" not in text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        pytest.param([], "--device = cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")),
        (["--device", "cpu", "--output", "nowhere/report.json"], "--output = nowhere/report.json"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_bad_input_gets_one_line(words, named, capsys):
    assert named in error_of(capsys, gpu_report.main, words)
