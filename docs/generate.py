"""Write the reference pages that follow from the code: ``python docs/generate.py``.

``docs/recipe.md`` comes from the recipe's sections, ``docs/cli.md`` from the verbs' own help;
a test fails when either is stale.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import click
from pydantic_core import PydanticUndefined

from edgekit import recipe
from edgekit.cli import cli

HERE = Path(__file__).parent
NOTE = "<!-- made by docs/generate.py from the code: edit that -->\n\n"
SECTIONS = {
    "model": recipe.ModelSection,
    "data": recipe.DataSection,
    "metric": recipe.MetricSection,
    "prune": recipe.PruneSection,
    "recover": recipe.TrainSection,
    "export": recipe.ExportSection,
    "export.preprocess": recipe.Preprocess,
    "quantize": recipe.QuantizeSection,
    "measure": recipe.MeasureSection,
    "gate": recipe.GateSection,
    "[gate.rule]": recipe.Rule,
    "[variant]": recipe.Variant,
}


def recipe_page() -> str:
    """The recipe's sections and keys, with types and defaults, as Markdown."""
    parts = [
        f"{NOTE}# The recipe\n\n"
        "One TOML file describes the whole job. Unknown keys are errors that name the nearest known one;\n"
        "entries and paths start at the recipe's folder. At the top stand `recipe_version = 1`, `seed` and\n"
        '`targets = ["x86-cpu", …]` (see `edgekit targets`).\n'
    ]
    for name, section in SECTIONS.items():
        told, keys = _docstring(section)
        parts.append(f"\n## `[{name}]`\n\n{told}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n")
        for key, field in section.model_fields.items():
            kind = str(field.annotation).replace("typing.", "").replace("<class '", "").replace("'>", "")
            kind = re.sub(r"edgekit\.recipe\.", "", kind).replace("|", "or")
            default = (
                "" if field.default is PydanticUndefined else _default(field.get_default(call_default_factory=True))
            )
            parts.append(f"| `{key}` | {kind} | {default} | {keys.get(key, '')} |\n")
    return "".join(parts)


def _default(value: Any) -> str:
    if isinstance(value, recipe.Section):
        return "see `[recover]`: " + ", ".join(f"{k} = {v}" for k, v in value.model_dump(exclude_defaults=True).items())
    return f"`{value}`"


def _docstring(section: type) -> tuple[str, dict[str, str]]:
    """A section's opening text, and what its docstring says of each key."""
    text = inspect.getdoc(section) or ""
    told, _, attributes = text.partition("Attributes:")
    keys: dict[str, str] = {}
    entries = re.split(r"\n\s{4}(?=[a-z_, ]+: )", "\n" + attributes.strip("\n").replace("\n        ", " "))
    for entry in entries:
        for part in re.split(r"(?<=\.) (?=[a-z_]+: )", entry.strip()):
            names, colon, meaning = part.partition(": ")
            if colon:
                keys |= {
                    name.strip(): meaning.replace("``", "`").replace("|", "or").strip() for name in names.split(",")
                }
    told = re.sub(r"^``\[.*?\]``: ", "", told.strip()).replace("``", "`")
    return told[:1].upper() + told[1:], keys


def cli_page() -> str:
    """Every verb's own help, as Markdown."""
    parts = [NOTE + "# The command line\n\n", _help(cli, "edgekit")]
    for name, command in sorted(cli.commands.items()):
        parts.append(f"\n## `edgekit {name}`\n\n{_help(command, f'edgekit {name}')}")
    return "".join(parts)


def _help(command: click.Command, name: str) -> str:
    width = {"terminal_width": 100, "max_content_width": 100}
    context = click.Context(command, info_name=name, help_option_names=["-h", "--help"], **width)
    return f"```text\n{command.get_help(context)}\n```\n"


PAGES = {"recipe.md": recipe_page, "cli.md": cli_page}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (HERE / page).write_text(text())
