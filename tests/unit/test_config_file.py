"""Configuration files: what is read from them, and how exactly it is said where one is wrong."""

# The tables of messages are easier to read unbroken.
# ruff: noqa: E501

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config import Config
from agent.config_file import load, parse
from agent.errors import ConfigError
from agent.yaml_text import MAX_BYTES, MAX_DEPTH, MAX_PROBLEMS
from fleet.identity.keys import Identity

KEY = Identity.from_seed(b"\1" * 32).peer_id
OTHER_KEY = Identity.from_seed(b"\2" * 32).peer_id

WHOLE = f"""\
name: jetson-1
state_dir: state
labels: {{site: berlin, role: pos}}
seed_file: ~/seed
net:
  listen: [/ip4/0.0.0.0/tcp/4210, /ip6/::/tcp/0]
  mdns: false
  peers:
    - /ip4/10.0.0.7/tcp/4210/p2p/{KEY}
    - /dns4/pos-1.shop.example/tcp/4210/p2p/{OTHER_KEY}
http:
  listen: 0.0.0.0:8420
  api_key_file: keys
models:
  - path: ../models/a.gguf
  - {{path: /srv/b.gguf, name: Small Model}}
engine: {{context_tokens: 512, threads: 2, preload: no}}
timeouts:
  connect: 1
  inter_token: 2.5
log: {{level: debug, format: json}}
"""


def read(text: str, tmp_path: Path, env: dict[str, str] | None = None) -> Config:
    (tmp_path / "shoal.yaml").write_text(text, "utf-8")
    return load(tmp_path / "shoal.yaml", env or {})


def problems(text: str, tmp_path: Path, env: dict[str, str] | None = None) -> list[str]:
    """The lines of the error, each without the folder of the file."""
    with pytest.raises(ConfigError) as caught:
        read(text, tmp_path, env)
    return [line.removeprefix(f"{tmp_path}/") for line in caught.value.message.splitlines()]


MEMORY = "must be a number of bytes from 1048576 on, or a text such as 800MiB, 1.5GiB or 60%"


def refusal_of(text: str) -> str:
    """Why a configuration is refused, or nothing."""
    try:
        parse(text, "f", Path("/f"), {})
    except ConfigError as error:
        return error.message
    return ""


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    config = read(WHOLE, tmp_path)
    assert config.name == "jetson-1"
    assert config.net.peers[0].endswith(KEY)
    assert config.labels == {"site": "berlin", "role": "pos"}
    assert config.engine.preload is False
    assert (config.timeouts.connect, config.timeouts.inter_token, config.timeouts.total) == (1.0, 2.5, 600.0)
    assert config.log.format == "json"


def test_paths_are_relative_to_the_file_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/op")
    config = read(WHOLE, tmp_path)
    assert config.state_dir == tmp_path / "state"
    assert config.seed_file == Path("/home/op/seed")
    assert config.http.api_key_file == tmp_path / "keys"
    assert [model.path for model in config.models] == [tmp_path / "../models/a.gguf", Path("/srv/b.gguf")]


def test_paths_stay_right_when_the_working_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shoal.yaml").write_text("name: a\nstate_dir: state\n")
    monkeypatch.chdir(tmp_path)
    config = load(Path("shoal.yaml"), {})
    assert config.state_dir == tmp_path / "state"


@pytest.mark.parametrize("value", ["60%", "100%", "800MiB", "1.5GiB", 1 << 30])
def test_a_memory_budget_may_be_bytes_a_size_or_a_share(value: str | int, tmp_path: Path) -> None:
    text = f"name: a\nmodels:\n  - {{path: a, memory_budget: {value}, slots: 2}}\nengine:\n  memory_budget: {value}\n"
    config = read(text, tmp_path)
    assert config.engine.memory_budget == config.models[0].memory_budget == value
    assert config.models[0].slots == 2


def test_a_name_is_all_that_a_file_needs(tmp_path: Path) -> None:
    assert read("name: a\n", tmp_path) == Config(name="a")
    assert problems("", tmp_path) == ["shoal.yaml:1: name is missing"]
    assert problems("# nothing\n", tmp_path) == ["shoal.yaml:1: name is missing"]


def test_a_key_with_nothing_behind_it_counts_as_not_given(tmp_path: Path) -> None:
    text = "name: a\nmodels:\n  # - path: a.gguf\nnet:\n  peers:\nhttp:\n  api_key_file:\nlog:\n"
    assert read(text, tmp_path) == Config(name="a")
    assert "did you mean 'listen'" in problems("name: a\nhttp:\n  lisen:\n", tmp_path)[0]
    assert problems("name: a\nmodels:\n  - path:\n", tmp_path) == ["shoal.yaml:3: models[0].path is missing"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nhttp:\n  lisen: x\n", "shoal.yaml:3: unknown key 'lisen' in http; did you mean 'listen'?"),
        ("nmae: a\nname: a\n", "shoal.yaml:1: unknown key 'nmae'; did you mean 'name'?"),
        ("name: a\n\nNET: {}\n", "shoal.yaml:3: unknown key 'NET'; did you mean 'net'?"),
        ("name: a\nmodels:\n  - path: a\n    nam: b\n", "shoal.yaml:4: unknown key 'nam' in models[0]; did you mean 'name'?"),
        ("name: a\nmodels:\n  - {path: a, qqq: 1}\n",
         "shoal.yaml:3: unknown key 'qqq' in models[0]; valid keys: path, name, context_tokens, slots, memory_budget"),
        ("name: a\nzzz: 1\n",
         "shoal.yaml:2: unknown key 'zzz'; valid keys: name, state_dir, seed_file, labels, net, http, models, engine, engines, timeouts, routing, lend, transfer, mqtt, audit, log"),
    ],
)  # fmt: skip
def test_b25_an_unknown_key_is_refused_with_its_line_and_the_nearest_valid_key(
    text: str, expected: str, tmp_path: Path
) -> None:
    assert problems(text, tmp_path) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: 7\n", "1: name: must be text, not 7; put it in quotes"),
        ("name: no\n", "1: name: must be text, not False; put it in quotes"),
        ("name: 2024-01-01\nlog: 5\n", "2: log: must be a mapping with the keys level, format, not 5"),
        ("name: a b\n", "1: name: must be letters, digits, '.', '_' or '-', and start with a letter or digit, not 'a b'"),
        ("name: -a\n", "1: name: must be letters, digits, '.', '_' or '-', and start with a letter or digit, not '-a'"),
        ("name: ''\n", "1: name: must not be empty"),
        (f"name: {'a' * 65}\n", "1: name: must have at most 64 characters, not 65"),
        ("name: a\nstate_dir: 5\n", "2: state_dir: must be text, not 5; put it in quotes"),
        ("name: a\nnet: {mdns: 'yes'}\n", "2: net.mdns: must be true or false, not 'yes'"),
        ("name: a\nnet: {mdns: 1}\n", "2: net.mdns: must be true or false, not 1"),
        ("name: a\nnet:\n  peers: /ip4\n", "3: net.peers: must be a list, not '/ip4'; write each item on its own line after '- '"),
        ("name: a\nnet:\n  peers:\n    - 5\n", "4: net.peers[0]: must be text, not 5; put it in quotes"),
        ("name: a\nmodels:\n  path: x\n", "2: models: must be a list; write each item on its own line after '- '"),
        ("name: a\nmodels:\n  - x\n",
         "3: models[0]: must be a mapping with the keys path, name, context_tokens, slots, memory_budget, not 'x'"),
        ("name: a\nengine:\n  memory_budget: 2G\n",
         f"3: engine.memory_budget: {MEMORY}, not '2G'"),
        ("name: a\nengine:\n  memory_budget: true\n", f"3: engine.memory_budget: {MEMORY}, not True"),
        ("name: a\nengine:\n  memory_budget: 101%\n", f"3: engine.memory_budget: {MEMORY}, not '101%'"),
        ("name: a\nengine:\n  memory_budget: 1000\n", f"3: engine.memory_budget: {MEMORY}, not 1000"),
        ("name: a\nengine:\n  slots: 65\n", "3: engine.slots: must be at most 64, not 65"),
        ("name: a\nengine:\n  threads: '4'\n", "3: engine.threads: must be a whole number, not '4'"),
        ("name: a\nengine:\n  threads: true\n", "3: engine.threads: must be a whole number, not True"),
        ("name: a\nengine:\n  threads: 1.5\n", "3: engine.threads: must be a whole number, not 1.5"),
        ("name: a\nengine:\n  context_tokens: 63\n", "3: engine.context_tokens: must be at least 64, not 63"),
        ("name: a\nengine: {context_tokens: 9999999}\n", "2: engine.context_tokens: must be at most 1048576, not 9999999"),
        ("name: a\ntimeouts: {connect: 0}\n", "2: timeouts.connect: must be more than 0, not 0"),
        ("name: a\ntimeouts: {connect: -1.5}\n", "2: timeouts.connect: must be more than 0, not -1.5"),
        ("name: a\ntimeouts: {connect: 86401}\n", "2: timeouts.connect: must be at most 86400, not 86401"),
        ("name: a\ntimeouts: {connect: .inf}\n", "2: timeouts.connect: must be a number, not inf"),
        ("name: a\ntimeouts: {connect: .nan}\n", "2: timeouts.connect: must be a number, not nan"),
        ("name: a\ntimeouts: {connect: 3s}\n", "2: timeouts.connect: must be a number, not '3s'"),
        ("name: a\nlog: {level: loud}\n", "2: log.level: must be 'debug', 'info', 'warning' or 'error', not 'loud'"),
        ("name: a\nmodels: [{path: m.gguf, name: ''}]\n", "2: models[0].name: must not be empty"),
        ("name: a\nmodels: [{name: m}]\n", "2: models[0].path is missing"),
        ("name: a\nstate_dir: ~no-such-user-here/x\n", "2: state_dir: there is no such user as in '~no-such-user-here/x'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_what_is_allowed(text: str, expected: str, tmp_path: Path) -> None:
    assert problems(text, tmp_path) == [f"shoal.yaml:{expected}"]


@pytest.mark.parametrize(
    "listen",
    ["x", "/ip4/1.2.3.4", "/ip4/1.2.3/tcp/1", "/ip4/::1/tcp/1", "/ip6/1.2.3.4/tcp/1", "/ip4/1.2.3.4/udp/1",
     "/ip4/1.2.3.4/tcp/65536", "/ip4/1.2.3.4/tcp/", "/ip4/1.2.3.4/tcp/x", "/ip4/1.2.3.4/tcp/1/ws", "/dns4/a/tcp/1",
     "ip4/1.2.3.4/tcp/1", "/ip6/fe80::1%eth0/tcp/1", f"/ip4/1.2.3.4/tcp/1/p2p/{KEY}", "/ip4/1.2.3.4/tcp/" + "1" * 5000],
)  # fmt: skip
def test_an_address_that_cannot_be_listened_on_is_refused(listen: str, tmp_path: Path) -> None:
    (found,) = problems(f"name: a\nnet:\n  listen:\n    - {listen!r}\n", tmp_path)
    assert found.startswith("shoal.yaml:4: net.listen[0]: ")
    assert "/ip4/0.0.0.0/tcp/4210" in found
    assert len(found) < 400


@pytest.mark.parametrize(
    "peer",
    ["x", "/ip4/10.0.0.7/tcp/4210", f"/ip4/10.0.0.7/tcp/0/p2p/{KEY}", f"/ip4/10.0.0/tcp/1/p2p/{KEY}",
     f"/dns4//tcp/1/p2p/{KEY}", f"/dns4/a b/tcp/1/p2p/{KEY}", f"/ip4/10.0.0.7/tcp/1/p2p/{KEY}/x",
     f"/ip4/10.0.0.7/tcp/1/p2p/{KEY[:-1]}", f"/ip4/10.0.0.7/tcp/1/p2p/{KEY} ", "/ip4/10.0.0.7/tcp/1/p2p/QmYyQ",
     f"/unix/a/tcp/1/p2p/{KEY}", f"/ip4/10.0.0.7/quic/1/p2p/{KEY}"],
)  # fmt: skip
def test_a_peer_that_cannot_be_dialled_is_refused(peer: str, tmp_path: Path) -> None:
    (found,) = problems(f"name: a\nnet:\n  peers:\n    - {peer!r}\n", tmp_path)
    assert found.startswith("shoal.yaml:4: net.peers[0]: ")
    assert "shoal id" in found


@pytest.mark.parametrize(
    "addr",
    ["x", f"/ip4/10.0.0.7/tcp/4210/p2p/{KEY}", "/ip4/0.0.0.0/tcp/4210", "/ip6/::/tcp/4210", "/ip4/10.0.0.7/tcp/0",
     "/ip4/10.0.0/tcp/1", "/dns4/127.1/tcp/1", "/dns4/a b/tcp/1", "/ip4/10.0.0.7/udp/1"],
)  # fmt: skip
def test_an_address_that_leads_nowhere_is_not_announced(addr: str, tmp_path: Path) -> None:
    (found,) = problems(f"name: a\nnet:\n  announce:\n    - {addr!r}\n", tmp_path)
    assert found.startswith("shoal.yaml:4: net.announce[0]: ")
    assert "/ip4/10.0.0.7/tcp/4210" in found


def test_what_others_are_told_may_be_a_name(tmp_path: Path) -> None:
    config = read("name: a\nnet:\n  announce: [/dns4/box.example/tcp/4210, /ip6/fd00::7/tcp/1]\n", tmp_path)
    assert config.net.announce == ("/dns4/box.example/tcp/4210", "/ip6/fd00::7/tcp/1")


@pytest.mark.parametrize("labels", ["{si te: a}", "{site: ''}", "{site: a b}", "[site]", "{site: " + "x" * 64 + "}"])
def test_a_label_that_no_document_could_hold_is_refused(labels: str, tmp_path: Path) -> None:
    (found,) = problems(f"name: a\nlabels: {labels}\n", tmp_path)
    assert found.startswith("shoal.yaml:2: labels")


@pytest.mark.parametrize(
    "listen",
    ["", "x", "8420", ":8420", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:8420", "[::1]",
     "[127.0.0.1]:1", "[[::1]]:1", "box.example:8420", "127.0.0.1:" + "1" * 5000],
)  # fmt: skip
def test_an_http_address_that_cannot_work_is_refused(listen: str, tmp_path: Path) -> None:
    (found,) = problems(f"name: a\nhttp:\n  listen: '{listen}'\n", tmp_path)
    assert found.startswith("shoal.yaml:3: http.listen: ")
    assert "127.0.0.1:8420" in found


@pytest.mark.parametrize("listen", ["127.0.0.1:8420", "127.9.9.9:0", "[::1]:8420", "localhost:65535"])
def test_b31_loopback_needs_no_api_key(listen: str, tmp_path: Path) -> None:
    assert read(f"name: a\nhttp:\n  listen: '{listen}'\n", tmp_path).http.listen == listen


@pytest.mark.parametrize("listen", ["0.0.0.0:8420", "10.0.0.7:8420", "[::]:8420", "[fe80::1]:8420"])
def test_b31_another_address_needs_an_api_key(listen: str, tmp_path: Path) -> None:
    text = f"name: a\nhttp:\n  listen: '{listen}'\n"
    (found,) = problems(text, tmp_path)
    assert found.startswith("shoal.yaml:3: http.listen: ")
    assert "api_key_file" in found
    assert read(text + "  api_key_file: keys\n", tmp_path).http.listen == listen


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    clash = "shoal.yaml:4: models[1]: models[0] is called 'small' too; rename one"
    assert problems("name: a\nmodels:\n  - path: a/Small.gguf\n  - path: b/small.gguf\n", tmp_path) == [clash]
    assert problems("name: a\nmodels:\n  - {path: a.gguf, name: SMALL}\n  - path: b/small.gguf\n", tmp_path) == [clash]
    assert len(read("name: a\nmodels:\n  - path: a.gguf\n  - {path: a.gguf, name: b}\n", tmp_path).models) == 2


def test_every_problem_is_listed_in_the_order_of_lines(tmp_path: Path) -> None:
    text = f"""\
nane: x
http:
  listen: nowhere
timeouts:
  conect: 5
  total: -1
net:
  listen:
    - nowhere
  peers: [x]
name: {"a" * 70}
"""
    found = problems(text, tmp_path)
    assert [int(line.split(":")[1]) for line in found] == [1, 3, 5, 6, 9, 10, 11]


def test_very_many_problems_are_cut_short(tmp_path: Path) -> None:
    found = problems("name: a\n" + "".join(f"unknown{n}: 1\n" for n in range(100)), tmp_path)
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == f"and {100 - MAX_PROBLEMS} more"


def test_keys_that_are_given_twice_are_refused(tmp_path: Path) -> None:
    found = problems("name: a\nnet:\n  mdns: true\n  mdns: false\nname: b\n", tmp_path)
    assert found == [
        "shoal.yaml:4: net.mdns is given twice, first on line 3",
        "shoal.yaml:5: name is given twice, first on line 1",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: [a\n", 2),
        ("name: a\n\tb: c\n", 2),
        ("name: 'a\n", 2),
        ("- a\n", 1),
        ("just words\n", 1),
        ("name: a\n---\nname: b\n", 2),
        ("name: a\n? [x]\n: y\n", 2),
        ("name: !!python/object:os.system a\n", 1),
        ("name: a\nstate_dir: !!binary aGk=\n", 2),
        ("name: a\nlog: !!set {x}\n", 2),
        ("name: a\nengine: {threads: " + "9" * 6000 + "}\n", 2),
        ("a: &x 1\nname: *x\n", 2),
        ("a: &x {b: *x}\n", 1),
        ("name: a\nlog: {<<: {level: debug}}\n", 2),
        ("name: \x01\n", 1),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_line(text: str, line: int, tmp_path: Path) -> None:
    found = problems(text, tmp_path)
    assert found[0].startswith(f"shoal.yaml:{line}: "), found
    assert len(found[0]) < 300


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shoal.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "shoal.yaml", {})


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "shoal.yaml").write_bytes(b"\xef\xbb\xbfname: a\n")
    assert load(tmp_path / "shoal.yaml", {}).name == "a"


def test_an_anchor_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert problems(bomb, tmp_path) == ["shoal.yaml:2: aliases (*a0) are not supported; write the value"]


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "name: " + "[" * 100_000 + "]" * 100_000, "{a: " * 50_000, "- " * 100_000]
)
def test_deep_nesting_is_refused_without_recursion(text: str, tmp_path: Path) -> None:
    (found,) = problems(text, tmp_path)
    assert found == f"shoal.yaml:1: nested more than {MAX_DEPTH} deep"


def test_very_many_entries_are_refused(tmp_path: Path) -> None:
    (found,) = problems("name: a\nnet:\n  peers: [" + "x," * 100_000 + "]\n", tmp_path)
    assert "more than 20000 entries" in found


def test_a_large_or_endless_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shoal.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    for path in (tmp_path / "shoal.yaml", Path("/dev/zero")):
        with pytest.raises(ConfigError, match=f"larger than {MAX_BYTES} bytes"):
            load(path, {})


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shoal init"):
        load(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, {})


def test_the_environment_overrides_a_fixed_set_of_keys(tmp_path: Path) -> None:
    env = {
        "SHOAL_NAME": "pos-7",
        "SHOAL_STATE_DIR": "/state",
        "SHOAL_HTTP_LISTEN": "127.0.0.1:1234",
        "SHOAL_LOG_LEVEL": "warning",
        "SHOAL_LOG_FORMAT": "human",
        "SHOAL_ENGINE_THREADS": "7",
    }
    config = read("net: {mdns: false}\nhttp:\nlog: {level: debug}\n", tmp_path, env)
    assert (config.name, config.state_dir, config.http.listen) == ("pos-7", Path("/state"), "127.0.0.1:1234")
    assert (config.log.level, config.log.format) == ("warning", "human")
    assert config.engine.threads is None
    assert read("name: a\n", tmp_path, {"SHOAL_NAME": ""}).name == "a"


def test_a_wrong_value_in_the_environment_names_the_variable(tmp_path: Path) -> None:
    env = {"SHOAL_LOG_LEVEL": "loud", "SHOAL_HTTP_LISTEN": "0.0.0.0:1"}
    found = problems("name: a\nlog:\n  level: info\n", tmp_path, env)
    assert len(found) == 2
    assert found[0].startswith("SHOAL_HTTP_LISTEN: http.listen: '0.0.0.0:1' can be reached")
    assert found[1].startswith("SHOAL_LOG_LEVEL: log.level: must be 'debug'")


def test_an_error_does_not_depend_on_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shoal.yaml").write_text("name: a\nx: 1\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(Path("shoal.yaml"), os.environ)
    assert caught.value.message.startswith("shoal.yaml:2: unknown key 'x'")


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=200), st.text(alphabet="name: net{}[]&*!|>'\"-?\n\t #ahttp:lis1", max_size=120)))
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    assert all(line.startswith(("f:", "and ")) for line in refusal_of(text).splitlines())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*Config.model_fields, "x"]), _JSON, max_size=4),
    st.sampled_from(["net", "http", "models", "log"]),
    st.dictionaries(st.sampled_from(["listen", "peers", "allow", "path", "name", "level"]), _JSON, max_size=3),
)
def test_any_structure_is_read_or_refused(values: dict[str, object], section: str, inner: dict[str, object]) -> None:
    text = yaml.safe_dump({**values, section: [inner] if section == "models" else inner}, allow_unicode=True)
    assert all(line.startswith(("f:", "and ")) for line in refusal_of(text).splitlines())
