"""Settings of Sphinx: pages in Markdown (MyST), API pages from docstrings."""

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import metarl
from metarl.core.settings import allowed_values, declared

project = "metarl"
author = "the metarl authors"
release = version = metarl.__version__
html_title = f"metarl {release}"
html_theme = "furo"
html_show_copyright = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_theme_options = {"light_css_variables": {"code-font-size": "80%"}, "dark_css_variables": {"code-font-size": "80%"}}

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a page that is included, such as the changelog, starts with its own title

default_role = "literal"  # docstrings put code between single backticks
autodoc_mock_imports = ["metaworld"]  # an extra that building the pages does not need
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_include_init_with_doc = False

_INCLUDED = {
    "experiments/results/LOG.md": "log.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Settings):(\s.*)?$")


def _plain_text_to_rst(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Make a docstring, which is plain text with code between backticks, valid reStructuredText.

    An indented block after a paragraph becomes a literal block, and characters that reStructuredText would read as
    markup (emphasis, substitutions, references) are escaped. The settings of a dataclass are added from their
    declarations.
    """
    result: list[str] = []
    in_section = in_block = False
    for number, line in enumerate(lines):
        stripped = line.strip()
        indented = line.startswith("    ")
        if stripped and not indented:
            in_section, in_block = bool(_SECTION.match(line)), False
        starts = indented and not in_section and not in_block and number and not lines[number - 1].strip()
        if starts:
            in_block = True
            result += ["::", ""]
        result.append(line if in_block else _escaped(line))
    lines[:] = [*result, *_settings_of(what, item)]


def _escaped(line: str) -> str:
    """Escape what is markup in reStructuredText, outside of code."""
    parts = re.split(r"(`[^`]*`)", line)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"([*|\\])", r"\\\1", parts[index])
        parts[index] = re.sub(r"(\w)_(?!\w)", r"\1\\_", parts[index])
    return "".join(parts)


def _settings_of(what: str, item: Any) -> list[str]:
    """A list of the settings that a dataclass declares: default, what is allowed, and the meaning."""
    if what not in ("class", "exception") or not dataclasses.is_dataclass(item):
        return []
    found = []
    for field in declared(item):
        notes = [f"default {field.default!r}", allowed_values(field), field.metadata["unit"], field.metadata["source"]]
        told = "; ".join(note for note in notes if note)
        found.append(f"* ``{field.name}``: {_escaped(field.metadata['help'])} ({_escaped(told)})")
    return ["", "Its settings:", "", *found, ""] if found else []


def _short_signature(
    app: Any, what: str, name: str, item: Any, options: Any, arguments: str, returns: str
) -> tuple[str, str] | None:
    """The signature of a dataclass with short defaults and without types, which the list of its attributes has."""
    if what not in ("class", "exception") or not dataclasses.is_dataclass(item):
        return None
    shown = []
    for field in dataclasses.fields(item):
        if field.default is dataclasses.MISSING:
            default = "" if field.default_factory is dataclasses.MISSING else "=..."
        elif dataclasses.is_dataclass(field.default):
            default = f"={type(field.default).__name__}()"
        else:
            default = f"={getattr(field.default, '__name__', repr(field.default))}"
        if field.init:
            shown.append(field.name + default)
    return f"({', '.join(shown)})", ""


def _skip_defaults(app: Any, what: str, name: str, item: Any, skip: bool, options: Any) -> bool | None:
    """Leave out functions that are the default of a dataclass's field, which are no methods of it."""
    return True if what == "class" and inspect.isfunction(item) and "." not in item.__qualname__ else None


def _link_to_pages(app: Any, docname: str, source: list[str]) -> None:
    """Point links to Markdown files outside of this folder to the pages that include them."""
    for path, page in _INCLUDED.items():
        for up in ("../", "../../"):
            source[0] = source[0].replace(f"]({up}{path}", f"](/{page}")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _link_to_pages)
    app.connect("autodoc-process-signature", _short_signature)
    app.connect("autodoc-skip-member", _skip_defaults)
    app.connect("autodoc-process-docstring", _plain_text_to_rst, priority=100)  # before napoleon
