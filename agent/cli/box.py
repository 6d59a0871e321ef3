"""Commands about this box's own files: init, id, run, version."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from agent.cli.output import fail, output_option, print_json

if TYPE_CHECKING:
    from agent.config import Config
    from fleet.identity.keys import Identity

DEFAULT_DIR: Final = Path("shoal")
CONFIG_NAME: Final = "shoal.yaml"
DEFAULT_CONFIG: Final = DEFAULT_DIR / CONFIG_NAME

F = TypeVar("F", bound=Callable[..., Any])

_TEMPLATE: Final = """\
# Configuration of one Shoal agent. Every key, its unit and its bounds: docs/configuration.md

# What people call this box.
name: {name}

# Identity and caches live here; keep it private (0700).
state_dir: state

net:
  # Where other boxes connect.
  listen:
    - {listen}
  # Find boxes on the LAN by mDNS. Whether they may speak to this one is decided by the fleet document alone.
  mdns: true
  # Boxes to dial besides those that the fleet document names, as `shoal id` prints them there:
  #   - /ip4/10.0.0.7/tcp/4210/p2p/12D3KooW...
  peers: []

http:
  # The OpenAI-compatible endpoint. Another address than loopback needs api_key_file.
  listen: 127.0.0.1:8420

# The models this box holds. A box without any borrows from those that have them.
models:{models}
"""


def config_option(default: Path | None, help: str) -> Callable[[F], F]:
    """The `--config FILE` option."""
    shown = default is not None
    return click.option(
        "--config",
        "path",
        metavar="FILE",
        type=click.Path(path_type=Path),
        default=default,
        show_default=shown,
        help=help,
    )


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DIR,
    show_default=True,
    help="where the configuration and the state go",
)
@click.option("--name", help="what people call this box  [default: the host name]")
@click.option(
    "--model", "models", type=click.Path(path_type=Path), multiple=True, help="a GGUF file this box holds; repeatable"
)
@click.option("--listen", default="/ip4/0.0.0.0/tcp/4210", show_default=True, help="where other boxes connect")
@click.option("--force", is_flag=True, help="overwrite the configuration; an identity is never overwritten")
@output_option
def init(folder: Path, name: str | None, models: tuple[Path, ...], listen: str, force: bool, form: str) -> None:
    """Write a configuration and make this box's identity."""
    from agent.config_file import parse
    from agent.errors import ConfigError
    from fleet.errors import IdentityError

    path = folder / CONFIG_NAME
    if path.exists() and not force:
        fail(form, "config", f"{path} exists; edit it, or overwrite it with --force")
    missing = [str(model) for model in models if not model.is_file()]
    if missing:
        fail(form, "config", f"no such model file: {', '.join(missing)}")
    listed = "".join(f"\n  - path: {_quoted(str(model.absolute()))}" for model in models) or " []"
    name = _host_name() if name is None else name
    text = _TEMPLATE.format(name=_quoted(name), listen=_quoted(listen), models=listed)
    try:
        config = parse(text, "the new configuration", folder, env={})
        folder.mkdir(parents=True, exist_ok=True)
        key = _identity(config, create=True)
        _write(path, text, overwrite=force)
    except (ConfigError, IdentityError) as error:
        fail(form, error.code, error.message)
    except OSError as error:
        fail(form, "failed", f"cannot write {path}: {error.strerror or error}")
    (address,) = _addresses(config, key)
    if form == "json":
        print_json({"config": str(path), "name": config.name, "peer_id": key.peer_id, "address": address})
        return
    click.echo(f"wrote {path} and the identity of {config.name}\n")
    click.echo(f"  this box's PeerID   {key.peer_id}\n")
    click.echo(f"  its address         {address}\n")
    click.echo("to found a fleet with this box:        shoal fleet init --name NAME")
    click.echo("to join one, with an admin's token:    shoal join TOKEN   (the admin makes it with: shoal invite)\n")
    click.echo(f"then start it with: shoal run --config {path}")


@click.command("id")
@config_option(default=None, help=f"[default: {DEFAULT_CONFIG}]")
@click.option("--dir", "folder", type=click.Path(path_type=Path), help=f"the folder that {CONFIG_NAME} is in")
@output_option
def identity(path: Path | None, folder: Path | None, form: str) -> None:
    """Print this box's PeerID, public key and addresses, as other boxes need them."""
    if path is not None and folder is not None:
        raise click.UsageError("give --config or --dir, not both")
    from agent.config_file import load
    from agent.errors import ConfigError
    from fleet.errors import IdentityError

    try:
        config = load(path or (folder or DEFAULT_DIR) / CONFIG_NAME)
        key = _identity(config, create=False)
    except (ConfigError, IdentityError) as error:
        fail(form, error.code, error.message)
    addrs = _addresses(config, key)
    if form == "json":
        print_json({"name": config.name, "peer_id": key.peer_id, "public_key": key.public_key.hex(), "addrs": addrs})
        return
    click.echo(f"name        {config.name}\npeer id     {key.peer_id}\npublic key  {key.public_key.hex()}")
    for addr in addrs:
        click.echo(f"address     {addr}")


@click.command()
@config_option(default=DEFAULT_CONFIG, help="the configuration file")
@output_option
def run(path: Path, form: str) -> None:
    """Run the agent until SIGTERM or Ctrl-C; the first one lets running jobs finish, a second one does not.

    What it does is logged to standard error; see `log` in the configuration.
    """
    from agent.config_file import load
    from agent.errors import ConfigError
    from fleet.errors import IdentityError

    try:
        config = load(path)
        key = _identity(config, create=True)
    except (ConfigError, IdentityError) as error:
        fail(form, error.code, error.message)
    # What is imported is there for good. To look for garbage among it, again and again while it grows and in every full
    # collection afterwards, is a sixth of the start; `freeze` takes it out of the collector's sight.
    gc.disable()
    from agent import log
    from agent.app import run_agent

    gc.freeze()
    gc.enable()
    log.configure(config.log.level, config.log.format)
    sys.exit(run_agent(config, key))


@click.command()
@output_option
def version(form: str) -> None:
    """Print the versions of shoal and of what it stands on."""
    import platform
    from importlib import metadata

    from agent.version import VERSION

    found: dict[str, str | None] = {"shoal": VERSION, "python": platform.python_version()}
    for package in ("libp2p", "llama-cpp-python"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    if form == "json":
        print_json(found)
        return
    absent = {"llama-cpp-python": "not installed: this box can only borrow; pip install 'shoal[engine]'"}
    for package, number in found.items():
        click.echo(f"{package:<18}{number or absent.get(package, 'not installed')}")


def _identity(config: Config, *, create: bool) -> Identity:
    from fleet.identity import keys

    return keys.load(config.seed_file or config.state_dir / "identity.seed", create=create)


def _addresses(config: Config, key: Identity) -> list[str]:
    """The configured addresses as other boxes can dial them; only a running agent knows all of its own."""
    found = []
    for addr in config.net.announce or config.net.listen:
        _, family, ip, _, port = addr.split("/")
        found.append(f"/{family}/{_OWN[ip]() if ip in _OWN else ip}/tcp/{port}/p2p/{key.peer_id}")
    return found


def _own_address(family: socket.AddressFamily, elsewhere: str, loopback: str) -> str:
    """The address this machine uses towards others; no packet is sent."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return loopback


#: What stands for "every address", and how to find one that others can dial (RFC 5737, RFC 3849).
_OWN: Final[dict[str, Callable[[], str]]] = {
    "0.0.0.0": lambda: _own_address(socket.AF_INET, "192.0.2.1", "127.0.0.1"),
    "::": lambda: _own_address(socket.AF_INET6, "2001:db8::1", "::1"),
}


def _write(path: Path, text: str, *, overwrite: bool) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with new.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            new.replace(path)
        else:
            os.link(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()


def _host_name() -> str:
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in socket.gethostname())[:64]
    return name if name and name[0].isalnum() else "box"


def _quoted(text: str) -> str:
    """A YAML scalar that reads back as exactly this text."""
    return json.dumps(text)
