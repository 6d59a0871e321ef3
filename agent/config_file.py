"""Reading a configuration file, and saying exactly where in it an error stands."""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from agent.config import Config
from agent.errors import ConfigError
from fleet.errors import IdentityError
from fleet.identity.keys import public_key_from_peer_id

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 16

#: Environment variables that override keys of the file, for containers.
OVERRIDES: Final[Mapping[str, tuple[str, ...]]] = {
    "SHOAL_NAME": ("name",),
    "SHOAL_STATE_DIR": ("state_dir",),
    "SHOAL_HTTP_LISTEN": ("http", "listen"),
    "SHOAL_LOG_LEVEL": ("log", "level"),
    "SHOAL_LOG_FORMAT": ("log", "format"),
}

_Path = tuple[str | int, ...]


class _Problems(Exception):  # noqa: N818 - collected problems on their way to one ConfigError
    def __init__(self, found: list[tuple[int, str]]) -> None:
        super().__init__()
        self.found = found


def load(path: Path, env: Mapping[str, str] = os.environ) -> Config:
    """Read and check a configuration file.

    Relative paths in it become relative to its folder, `~` is expanded, environment overrides are applied. Raises
    ConfigError that lists every problem as `file:line: what is wrong and what is allowed`.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes; this is not a configuration file")
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}; write one with: shoal init") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    try:
        values, lines = _parse(text)
        _override(values, env)
        config = _validate(values, lines)
        _check_network(config, lines)
    except _Problems as problems:
        raise ConfigError("\n".join(f"{path}:{line}: {text}" for line, text in sorted(problems.found))) from None
    return _resolve_paths(config, path.parent)


def _parse(text: str) -> tuple[dict[str, Any], dict[_Path, int]]:
    """Values, and the line of every key and list item by its path."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise _Problems([((mark.line + 1) if mark else 1, f"not valid YAML: {problem}")]) from None
    lines: dict[_Path, int] = {(): 1}
    if root is None:
        return {}, lines
    if not isinstance(root, yaml.MappingNode):
        raise _Problems([(1, "the file must be a mapping of keys to values")])
    return _build(root, (), lines, set()), lines


def _build(node: Any, path: _Path, lines: dict[_Path, int], above: set[int]) -> Any:
    """The plain value of a node. Anchors that contain themselves and deep nesting are refused."""
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if id(node) in above or len(above) >= MAX_DEPTH:
        raise _Problems([(line, "nested too deeply")])
    above = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
            key_line = key_node.start_mark.line + 1
            if key == "<<" or not isinstance(key_node, yaml.ScalarNode):
                raise _Problems([(key_line, "keys are plain words; merge keys are not supported")])
            if key in values:
                raise _Problems([(key_line, f"{_dotted((*path, key))} is given twice")])
            lines[(*path, key)] = key_line
            values[key] = _build(value_node, (*path, key), lines, above)
        return values
    if isinstance(node, yaml.SequenceNode):
        if len(node.value) > 10_000:
            raise _Problems([(line, "more than 10000 entries")])
        return [_build(item, (*path, index), lines, above) for index, item in enumerate(node.value)]
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError):
        raise _Problems([(line, f"not a value: {node.value[:40]!r}")]) from None
    finally:
        loader.dispose()


def _override(values: dict[str, Any], env: Mapping[str, str]) -> None:
    for variable, path in OVERRIDES.items():
        if not env.get(variable):
            continue
        section = values
        for key in path[:-1]:
            inner = section.setdefault(key, {})
            if not isinstance(inner, dict):
                return
            section = inner
        section[path[-1]] = env[variable]


def _validate(values: dict[str, Any], lines: Mapping[_Path, int]) -> Config:
    try:
        return Config.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        found = []
        for problem in error.errors(include_url=False):
            location = problem["loc"]
            found.append((_line_of(lines, location), _explain(location, problem)))
        raise _Problems(found) from None


def _explain(location: _Path, problem: Mapping[str, Any]) -> str:
    where = _dotted(location)
    match problem["type"]:
        case "extra_forbidden":
            section = _dotted(location[:-1])
            key = str(location[-1])
            valid = _keys_at(location[:-1])
            near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(valid))}"
            return f"unknown key {key!r}{f' in {section}' if section else ''}; {hint}"
        case "missing":
            return f"{where} is missing"
        case _:
            given = problem.get("input")
            shown = f" (is {given!r})" if isinstance(given, str | int | float | bool) and len(str(given)) < 60 else ""
            return f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}{shown}"


def _keys_at(location: _Path) -> list[str]:
    """The valid keys of the section at `location`."""
    model: type[BaseModel] = Config
    for part in location:
        if isinstance(part, int):
            continue
        for candidate in _models_in(model.model_fields[part].annotation):
            model = candidate
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _check_network(config: Config, lines: Mapping[_Path, int]) -> None:
    """What types alone do not say: addresses and keys that can work."""
    found: list[tuple[int, str]] = []

    def check(location: _Path, problem: str | None) -> None:
        if problem is not None:
            found.append((_line_of(lines, location), f"{_dotted(location)}: {problem}"))

    for index, addr in enumerate(config.net.listen):
        check(("net", "listen", index), _listen_problem(addr))
    for index, addr in enumerate(config.net.peers):
        check(("net", "peers", index), _peer_problem(addr))
    for index, entry in enumerate(config.net.allow):
        check(("net", "allow", index, "key"), _key_problem(entry.key))
    check(("http", "listen"), _http_problem(config.http.listen))
    names = [model.name.lower() for model in config.models if model.name]
    for index, model in enumerate(config.models):
        if model.name and names.count(model.name.lower()) > 1:
            check(("models", index, "name"), f"{model.name!r} names two models")
    if found:
        raise _Problems(found)


def _listen_problem(addr: str) -> str | None:
    parts = addr.split("/")
    form = "use /ip4/0.0.0.0/tcp/4210 or another /ip4|ip6/ADDRESS/tcp/PORT"
    if len(parts) != 5 or parts[0] or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        return f"{addr!r} is not an address to listen on; {form}"
    return None if _is_ip(parts[2], parts[1]) and _is_port(parts[4]) else f"{addr!r} has no valid address; {form}"


def _peer_problem(addr: str) -> str | None:
    parts = addr.split("/")
    form = "use /ip4/10.0.0.7/tcp/4210/p2p/PEERID as `shoal id` prints it on the other box"
    if len(parts) != 7 or parts[0] or parts[3] != "tcp" or parts[5] != "p2p" or not _is_port(parts[4]):
        return f"{addr!r} is not a peer's address; {form}"
    if parts[1] not in ("ip4", "ip6", "dns4", "dns6") or (parts[1][:2] == "ip" and not _is_ip(parts[2], parts[1])):
        return f"{addr!r} has no valid host; {form}"
    return _key_problem(parts[6])


def _key_problem(key: str) -> str | None:
    try:
        public_key_from_peer_id(key)
    except IdentityError as error:
        return error.message
    return None


def _http_problem(listen: str) -> str | None:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    valid = host == "localhost" or _is_ip(host, "ip6" if ":" in host else "ip4")
    return (
        None if valid and _is_port(port) else f"{listen!r} is not HOST:PORT; use 127.0.0.1:8420 or another IP address"
    )


def _is_ip(text: str, family: str) -> bool:
    try:
        return f"ip{ipaddress.ip_address(text).version}" == family
    except ValueError:
        return False


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 65536


def _line_of(lines: Mapping[_Path, int], location: _Path) -> int:
    while location not in lines and location:
        location = location[:-1]
    return lines.get(location, 1)


def _dotted(location: _Path) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def _resolve_paths(config: Config, base: Path) -> Config:
    def absolute(path: Path) -> Path:
        return (base / path.expanduser()).absolute()

    return config.model_copy(
        update={
            "state_dir": absolute(config.state_dir),
            "seed_file": absolute(config.seed_file) if config.seed_file else None,
            "models": tuple(m.model_copy(update={"path": absolute(m.path)}) for m in config.models),
            "http": config.http.model_copy(
                update={"api_key_file": absolute(config.http.api_key_file) if config.http.api_key_file else None}
            ),
        }
    )
