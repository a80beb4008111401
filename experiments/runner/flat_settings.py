"""Settings as one flat dict of names and values: what flags, recipes and old files speak of.

The name of a setting is its field's `flag`, or else the field's own name; no two parts of a run share a name, and
variants of one part share it where the setting means the same in both.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from metarl.core.settings import SettingError, check_value, declared, nearest

SettingsType = TypeVar("SettingsType")


@dataclass(frozen=True)
class FlatSetting:
    """A setting of a run.

    Attributes:
        name: its flat name, with underscores.
        part: the field of the run's settings that holds it.
        field: its declaration.
        group: its heading in the help.
        choice: the name of the setting that chooses the variant of its part, or an empty text.
        variants: those that have it, where not all variants of its part do.
    """

    name: str
    part: str
    field: dataclasses.Field
    group: str
    choice: str = ""
    variants: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """Its flag on the command line."""
        return flag(self.name)


def flag(name: str) -> str:
    """Return the flag of a setting's name."""
    return "--" + name.replace("_", "-")


def require_effect(settings: Any, names: Iterable[str]) -> None:
    """SettingError for the first of these flat names that has no effect beside the other settings."""
    idle = settings.without_effect
    for name in names:
        if name in idle:
            cause = f"{flag(idle[name])} {to_flat(settings)[idle[name]]}"
            raise SettingError(f"{flag(name)} has no effect with {cause}; allowed: without it")


def flat_settings(kind: type) -> dict[str, FlatSetting]:
    """Return all settings of a run's settings class by flat name, those of every variant among them."""
    found: dict[str, FlatSetting] = {}
    for part in dataclasses.fields(kind):
        group, choice = part.metadata["group"], part.metadata["choice"]
        own: dict[str, FlatSetting] = {}
        if choice is not None:
            own[choice.name] = FlatSetting(choice.name, part.name, choice, group)
        kinds = part.metadata["variants"]
        declarations = [(flat_name(field), field, v) for v, of in kinds.items() for field in declared(of)]
        for name, field, _ in declarations:
            having = tuple(v for other, _, v in declarations if other == name)
            only = having if len(having) < len(kinds) else ()
            own.setdefault(name, FlatSetting(name, part.name, field, group, choice.name if choice else "", only))
        if taken := own.keys() & found.keys():
            raise TypeError(f"two parts of {kind.__name__} have a setting {min(taken)}; allowed: a flag of its own")
        found |= own
    return found


def to_flat(settings: Any) -> dict[str, Any]:
    """Return the values of all settings that have an effect, by flat name."""
    values: dict[str, Any] = {}
    for part in dataclasses.fields(settings):
        chosen = getattr(settings, part.name)
        if part.metadata["choice"] is not None:
            values[part.metadata["choice"].name] = variant_of(part, chosen)
        values |= {flat_name(field): getattr(chosen, field.name) for field in declared(chosen)}
    return values


def variant_of(part: dataclasses.Field, chosen: Any) -> str:
    """Return the name of the variant that a part is; empty where it has none."""
    return next(name for name, kind in part.metadata["variants"].items() if type(chosen) is kind)


def updated(kind: type, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat values with changes, among which may be other variants.

    Values that have no effect any more go; a change that has none is refused.

    Args:
        kind: the class of the run's settings.
        values: by flat name.
        changes: by flat name.

    Raises:
        SettingError: a change that is unknown, not allowed, or without effect.
    """
    known = flat_settings(kind)
    for name, value in changes.items():
        if name not in known:
            raise SettingError(f"unknown setting {name}{nearest(name, known)}; allowed: {', '.join(known)}")
        check_value(known[name].field, value, flag(name))
    merged = {**values, **changes}
    for name in changes:
        setting = known[name]
        if not _has_effect(setting, known, merged):
            raise SettingError(
                f"{flag(name)} has no effect with {flag(setting.choice)} {_chosen(setting, known, merged)}; "
                f"allowed with: {', '.join(setting.variants)}"
            )
    return {name: value for name, value in merged.items() if _has_effect(known[name], known, merged)}


def from_flat(kind: type[SettingsType], values: Mapping[str, Any]) -> SettingsType:
    """Build a run's settings from flat values that `updated` returned; what is not there has its default."""
    parts = {}
    for part in dataclasses.fields(kind):  # type: ignore[arg-type]
        choice = part.metadata["choice"]
        variant = values.get(choice.name, choice.default) if choice is not None else ""
        dataclass_ = part.metadata["variants"][variant]
        own = {field.name: flat_name(field) for field in declared(dataclass_)}
        try:
            parts[part.name] = dataclass_(**{field: values[name] for field, name in own.items() if name in values})
        except SettingError as error:  # of values that do not go together
            raise SettingError(_with_flags(str(error), own)) from error
    return kind(**parts)


def flat_name(field: dataclasses.Field) -> str:
    """Return the flat name of a declared setting."""
    return field.metadata["flag"] or field.name


def in_flags(message: str, kind: type) -> str:
    """A message that calls settings by the names of their fields, `name = value`, with their flags instead.

    Args:
        message: from the library; a name that several parts share is left as it is, unless it is one's flat name.
        kind: the class of the run's settings.
    """
    known = flat_settings(kind)
    flat_names: dict[str, set[str]] = {}
    for name, setting in known.items():
        flat_names.setdefault(setting.field.name, set()).add(name)
    return _with_flags(message, {of: of if of in names else min(names) for of, names in flat_names.items()
                                 if of in names or len(names) == 1})  # fmt: skip


def _with_flags(message: str, flat_names: Mapping[str, str]) -> str:
    def replaced(found: re.Match) -> str:
        return flag(flat_names[found[0]]) if found[0] in flat_names else found[0]

    return re.sub(r"(?<![\w-])\w+(?= = )", replaced, message)


def _has_effect(setting: FlatSetting, known: Mapping[str, FlatSetting], values: Mapping[str, Any]) -> bool:
    return not setting.variants or _chosen(setting, known, values) in setting.variants


def _chosen(setting: FlatSetting, known: Mapping[str, FlatSetting], values: Mapping[str, Any]) -> str:
    return values.get(setting.choice, known[setting.choice].field.default)
