"""Cost of Hessian products from a part of the samples: `python experiments/studies/products.py RUN --fractions 1 0.1`.

At the meta-parameters of a run, which stay as they are, the tasks and episodes of further iterations are sampled. On
each of these batches TRPO takes its step, with products from every fraction of the samples in turn, and what a step
improves is measured on its own batch and on the others, where the noise that it was fitted to is of no use. Prints a
table and writes it beside the checkpoint.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

import metarl
from metarl.core.parameters import ravel
from metarl.core.randomness import keyed_generator
from metarl.core.settings import SettingError
from metarl.experiments.runner.command_line import OneLineParser
from metarl.experiments.runner.outputs import output_file
from metarl.experiments.runner.plots import save_json
from metarl.experiments.runner.start import open_run
from metarl.experiments.runner.training import one_line_errors
from metarl.experiments.studies.meta_gradients import add_batches, check_batches, further_tasks, off_diagonal
from metarl.rl.objective import MetaObjective

Row = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = OneLineParser("Measure what products from a part of the samples do to TRPO's step at a run's parameters.")
    add_batches(parser, 6)
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=[1.0, 0.1], metavar="FLOAT", help="of the samples (default 1 0.1)"
    )
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors():
        check_batches(chosen.batches)
        if wrong := [value for value in chosen.fractions if not 0 < value <= 1]:
            raise SettingError(f"--fractions = {wrong[0]}; allowed: more than 0, at most 1")
        changes = {} if chosen.threads is None else {"threads": chosen.threads}
        _, _, learner = open_run(chosen.run, changes=changes)
        if not isinstance(learner, metarl.Learner) or not isinstance(learner.outer, metarl.TRPO):
            raise SettingError(f"{chosen.run} takes no steps of TRPO; allowed: runs that do")
        output = output_file(chosen.output, chosen.run / "products.json")
        rows = measure(learner, chosen.batches, chosen.fractions)
        print(table(rows, chosen.batches))
        save_json(output, {"iteration": learner.iteration, "batches": chosen.batches, "rows": rows})
        print(f"results in {output}")


def measure(learner: metarl.Learner, batches: int, fractions: Sequence[float]) -> dict[str, Row]:
    """The rows of the table by fraction, see `compare`; the learner, whose outer optimiser is TRPO, stays as it is."""
    vector = ravel(list(learner.theta.values()))
    objectives = sample_objectives(learner, batches)
    gains, kls = {}, {}
    for fraction in fractions:
        outer = replace(learner.outer, hvp_sample_fraction=fraction)  # type: ignore[type-var]  # TRPO is a dataclass
        found = []
        for number, objective in enumerate(objectives):
            rng = keyed_generator(learner.seed, "train/products", learner.iteration + number)
            moved, _, _ = outer.update(objective, vector, rng, learner.state.outer)
            found.append([torch.stack(other.evaluate(moved)) for other in objectives])
        losses, kls[str(fraction)] = torch.stack([torch.stack(row) for row in found]).double().unbind(dim=2)
        before = torch.stack([objective.evaluate(vector)[0] for objective in objectives]).double()
        gains[str(fraction)] = before - losses
    return compare(gains, kls)


def sample_objectives(learner: metarl.Learner, batches: int) -> list[MetaObjective]:
    """The meta-objectives of further iterations, all at the learner's parameters."""
    return [
        learner.objective(learner.adapt(tasks, learner.rule.inner_steps, purpose="train", iteration=iteration))
        for iteration, tasks in further_tasks(learner, batches)
    ]


def compare(gains: Mapping[str, Tensor], kls: Mapping[str, Tensor]) -> dict[str, Row]:
    """What steps improve, by name: gains (B, B) of the step on batch i, measured on batch j, and KLs likewise.

    Returns:
        of each: `own`, the mean gain on the step's own batch; `others`, that on the others; `difference`, by how much
        that is more than the first one's, on the same batches; standard errors of both; `kl`, the mean on others.
    """
    first = next(iter(gains.values()))
    rows = {}
    for name, of_name in gains.items():
        others, others_error = off_diagonal(of_name)
        difference, difference_error = off_diagonal(of_name - first)
        rows[name] = {
            "own": float(of_name.diagonal().mean()),
            "others": others,
            "others_error": others_error,
            "difference": difference,
            "difference_error": difference_error,
            "kl": off_diagonal(kls[name])[0],
        }
    return rows


def table(rows: Mapping[str, Row], batches: int) -> str:
    """The rows as text; gains in units of 0.001 of the surrogate."""
    heads = ["own batch", "other batches", "more than the first", "KL on others"]
    lines = [f"{f'products from, {batches} batches':24}" + "".join(f"{head:>22}" for head in heads)]
    for name, row in rows.items():
        cells = [f"{1000 * row['own']:.2f}"]
        cells += [f"{1000 * row[key]:.2f} +- {1000 * row[f'{key}_error']:.2f}" for key in ("others", "difference")]
        cells.append(f"{row['kl']:.4f}")
        lines.append(f"{name:24}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
