"""The file config.json of a run: its experiment, its recipe and its settings, as nested plain data."""

import dataclasses
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarl.core.settings import SettingError, declared
from metarl.experiments.runner import migration
from metarl.experiments.runner.experiment import Experiment
from metarl.experiments.runner.flat_settings import flat_name, flat_settings, from_flat, updated, variant_of
from metarl.runs import RunError

VERSION = 2


def new_config(experiment: Experiment, recipe: str, settings: Any) -> dict[str, Any]:
    """The content of config.json of a run that starts now."""
    header = {"version": VERSION, "experiment": experiment.name, "recipe": experiment.shown_name(recipe)}
    return {**header, "commit": commit(), "settings": to_json(settings)}


def to_json(settings: Any) -> dict[str, Any]:
    """Settings as nested plain data: a dict for each part, with the name of its variant where it has several."""
    content = {}
    for part in dataclasses.fields(settings):
        chosen = getattr(settings, part.name)
        variant = {"variant": variant_of(part, chosen)} if part.metadata["choice"] is not None else {}
        values = {field.name: getattr(chosen, field.name) for field in declared(chosen)}
        content[part.name] = variant | {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
    return content


def values_of(experiment: Experiment, config: Mapping[str, Any]) -> dict[str, Any]:
    """The flat values that a config.json of this or an older version names; they are not checked.

    Raises:
        SettingError: a newer version, or a setting that this version of the experiment does not have.
    """
    version, content = config.get("version", 1), config.get("settings")
    if not isinstance(version, int) or version > VERSION:
        raise SettingError(f"version = {version!r}; this version of metarl reads up to {VERSION}")
    if not isinstance(content, dict):
        raise SettingError("there are no settings in it")
    if version == 1:
        return migration.flat_values(experiment.settings, config)
    parts = {part.name: part for part in dataclasses.fields(experiment.settings)}
    values: dict[str, Any] = {}
    for name, found in content.items():
        if name not in parts or not isinstance(found, dict):
            raise SettingError(f"unknown part {name} of the settings; allowed: {', '.join(parts)}")
        values |= _values_of_part(parts[name], found)
    return values


def settings_of(experiment: Experiment, config: Mapping[str, Any]) -> Any:
    """The settings of a config.json of this or an older version; what it does not name is as in the base recipe.

    Raises:
        SettingError: settings that cannot be used; the message names the first one.
    """
    base = experiment.values(experiment.base_recipe)
    return from_flat(experiment.settings, updated(experiment.settings, base, values_of(experiment, config)))


def require_unedited(experiment: Experiment, config: Mapping[str, Any], before: Mapping[str, Any], path: Path) -> None:
    """RunError if config.json names another value than a checkpoint's own configuration, or none, for a fixed setting.

    Args:
        experiment: of the run.
        config: the content of config.json.
        before: the configuration that the checkpoint holds.
        path: of config.json, for the message.
    """
    now, then = values_of(experiment, config), values_of(experiment, before)
    for name, setting in flat_settings(experiment.settings).items():
        if setting.field.metadata["changeable"] or now.get(name) == then.get(name):
            continue
        value = "is missing" if name not in now else f"= {now[name]!r}"
        allowed = f"{then[name]!r}, as in the checkpoint" if name in then else "without it, as in the checkpoint"
        raise RunError(f"{path}: {name} {value}; allowed: {allowed}")


def changed_fixed_setting(kind: type, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The name of the first setting that differs and must not change in a resumed run; empty if there is none."""
    for name, setting in flat_settings(kind).items():
        if not setting.field.metadata["changeable"] and before.get(name) != now.get(name):
            return name
    return ""


def commit() -> str | None:
    """The version of this code, where it is a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _values_of_part(part: dataclasses.Field, found: Mapping[str, Any]) -> dict[str, Any]:
    """The flat values of a part's plain data."""
    values: dict[str, Any] = {}
    kinds, choice = part.metadata["variants"], part.metadata["choice"]
    variant = found.get("variant", choice.default) if choice is not None else ""
    if not isinstance(variant, str) or variant not in kinds:
        raise SettingError(f"{part.name}.variant = {variant!r}; allowed: {', '.join(kinds)}")
    if choice is not None:
        values[choice.name] = variant
    names = {field.name: flat_name(field) for field in declared(kinds[variant])}
    for name, value in found.items():
        if name == "variant" and choice is not None:
            continue
        if name not in names:
            raise SettingError(f"unknown setting {part.name}.{name}; allowed: {', '.join(names)}")
        values[names[name]] = tuple(value) if isinstance(value, list) else value
    return values
