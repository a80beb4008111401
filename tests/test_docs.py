"""The README and the pages of docs/: their Python runs, shortened, and their commands and links are sound.

The blocks of a page run one after another in one namespace, as a reader would type them, in an empty folder.
"""

import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import metarl
from metarl.check import check
from metarl.envs import Navigation2D
from metarl.experiments.runner import training
from metarl.experiments.runner.command_line import OneLineParser, read
from metarl.experiments.runner.experiment import Experiment
from metarl.experiments.runner.records import tag
from metarl.rl.evaluation import evaluate, held_out_tasks

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in path.parts
}
TUTORIAL = "docs/tutorials/navigation.md"
IMAGES = "docs/tutorials/own_images.md"
WITH_PYTHON = [name for name, text in PAGES.items() if "```python\n" in text]
SHORTER = {  # what is run in place of what is printed
    r"range\((?:40|100)\)": "range(2)",
    r"range\(1000\)": "range(3)",
    r"num_tasks=(?:10|20)\b": "num_tasks=2",
    r"num_tasks=100\b": "num_tasks=4",
    r"episodes_per_task=(?:10|20)\b": "episodes_per_task=3",
    r"held_out_tasks\(learner, 40\)": "held_out_tasks(learner, 2)",
}
_SCRIPT = r"experiments/(studies/)?[a-z0-9_]+\.py"
SMALL_RUN = ["--iterations", "1", "--num-tasks", "2", "--episodes-per-task", "3", "--evaluation-tasks", "2"]
SMALL_RUN += ["--horizon", "20", "--evaluation-episodes", "2", "--threads", "1", "--device", "cpu"]
SMALLER = {"evaluate": ["--tasks", "2", "--episodes", "2"], "adapt": ["--episodes", "2"]}  # the last flag counts


def python_of(page: str) -> list[str]:
    """The Python blocks of a page, as they are printed."""
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)


def shortened(code: str) -> str:
    """The same code with fewer iterations, tasks and episodes."""
    for pattern, replacement in SHORTER.items():
        code = re.sub(pattern, replacement, code)
    return code


def commands_of(text: str) -> list[list[str]]:
    """The words of all commands in bash blocks and in table cells that run a script of experiments/."""
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.replace("\\\n", "").splitlines()
    ]
    lines += re.findall(r"`((?:python|torchrun) [^`]*)`", text)
    commands = [shlex.split(line.replace("TASK", "0"), comments=True) for line in lines]
    return [words for words in commands if any(re.fullmatch(_SCRIPT, word) for word in words)]


def script_and_flags(command: list[str]) -> tuple[str, list[str]]:
    """The path of a command's script, and what follows it."""
    position = next(number for number, word in enumerate(command) if re.fullmatch(_SCRIPT, word))
    return command[position], command[position + 1 :]


def without_file_tables(text: str) -> str:
    """A page without the first lines of docstrings, whose commands show what is optional in brackets."""
    return re.sub(r"<!-- files: .*?<!-- end -->", "", text, flags=re.DOTALL)


COMMANDS = {shlex.join(c): c for text in PAGES.values() for c in commands_of(without_file_tables(text))}


class Parsed(Exception):
    """Raised when a command line has been read."""


def require_parsing(script: str, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the flags as the script does, without what it does then."""
    module = importlib.import_module("metarl." + script.removesuffix(".py").replace("/", "."))
    experiment = getattr(module, "EXPERIMENT", None)
    if isinstance(experiment, Experiment):
        request = read(experiment, flags)
        if request.resume is None:
            experiment.configure(request.recipe, **request.given)
        return

    def parse(parser: OneLineParser, arguments: list[str]) -> None:
        super(OneLineParser, parser).parse_args(arguments)
        raise Parsed

    def measure_nothing(*arguments):
        raise Parsed

    monkeypatch.setattr(OneLineParser, "parse_args", parse)
    monkeypatch.setattr("metarl.experiments.benchmark.measure_all", measure_nothing)
    with pytest.raises(Parsed):
        module.main(flags)


@pytest.fixture
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in (TUTORIAL, IMAGES)])
def test_the_python_of_a_page_runs(page, in_a_new_folder, capsys):
    names: dict = {}
    for code in python_of(page):
        exec(compile(shortened(code), page, "exec"), names)
    for value in names.values():
        if isinstance(value, metarl.Learner | metarl.FewShotLearner):
            assert value.iteration >= 1
        if isinstance(value, metarl.Learner):
            value.close()


def test_the_first_tutorial_runs_from_its_first_command_to_its_last_line(in_a_new_folder, capsys):
    """Commands on other runs than the tutorial's own are only read, as those of other pages are."""
    names: dict = {}
    done = []
    for language, text in re.findall(r"```(bash|python)\n(.*?)```", PAGES[TUTORIAL], re.DOTALL):
        if language == "python":
            exec(compile(shortened(text), TUTORIAL, "exec"), names)
            continue
        for script, flags in map(script_and_flags, commands_of(f"```bash\n{text}```")):
            if "runs/first" in flags:
                run_small(Path(script).stem, flags)
                done.append(Path(script).stem)
    assert done == ["navigation_2d", "navigation_2d", "evaluate", "evaluate", "adapt"]
    assert names["learner"].iteration >= 1
    assert names["action"].shape == (2,)
    assert {path.name for path in Path("runs/first").glob("*.pt")} == {"checkpoint.pt", "best.pt"}
    assert files_of(Path("runs/first")) == documented_files()


def test_the_tutorial_on_images_runs_from_its_first_command_to_its_last_line(in_a_new_folder, capsys):
    """With nine classes of small pictures, and a small network."""
    colours = [(80 * red, 80 * green, 90) for red in range(3) for green in range(3)]
    for number, colour in enumerate(colours):
        place = Path("pets") / f"class{number}"
        place.mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (30 + index, 24), colour).save(place / f"{index}.png")
    for name, colour in zip(("a.png", "b.png", "c.png", "d.png", "new.png", "newer.jpg"), colours, strict=False):
        Image.new("RGB", (50, 40), colour).save(name)
    small = ["--ways", "3", "--size", "16", "--filters", "4", "--iterations", "2", "--evaluation-tasks", "2"]
    names: dict = {}
    for language, text in re.findall(r"```(bash|python)\n(.*?)```", PAGES[IMAGES], re.DOTALL):
        if language == "python":
            exec(compile(shortened(text), IMAGES, "exec"), names)
            continue
        for script, flags in map(script_and_flags, commands_of(f"```bash\n{text}```")):
            module = importlib.import_module(f"metarl.experiments.{Path(script).stem}")
            if Path(script).stem == "images":
                training.main(module.EXPERIMENT, [*flags, *small, "--cache", "cache", "--threads", "1"])
            else:
                module.main(flags)
    assert names["model"].probabilities(names["new_images"]).shape == (2, 2)
    assert names["learner"].iteration >= 1
    assert {f"{name}.png" for name in ("predictions", "shots_and_ways")} <= files_of(Path("runs/pets"))


@pytest.mark.parametrize("number", [0, 2], ids=["short script", "own settings and policy"])
def test_the_scripts_of_one_s_own_run_and_are_evaluated_and_adapted(number, in_a_new_folder, capsys, monkeypatch):
    """As Python runs a script: in `__main__`, with its file and its words."""
    script = in_a_new_folder / "scripts" / "pendulum.py"
    script.parent.mkdir()
    script.write_text(python_of("docs/tutorials/own_experiment.md")[number])
    horizon = ["--horizon", "8", "--evaluation-steps", "1", "--evaluate-every", "0"]
    own = ["--widest-std", "0.5", "--strongest", "12"] if number else []
    monkeypatch.setattr(sys, "argv", [str(script), *SMALL_RUN, *horizon, *own, "--run-dir", "run"])
    runpy.run_path(str(script), run_name="__main__")
    assert json.loads(Path("run/config.json").read_text())["script"]["relative"] == "../scripts/pendulum.py"
    for name, flags in (("evaluate", []), ("adapt", ["--task", '{"gravity": 12.0}'])):
        importlib.import_module(f"metarl.experiments.{name}").main(["run", *flags, *SMALLER[name]])
    assert Path("run/adapted.pt").is_file()


def run_small(script: str, flags: list[str]) -> None:
    """Run a command of the tutorial with few tasks and episodes; of flags that are given twice the last one counts."""
    module = importlib.import_module(f"metarl.experiments.{script}")
    if script != "navigation_2d":
        module.main([*flags, *SMALLER[script]])
    elif "--resume" in flags:
        training.main(module.EXPERIMENT, [*flags, "--iterations", "2"])
    else:
        training.main(module.EXPERIMENT, [*flags, *SMALL_RUN])


def files_of(run: Path) -> set[str]:
    """Names of the files in a run's directory, without the numbers of those of TensorBoard."""
    names = {path.name for path in run.iterdir() if path.is_file() and not path.name.startswith(".")}
    return {re.sub(r"(events\.out\.tfevents).*", r"\1...", name) for name in names}


def documented_files() -> set[str]:
    """Names of the files in a run's directory, as the tutorial has them."""
    table = PAGES[TUTORIAL].split("The directory of a run holds")[1].split("\n\n")[1]
    return set(re.findall(r"`([\w.]+)`", table))


def test_every_metric_of_a_run_stands_in_the_tutorial_under_its_group():
    group, documented = "", {}
    for row in PAGES[TUTORIAL].split("| group | metric | meaning |\n|---|---|---|\n")[1].split("\n\n")[0].splitlines():
        _, named, metrics, _, _ = row.split("|")
        group = named.strip() or group
        documented |= dict.fromkeys(re.findall(r"`([\w/]+)`", metrics), group)
    assert all(tag(name).split("/")[0] in group for name, group in documented.items())
    tasks = Navigation2D()
    policy = metarl.GaussianMLP(tasks.observation_space, tasks.action_space)
    with metarl.Learner(tasks, policy, metarl.Sampling(2, 2)) as learner:
        assert learner.step().keys() - {"iteration"} <= documented.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood_by_its_script(command, monkeypatch):
    script, flags = script_and_flags(COMMANDS[command])
    assert (ROOT / script).exists()
    require_parsing(script, flags, monkeypatch)


def test_the_environments_of_the_tutorial_are_sound(in_a_new_folder, capsys):
    names: dict = {}
    for code in python_of("docs/tutorials/own_environment.md"):
        exec(shortened(code), names)
    for name, kind in (("pendulum", metarl.GaussianMLP), ("grid", metarl.CategoricalMLP)):
        distribution = names[name]
        assert check(distribution) == []
        policy = kind(distribution.observation_space, distribution.action_space, (8,))
        with metarl.Learner(distribution, policy, metarl.Sampling(2, 3)) as learner:
            metrics = learner.step()
            assert metrics["episodes"] == 12
    assert held_out_tasks(learner, 2)["goal"].tolist() == [[4, 4], [4, 4]]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#\s]+)", PAGES[page]):
        assert link.startswith("http") or (folder / link).exists(), link


def test_the_readme_is_short():
    readme = PAGES["README.md"]
    assert len(readme.splitlines()) <= 140
    [example] = python_of("README.md")
    assert len([line for line in example.splitlines() if line.strip()]) <= 14


def test_what_pages_take_from_the_code_is_that_of_today():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    stale = [str(page.relative_to(ROOT)) for page, text in generate.pages().items() if page.read_text() != text]
    assert not stale, "python docs/generate.py writes these pages"


@pytest.mark.parametrize("page", [name for name in PAGES if name.startswith("docs/notebooks/")])
def test_the_code_of_a_notebook_is_what_is_run_here(page):
    jupytext = pytest.importorskip("jupytext", reason="needs the extra 'docs'")
    cells = jupytext.reads(PAGES[page], fmt="md").cells
    assert [cell.source + "\n" for cell in cells if cell.cell_type == "code"] == python_of(page)


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "--fail-on-warning",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "index.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cart_pole_learns_to_adapt(seed, in_a_new_folder, capsys):
    code = python_of("docs/tutorials/own_environment.md")[0]
    names: dict = {}
    exec(code.replace("seed(0)", f"seed({seed})").replace("seed=0", f"seed={seed}"), names)
    learner = names["learner"]
    evaluation = evaluate(learner, held_out_tasks(learner, 40), 2, 10)
    with capsys.disabled():
        print(f"\nseed {seed}: {evaluation.mean.round(1)} ± {evaluation.standard_error.round(1)}")
    assert evaluation.mean[1] > evaluation.mean[0] + 15
