"""Evaluations: means, standard errors and plain data by hand."""

import json
import math

import numpy as np
import pytest

from metarl.core.evaluation import Evaluation, standard_error

PER_TASK = np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]])  # (S + 1, M)


def test_means_and_standard_errors_are_over_tasks():
    evaluation = Evaluation("return", PER_TASK)
    assert evaluation.mean.tolist() == [3, 2]
    assert evaluation.standard_error.tolist() == pytest.approx([2 / 3**0.5, 0])  # sample deviation 2, three tasks


def test_a_single_task_and_infinite_values_have_no_standard_error():
    assert math.isnan(standard_error(np.array([4.0])))
    assert math.isnan(standard_error(np.array([1.0, math.inf])))


def test_metrics_are_named_by_step_and_others_by_the_metric():
    others = {"success": np.array([[0.0, 0.5, 1.0], [1.0, 1.0, 1.0]]), "prior": np.array([0.0, 1.0, 2.0])}
    others["time/update"] = np.array([1.0, 1.0, 4.0])
    evaluation = Evaluation("return", PER_TASK, others)
    assert evaluation.metrics == {
        "return/step_0": 3.0,
        "return/step_1": 2.0,
        "success/step_0": 0.5,
        "success/step_1": 1.0,
        "return/prior": 1.0,
        "time/update": 2.0,
    }


def test_plain_data_has_every_task_and_nothing_that_json_does_not_know():
    evaluation = Evaluation("return", np.array([[1.0, 3.0], [math.nan, -math.inf]]))
    record = evaluation.to_json()
    assert record["return/step_0"] == {"mean": 2.0, "standard_error": 1.0, "per_task": [1.0, 3.0]}
    assert record["return/step_1"] == {"mean": None, "standard_error": None, "per_task": [None, None]}
    assert json.loads(json.dumps(record, allow_nan=False)) == record
