"""Write what the pages take from the code, the tables of files and names and the API: `python docs/generate.py`."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import metarl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ROOMS = {  # of the API: folder, package and introduction
    "core": (
        "metarl/core",
        "metarl.core",
        "What both kinds of learning share: the inner loop and its rules, meta-gradients, parameters, the trust "
        "region, keyed randomness, chunks of tasks, processes, settings and checks.",
    ),
    "rl": (
        "metarl/rl",
        "metarl.rl",
        "Meta-reinforcement learning: the learner, and the parts from which it is made.",
    ),
    "rl2": (
        "metarl/rl/rl2",
        "metarl.rl.rl2",
        "RL^2: the learner of policies with a memory, and the parts from which it is made.",
    ),
    "few_shot": (
        "metarl/few_shot",
        "metarl.few_shot",
        "Few-shot supervised learning: the learner, tasks, networks, and what a method is.",
    ),
    "few_shot_methods": (
        "metarl/few_shot/methods",
        "metarl.few_shot.methods",
        "The few-shot methods, a file for each family.",
    ),
    "few_shot_images": (
        "metarl/few_shot/images",
        "metarl.few_shot.images",
        "Images for few-shot learning: how files are read, the image sets, and a classifier of images of one's own.",
    ),
    "metarl": (
        "metarl",
        "metarl",
        "Run directories with their checkpoints, and the checker of task distributions.",
    ),
    "envs": (
        "envs",
        "metarl.envs",
        "Task distributions and their batched simulators. The package imports no learning.",
    ),
}
FIRST = ("learner", "method", "tasks", "rules")  # modules that stand at the head of their page
OF_THE_LEARNER_ALONE = ("learner_checks",)
DATA = {
    "CLASSIFICATION": "Cross-entropy as loss, accuracy as metric.",
    "CLASSIFIER_LOSS": "Cross-entropy as loss and as metric: small classifiers as functions to be minimised.",
    "QUADRATIC": "Sum of squared errors as loss, their mean as metric: random quadratics.",
    "REGRESSION": "Mean squared error as loss and metric.",
}


def pages() -> dict[Path, str]:
    """The pages that hold something from the code, as they should be."""
    found = {DOCS / "api" / f"{name}.md": api_page(*room) for name, room in ROOMS.items()}
    for name in ("architecture.md", "api/index.md"):
        found[DOCS / name] = with_tables((DOCS / name).read_text())
    return found


def with_tables(page: str) -> str:
    """Fill in the tables, which stand after `<!-- files: FOLDER -->` or `<!-- names -->` and before `<!-- end -->`."""

    def replaced(match: re.Match[str]) -> str:
        made = table_of_files(match[2]) if match[2] else table_of_names()
        return f"{match[1]}\n{made}\n\n{match[3]}"

    return re.sub(r"(<!-- (?:files: (\w+)|names) -->\n).*?(<!-- end -->)", replaced, page, flags=re.DOTALL)


def table_of_files(folder: str) -> str:
    """The files of a folder, each with the first line of its docstring."""
    rows = ["| file | what it holds |", "|---|---|"]
    for path in sorted((ROOT / folder).rglob("*.py")):
        if docstring := ast.get_docstring(ast.parse(path.read_text())):
            rows.append(f"| `{path.relative_to(ROOT / folder)}` | {_cell(docstring)} |")
    return "\n".join(rows)


def table_of_names() -> str:
    """The names of the top level, each with the first line of its docstring."""
    rows = ["| name in `metarl` | what it is |", "|---|---|"]
    for name in sorted(set(metarl.__all__) - {"__version__"}, key=str.lower):
        item: Any = getattr(metarl, name)
        if name in DATA:
            rows.append(f"| `{name}` | {DATA[name]} |")
            continue
        role = "class" if inspect.isclass(item) else "func"
        rows.append(f"| {{py:{role}}}`{name} <{item.__module__}.{name}>` | {_cell(inspect.getdoc(item) or '')} |")
    return "\n".join(rows)


def api_page(folder: str, package: str, introduction: str) -> str:
    """The page of a room's API, module by module."""
    modules = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__", *OF_THE_LEARNER_ALONE}
    first = [name for name in FIRST if name in modules]
    parts = [f"# {package}", introduction]
    for name in [*first, *sorted(modules.difference(first))]:
        parts += [f"## {package}.{name}", f"```{{eval-rst}}\n.. automodule:: {package}.{name}\n```"]
    return "\n\n".join(parts) + "\n"


def _cell(docstring: str) -> str:
    return docstring.splitlines()[0].replace("|", r"\|")


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text)
