"""Values of the fleet document as YAML for people: texts of several lines as blocks, byte strings in hexadecimal."""

from __future__ import annotations

import json
from typing import Any, Final

import yaml

from fleet.document.plain_json import text_of

_WIDTH: Final = 100


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as it reads."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def plain(value: object) -> Any:
    """A value of the document as JSON has it."""
    return json.loads(text_of(value))


def yaml_of(value: object, *, sort_keys: bool = True) -> str:
    """A value as YAML that reads back as the same value."""
    return str(yaml.dump(plain(value), Dumper=_Dumper, sort_keys=sort_keys, allow_unicode=True, width=_WIDTH))
