"""Compare rows of results: `python experiments/compare.py half_cheetah_direction "maml" "first-order"`.

Without rows, all of an experiment are shown: every seed, the interquartile mean over seeds and test tasks, and its 95 %
bootstrap interval. Two rows are also compared with each other: the probability that a run of the first is better than
one of the second, and the differences of runs of the same seed.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from metarl.core.settings import SettingError, nearest
from metarl.experiments.runner import results
from metarl.experiments.runner.command_line import OneLineParser
from metarl.experiments.runner.comparison import Row, comparison, metrics_of, scores_of, shown_scores
from metarl.experiments.runner.training import one_line_errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the statistics of rows, and of two rows what tells them apart."""
    with one_line_errors():
        chosen = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
        if find_spec("scipy") is None:
            raise SettingError("scipy is not installed; pip install '.[statistics]'")
        kept = results.load_rows().get(chosen.name, {})
        if not kept:
            raise SettingError(f"NAME = {chosen.name!r} has no results; allowed: after a run of it in reproduce.py")
        for name in chosen.rows:
            if name not in kept:
                known = ", ".join(map(repr, kept))
                raise SettingError(f"ROW = {name!r}; allowed: {known}{nearest(name, list(kept))}")
        rows = [kept[name] for name in chosen.rows] or list(kept.values())
        metric = _metric(chosen.metric, rows, shared=bool(chosen.rows))
        dynamics = sorted({row["dynamics"] for row in rows if "dynamics" in row})
        if chosen.rows and len(dynamics) > 1:
            raise SettingError(f"rows with the dynamics {', '.join(dynamics)}; allowed: rows of the same dynamics")
        methods = {row.get("settings", {}).get("method") == "rl2" for row in rows}
        if chosen.rows and len(methods) > 1 and chosen.metric is None:
            raise SettingError(
                "steps of rl2 are earlier episodes of a trial, those of other rows are gradient steps; "
                f"allowed: with a --metric, such as {metric}"
            )
        scores = [scores_of(row, metric) for row in rows if metric in metrics_of(row)]
        print(f"{chosen.name}, {metric}\n\n{shown_scores(scores)}")
        if len(chosen.rows) == 2:
            print(f"\n{comparison(*scores)}")


def _metric(name: str | None, rows: Sequence[Row], shared: bool) -> str:
    """The metric that is meant, by default that after one gradient step; one of all rows if `shared`, else of any."""
    each = [metrics_of(row) for row in rows]
    known = [of for of in dict.fromkeys(itertools.chain(*each)) if not shared or all(of in others for others in each)]
    if not known:
        raise SettingError(
            f"ROW: {' and '.join(row['name'] for row in rows)} have no metric in common; allowed: others"
        )
    if name is not None and name not in known:
        raise SettingError(f"--metric = {name!r}; allowed: {', '.join(known)}{nearest(name, known)}")
    return name or next((of for of in known if of.endswith("/step_1")), known[0])


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("Compare rows of results: every seed, interquartile means, probability of improvement.")
    parser.add_argument("name", choices=results.EXPERIMENTS, metavar="NAME", help=", ".join(results.EXPERIMENTS))
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows (default: all); two are compared")
    parser.add_argument("--metric", metavar="NAME", help="such as return/step_1, the default in reinforcement learning")
    return parser


if __name__ == "__main__":
    main()
