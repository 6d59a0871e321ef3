"""YAML that strangers wrote, as plain values: bounded before it is built, and every problem with its line. Pure."""

from __future__ import annotations

from typing import Any, Final

import yaml

from agent.addresses import short
from agent.errors import ConfigError

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 16
#: Keys, values and brackets in one file.
MAX_ENTRIES: Final = 20_000
#: A file with more problems than this is most likely not a configuration file.
MAX_PROBLEMS: Final = 20
#: Characters of a key, and of a number.
MAX_KEY: Final = 256
MAX_DIGITS: Final = 64

_NUMBERS: Final = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

#: Where a value stands: keys and positions in lists, from the root.
Location = tuple[str | int, ...]


class Problems:
    """Everything found wrong so far in one file, and where each key and list item stands (lines from 1)."""

    def __init__(self, source: str) -> None:
        self.lines: dict[Location, int] = {(): 1}
        self.variables: dict[Location, str] = {}
        self._source = source
        self._found: dict[tuple[int, str], None] = {}
        self._fatal = False

    def add(self, location: Location, text: str) -> None:
        """A problem with the value at a location, or with the variable that overrides it."""
        variable = self.variables.get(location)
        if variable is not None:
            self._found[0, f"{variable}: {text}"] = None
            return
        while location not in self.lines and location:
            location = location[:-1]
        self.add_line(self.lines.get(location, 1), text)

    def add_line(self, line: int, text: str, *, fatal: bool = False) -> None:
        """A problem on a line; a fatal one makes further checks meaningless."""
        self._found[line, f"{self._source}:{line}: {text}"] = None
        self._fatal = self._fatal or fatal

    def stop_if_any(self, *, fatal: bool = False) -> None:
        """Raise ConfigError with every problem, in the order of lines; with `fatal`, only after a fatal one."""
        if self._fatal if fatal else self._found:
            texts = [text for _, text in sorted(self._found)]
            more = [f"and {len(texts) - MAX_PROBLEMS} more"] if len(texts) > MAX_PROBLEMS else []
            raise ConfigError("\n".join(texts[:MAX_PROBLEMS] + more))


def compose(text: str, problems: Problems, most: int = 1) -> list[yaml.Node]:
    """The documents of a YAML text, at most `most` of them, once their size and nesting are found within limits."""
    try:
        if not _is_bounded(text, problems, most):
            return []
        return [root for root in yaml.compose_all(text, Loader=yaml.SafeLoader) if root is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "not valid"
        problems.add_line(mark.line + 1 if mark else 1, f"not valid YAML: {what}", fatal=True)
    except (ValueError, OverflowError):
        # PyYAML 6.0.3 lets these out of its scanner: "\UFFFFFFFF", and %YAML with a version of 5,000 digits.
        problems.add_line(1, "not valid YAML: an escape or a version is no such number", fatal=True)
    return []


def _is_bounded(text: str, problems: Problems, most: int) -> bool:
    """Check size and nesting on the stream of events, before anything recursive or multiplying is done with them."""
    depth = documents = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            problems.add_line(
                line, f"aliases (*{(event.anchor or '')[:40]}) are not supported; write the value", fatal=True
            )
            return False
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > most:
            more = "a second document" if most == 1 else f"more than {most} documents"
            problems.add_line(line, f"{more} starts here; put it into a file of its own", fatal=True)
            return False
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            problems.add_line(line, f"nested more than {MAX_DEPTH} deep", fatal=True)
            return False
        if count > MAX_ENTRIES:
            problems.add_line(line, f"more than {MAX_ENTRIES} entries; this is not a configuration file", fatal=True)
            return False
    return True


def plain_value(node: Any, path: Location, problems: Problems) -> Any:
    """The plain value of a YAML node at a location; notes the line of every key and list item below it."""
    line = node.start_mark.line + 1
    problems.lines.setdefault(path, line)
    if isinstance(node, yaml.SequenceNode):
        return [plain_value(item, (*path, index), problems) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                problems.add_line(key_line, "a key must be a plain word", fatal=True)
                continue
            key = key_node.value
            if len(key) > MAX_KEY or not _is_unicode(key):
                problems.add_line(key_line, f"{key[:40]!r}... is not a key", fatal=True)
                continue
            if key in values:
                first = problems.lines[(*path, key)]
                problems.add_line(key_line, f"{dotted((*path, key))} is given twice, first on line {first}", fatal=True)
                continue
            problems.lines[(*path, key)] = key_line
            values[key] = plain_value(value_node, (*path, key), problems)
        return values
    loader = yaml.SafeLoader("")
    try:
        # Long numbers are mistakes, and converting one (1:59:59… counts in sixties) takes time with its length squared.
        long_number = node.tag in _NUMBERS and len(node.value) > MAX_DIGITS
        value = ... if long_number else loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError):
        # The last two come out of PyYAML 6.0.3 for !!int "", !!bool x and !!timestamp x.
        value = ...
    finally:
        loader.dispose()
    if value is None or isinstance(value, int | float) or (isinstance(value, str) and _is_unicode(value)):
        return value
    if node.tag == "tag:yaml.org,2002:timestamp":
        return node.value
    problems.add_line(line, f"{dotted(path)}: {node.value[:40]!r} is not a value that is used here", fatal=True)
    return None


def _is_unicode(text: str) -> bool:
    """False for a text with half of a surrogate pair, which YAML can spell and UTF-8 cannot carry."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def dotted(location: Location) -> str:
    """A location as people write it: `models[0].path`."""
    text = ""
    for part in location:
        if isinstance(part, str) and not (part.isprintable() and len(part) <= 64):
            part = short(part)  # a label's name is whatever the file says
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text
