"""How much of a meta-gradient is signal: `python experiments/studies/meta_gradients.py RUN --gae-lambdas 1 0.95`.

At the meta-parameters of a run, which stay as they are, the tasks and episodes of further iterations are sampled, and
every estimator's meta-gradient is taken of each of these batches. What independent batches agree on is signal, whether
it is the truth or the estimator's bias; the rest is noise. Prints a table and writes it beside the checkpoint.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import metarl
from metarl.core.parameters import ravel
from metarl.core.randomness import keyed_generator
from metarl.core.settings import SettingError
from metarl.envs import Tasks
from metarl.experiments.runner.command_line import OneLineParser
from metarl.experiments.runner.outputs import output_file
from metarl.experiments.runner.plots import save_json
from metarl.experiments.runner.start import open_run
from metarl.experiments.runner.training import one_line_errors
from metarl.experiments.studies.estimators import Variant
from metarl.rl.estimators import ESTIMATORS
from metarl.rl.learner import AdaptationStep

REFERENCE = Variant("lvc", "second")  # the least biased of those whose noise leaves anything to see
VARIANTS = [  # at the parameters that sampled, likelihood-ratio is lvc, and all estimators are one to first order
    Variant("score", "second", sampling=True),
    Variant("dice", "second"),
    REFERENCE,
    Variant("score", "second"),
    Variant("score", "first"),
]
Row = dict[str, float]
_FEW = 10  # batches


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = OneLineParser("Measure signal and noise of every estimator's meta-gradient at the parameters of a run.")
    add_batches(parser, 12)
    parser.add_argument(
        "--gae-lambdas", type=float, nargs="+", metavar="FLOAT", help="factors of later advantages (default: the run's)"
    )
    parser.add_argument("--inner-step-size", type=float, metavar="FLOAT", help="of training (default: the run's)")
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors():
        check_batches(chosen.batches)
        names = ("inner_step_size", "threads")
        changes = {name: value for name in names if (value := getattr(chosen, name)) is not None}
        _, _, learner = open_run(chosen.run, changes=changes)
        if not isinstance(learner, metarl.Learner) or learner.rule.inner_steps == 0:
            raise SettingError(f"{chosen.run} takes no policy through inner steps; allowed: runs that do")
        lambdas = chosen.gae_lambdas or [learner.advantages.gae_lambda]
        if wrong := [value for value in lambdas if not 0 <= value <= 1]:
            raise SettingError(f"--gae-lambdas = {wrong[0]}; allowed: 0 to 1")
        output = output_file(chosen.output, chosen.run / "meta_gradients.json")
        if learner.advantages.weighting != "timestep":
            raise SettingError(
                f"{chosen.run} has --weighting {learner.advantages.weighting}; allowed: a run with timestep"
            )
        rows = measure(learner, chosen.batches, lambdas)
        print(table(rows, chosen.batches))
        if chosen.batches < _FEW:
            print(f"of fewer than {_FEW} batches; their standard errors are themselves uncertain")
        save_json(output, {"iteration": learner.iteration, "batches": chosen.batches, "rows": rows})
        print(f"results in {output}")


def add_batches(parser: OneLineParser, usual: int) -> None:
    """The arguments of what is measured on several batches at the parameters of a run."""
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a reinforcement-learning run")
    parser.add_argument("--batches", type=int, default=usual, metavar="INT", help=f"of episodes (default {usual})")
    parser.add_argument("--threads", type=int, metavar="INT", help="(default: the run's)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="(default: a file in the run)")


def check_batches(count: int) -> None:
    """SettingError where the jackknife has too few."""
    if count < 3:
        raise SettingError(f"--batches = {count}; allowed: at least 3")


def measure(learner: metarl.Learner, batches: int, lambdas: Sequence[float]) -> dict[str, Row]:
    """The rows of the table, by estimator and lambda; see `compare`, whose reference is lvc with the first lambda."""
    found: dict[str, list[Tensor]] = {}
    for gae_lambda in lambdas:
        advantages = replace(learner.advantages, gae_lambda=gae_lambda)
        # dice keeps the samples of an episode together, which serves all estimators
        sampler = replace(learner, estimator=ESTIMATORS["dice"], initial_sampling=False, advantages=advantages)
        for iteration, tasks in further_tasks(learner, batches):
            path = sampler.adapt(tasks, learner.rule.inner_steps, purpose="train", iteration=iteration)
            for variant, gradient in zip(VARIANTS, meta_gradients(learner, path), strict=True):
                found.setdefault(_label(variant, gae_lambda), []).append(gradient)
    gradients = {name: torch.stack(values) for name, values in found.items()}
    return compare(gradients, _label(REFERENCE, lambdas[0]))


def meta_gradients(learner: metarl.Learner, path: Sequence[AdaptationStep]) -> list[Tensor]:
    """Each variant's meta-gradient (n,) at the learner's parameters, on the same episodes."""
    rule_of_run: Any = learner.rule  # a dataclass
    vector, gradients = ravel(list(learner.theta.values())), []
    for variant in VARIANTS:
        rule = replace(rule_of_run, second_order=variant.order == "second")
        made_of = {"estimator": ESTIMATORS[variant.estimator], "initial_sampling": variant.sampling, "rule": rule}
        _, gradient = replace(learner, **made_of).objective(path).loss_and_gradient(vector)
        gradients.append(gradient.double())
    return gradients


def further_tasks(learner: metarl.Learner, batches: int) -> Iterator[tuple[int, Tasks]]:
    """Numbers and tasks of the iterations that the learner would do next."""
    for iteration in range(learner.iteration, learner.iteration + batches):
        rng = keyed_generator(learner.seed, "train/tasks", iteration)
        yield iteration, learner.task_distribution.sample(learner.sampling.num_tasks, rng)


def _label(variant: Variant, gae_lambda: float) -> str:
    return f"{variant.name}, lambda {gae_lambda:g}"


def compare(gradients: Mapping[str, Tensor], reference: str) -> dict[str, Row]:
    """Signal and noise of meta-gradients g_i (B, n) from independent batches i, by name.

    Returns:
        of each: `length`, the root of the mean of |g_i|^2; `signal`, the mean of g_i . g_j over i != j in units of
        length^2, which is |E g|^2 / E |g|^2 without bias; `rise`, the mean of g_i . r_j over i != j in units of length,
        with r the reference: the slope of what r descends along a step of g; and the standard errors of both.
    """
    rows = {}
    for name, of_name in gradients.items():
        length = float(of_name.square().sum(dim=1).mean().sqrt())
        signal, signal_error = across_batches(of_name, of_name)
        rise, rise_error = across_batches(of_name, gradients[reference])
        rows[name] = {
            "length": length,
            "signal": signal / length**2,
            "signal_error": signal_error / length**2,
            "rise": rise / length,
            "rise_error": rise_error / length,
        }
    return rows


def across_batches(left: Tensor, right: Tensor) -> tuple[float, float]:
    """The mean of left_i . right_j over i != j, and its standard error by the jackknife, batches left out in turn."""
    return off_diagonal(left @ right.T)


def off_diagonal(products: Tensor) -> tuple[float, float]:
    """The mean over i != j of what batch i and batch j give (B, B), and its standard error by the jackknife."""
    products, count = products.clone(), len(products)
    products.fill_diagonal_(0)  # of one batch, whose noise they share
    total = products.sum()
    without = (total - products.sum(dim=0) - products.sum(dim=1)) / ((count - 1) * (count - 2))
    error = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()
    return float(total / (count * (count - 1))), float(error)


def table(rows: Mapping[str, Row], batches: int) -> str:
    """The rows as text."""
    heads = ["length", "signal / length^2", "slope of lvc along it"]
    lines = [f"{f'meta-gradients of {batches} batches':36}" + "".join(f"{head:>24}" for head in heads)]
    for name, row in rows.items():
        cells = [f"{row['length']:.3f}"]
        cells += [f"{row[key]:.4f} +- {row[f'{key}_error']:.4f}" for key in ("signal", "rise")]
        lines.append(f"{name:36}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
