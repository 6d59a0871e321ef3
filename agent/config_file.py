"""Reading a configuration file, and saying exactly where in it an error stands."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from agent.addresses import announce_problem, http_problem, listen_problem, peer_problem, short
from agent.config import Config
from agent.engine_url import engine_url_problem, parse_engine_url
from agent.errors import ConfigError
from agent.mqtt_url import address_problem
from agent.yaml_text import MAX_BYTES, Location, Problems, compose, dotted, plain_value
from fleet.models.reference import canonical_name

#: Environment variables that override keys of the file, for containers.
OVERRIDES: Final[Mapping[str, tuple[str, ...]]] = {
    "SHOAL_NAME": ("name",),
    "SHOAL_STATE_DIR": ("state_dir",),
    "SHOAL_HTTP_LISTEN": ("http", "listen"),
    "SHOAL_LOG_LEVEL": ("log", "level"),
    "SHOAL_LOG_FORMAT": ("log", "format"),
}


def load(path: Path, env: Mapping[str, str] = os.environ) -> Config:
    """Read and check a configuration file.

    Relative paths in it become relative to its folder, `~` is expanded, environment overrides are applied. Raises
    ConfigError that lists every problem as `file:line: what is wrong and what is allowed`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}; write one with: shoal init") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes; this is not a configuration file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    return parse(text, str(path), path.parent, env)


def parse(text: str, source: str, folder: Path, env: Mapping[str, str]) -> Config:
    """Check the text of a configuration; `source` is what error messages call it, `folder` where its paths start."""
    problems = Problems(source)
    values = _read_yaml(text, problems)
    problems.stop_if_any(fatal=True)
    _override(values, env, problems)
    values = without_empty(values, Config)
    _check_network(values, problems)
    _check_names(values, problems)
    _check_engines(values, problems)
    _check_mqtt(values, problems)
    try:
        # The strict rules for JSON: no number for a text and no text for a number, but lists and paths as usual.
        config = Config.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            problems.add(problem["loc"], explain(problem["loc"], problem))
        config = None
    resolved = _resolve_paths(config, folder.absolute(), problems) if config is not None else None
    problems.stop_if_any()
    assert resolved is not None
    return resolved


def _read_yaml(text: str, problems: Problems) -> dict[str, Any]:
    """The plain values of a YAML text; notes the line of every key and list item."""
    roots = compose(text, problems)
    root = roots[0] if roots else None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        problems.add_line(1, "the file must be a mapping of keys to values", fatal=True)
        return {}
    values = plain_value(root, (), problems)
    assert isinstance(values, dict)
    return values


def _override(values: dict[str, Any], env: Mapping[str, str], problems: Problems) -> None:
    for variable, path in OVERRIDES.items():
        if not env.get(variable):
            continue
        section = values
        for key in path[:-1]:
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                break
        else:
            section[path[-1]] = env[variable]
            problems.variables[path] = variable


def without_empty(values: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Known keys that have nothing behind the colon count as not given, as when all of a list is commented out."""
    kept = {}
    for key, value in values.items():
        field = model.model_fields.get(key)
        if value is None and field is not None:
            continue
        inner = next(_models_in(field.annotation), None) if field is not None else None
        if inner is not None and isinstance(value, dict):
            value = without_empty(value, inner)
        elif inner is not None and isinstance(value, list):
            value = [without_empty(item, inner) if isinstance(item, dict) else item for item in value]
        kept[key] = value
    return kept


def explain(location: Location, problem: Mapping[str, Any], model: type[BaseModel] = Config) -> str:
    """A finding of pydantic about a file that `model` describes, as a sentence that says what is allowed."""
    where, context = dotted(location), problem.get("ctx", {})
    given = problem.get("input")
    shown = f", not {given!r}" if isinstance(given, str | int | float) and len(str(given)) < 60 else ""
    match problem["type"]:
        case "extra_forbidden":
            section, key = dotted(location[:-1]), str(location[-1])[:60]
            valid = _keys_at(location[:-1], model)
            near = difflib.get_close_matches(key.lower(), valid, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
            return f"unknown key {key!r}{f' in {section}' if section else ''}; {hint}"
        case "missing":
            return f"{where} is missing"
        case "string_type":
            return f"{where}: must be text{shown}" + ("; put it in quotes" if shown else "")
        case "string_pattern_mismatch" if location == ("name",):
            return f"{where}: must be letters, digits, '.', '_' or '-', and start with a letter or digit{shown}"
        case "string_too_short":
            return f"{where}: must not be empty"
        case "string_too_long":
            return f"{where}: must have at most {context['max_length']} characters, not {len(str(given))}"
        case "bool_type":
            return f"{where}: must be true or false{shown}"
        case "int_type" | "int_from_float":
            return f"{where}: must be a whole number{shown}"
        case "float_type" | "finite_number":
            return f"{where}: must be a number{shown}"
        case "greater_than":
            return f"{where}: must be more than {context['gt']:g}{shown}"
        case "greater_than_equal":
            return f"{where}: must be at least {context['ge']}{shown}"
        case "less_than_equal":
            return f"{where}: must be at most {context['le']:.0f}{shown}"
        case "literal_error":
            return f"{where}: must be {context['expected']}{shown}"
        case "value_error":
            return f"{where}: {context['error']}{shown}"
        case "tuple_type":
            return f"{where}: must be a list{shown}; write each item on its own line after '- '"
        case "model_type":
            return f"{where}: must be a mapping with the keys {', '.join(_keys_at(location, model))}{shown}"
        case _:
            return f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}{shown}"


def _keys_at(location: Location, model: type[BaseModel]) -> list[str]:
    """The valid keys of the section at `location` of what `model` describes."""
    for part in location:
        if isinstance(part, str):
            model = next(_models_in(model.model_fields[part].annotation))
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _check_network(values: Mapping[str, Any], problems: Problems) -> None:
    """What types alone do not say: addresses and keys that can work. Other types than expected are left alone."""
    net, http = _section(values, "net"), _section(values, "http")
    checks = (("listen", listen_problem), ("announce", announce_problem), ("peers", peer_problem))
    for key, problem_of in checks:
        for index, addr in enumerate(_list(net, key)):
            if isinstance(addr, str) and (problem := problem_of(addr)):
                problems.add(("net", key, index), f"net.{key}[{index}]: {problem}")
    listen = http.get("listen")
    has_keys = http.get("api_key_file") is not None
    if isinstance(listen, str) and (problem := http_problem(listen, has_keys=has_keys)):
        problems.add(("http", "listen"), f"http.listen: {problem}")


def _check_names(values: Mapping[str, Any], problems: Problems) -> None:
    """Two models that requests could not tell apart; a model without a name has that of its file."""
    seen: dict[str, int] = {}
    for index, model in enumerate(_list(values, "models")):
        path, name = (model.get("path"), model.get("name")) if isinstance(model, dict) else (None, None)
        if not isinstance(path, str) or not isinstance(name, str | None):
            continue
        name = canonical_name(name or Path(path).name)
        first = seen.setdefault(name, index)
        if first != index:
            problems.add(("models", index), f"models[{index}]: models[{first}] is called {short(name)} too; rename one")


def _check_engines(values: Mapping[str, Any], problems: Problems) -> None:
    """Addresses of engines that cannot be used, and one server that is named twice."""
    seen: dict[tuple[str, int, str], int] = {}
    for index, engine in enumerate(_list(values, "engines")):
        url = engine.get("url") if isinstance(engine, dict) else None
        if not isinstance(url, str) or not url:
            continue
        where = f"engines[{index}].url"
        if problem := engine_url_problem(url, has_key=engine.get("api_key_file") is not None):
            problems.add(("engines", index, "url"), f"{where}: {short(url)} {problem}")
            continue
        parsed = parse_engine_url(url)
        first = seen.setdefault((*parsed.place, parsed.prefix), index)
        if first != index:
            problems.add(("engines", index, "url"), f"{where}: engines[{first}] is the same server; remove one")


def _check_mqtt(values: Mapping[str, Any], problems: Problems) -> None:
    """A broker's address that cannot work, and half of what a box shows who it is with."""
    mqtt = _section(values, "mqtt")
    url = mqtt.get("url")
    if isinstance(url, str) and (problem := address_problem(url)):
        problems.add(("mqtt", "url"), f"mqtt.url: {short(url)} {problem}")
    for key, other in (("password_file", "user"), ("cert_file", "key_file"), ("key_file", "cert_file")):
        if mqtt.get(key) is not None and mqtt.get(other) is None:
            problems.add(("mqtt", key), f"mqtt.{key}: needs mqtt.{other} beside it")
    tls = [key for key in ("ca_file", "cert_file", "key_file") if mqtt.get(key) is not None]
    if tls and isinstance(url, str) and url.startswith("mqtt://"):
        problems.add(("mqtt", tls[0]), f"mqtt.{tls[0]}: is for TLS; write mqtts:// in mqtt.url")


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = values.get(key)
    return section if isinstance(section, dict) else {}


def _list(values: Mapping[str, Any], key: str) -> list[Any]:
    items = values.get(key)
    return items if isinstance(items, list) else []


def _resolve_paths(config: Config, folder: Path, problems: Problems) -> Config:
    def absolute(path: Path | None, *location: str | int) -> Path | None:
        try:
            return folder / path.expanduser() if path is not None else None
        except RuntimeError:
            problems.add(location, f"{dotted(location)}: there is no such user as in {short(str(path))}")
            return path

    models = [
        model.model_copy(update={"path": absolute(model.path, "models", index, "path")})
        for index, model in enumerate(config.models)
    ]
    engines = [
        engine.model_copy(update={"api_key_file": absolute(engine.api_key_file, "engines", index, "api_key_file")})
        for index, engine in enumerate(config.engines)
    ]
    key_file = absolute(config.http.api_key_file, "http", "api_key_file")
    secrets = {
        key: absolute(getattr(config.mqtt, key), "mqtt", key)
        for key in ("password_file", "ca_file", "cert_file", "key_file")
    }
    return config.model_copy(
        update={
            "state_dir": absolute(config.state_dir, "state_dir"),
            "seed_file": absolute(config.seed_file, "seed_file"),
            "models": tuple(models),
            "engines": tuple(engines),
            "http": config.http.model_copy(update={"api_key_file": key_file}),
            "mqtt": config.mqtt.model_copy(update=secrets),
        }
    )
