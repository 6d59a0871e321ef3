"""Commands about this box's own files: init, id, run, version."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Final

import click

from agent.cli.output import fail, output_option, print_json

DEFAULT_DIR: Final = Path("shoal")
CONFIG_NAME: Final = "shoal.yaml"

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
  # Find boxes on the LAN by mDNS. Whether they may speak to this one is decided by `allow` alone.
  mdns: true
  # Boxes to dial, as `shoal id` prints them there:
  #   - /ip4/10.0.0.7/tcp/4210/p2p/12D3KooW...
  peers: []
  # The keys that may connect; every other key is refused:
  #   - key: 12D3KooW...
  #     name: jetson-1
  allow: []

http:
  # The OpenAI-compatible endpoint. Another address than loopback needs api_key_file.
  listen: 127.0.0.1:8420

# The models this box holds. A box without any borrows from those that have them.
models:{models}
"""


@click.command()
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path, file_okay=False), default=DEFAULT_DIR, show_default=True
)
@click.option("--name", help="what people call this box  [default: the host name]")
@click.option("--model", "models", type=click.Path(path_type=Path), multiple=True, help="a GGUF file this box holds")
@click.option("--listen", default="/ip4/0.0.0.0/tcp/4210", show_default=True, help="where other boxes connect")
@click.option("--force", is_flag=True, help="overwrite the configuration; an identity is never overwritten")
@output_option
def init(folder: Path, name: str | None, models: tuple[Path, ...], listen: str, force: bool, form: str) -> None:
    """Write a configuration and make this box's identity."""
    from agent.config_file import load
    from agent.errors import ConfigError
    from fleet.errors import IdentityError
    from fleet.identity import keys

    path = folder / CONFIG_NAME
    if path.exists() and not force:
        fail(form, "config", f"{path} exists; edit it, or overwrite it with --force")
    missing = [str(model) for model in models if not model.is_file()]
    if missing:
        fail(form, "config", f"no such model file: {', '.join(missing)}")
    listed = "".join(f"\n  - path: {_quoted(str(model.resolve()))}" for model in models) or " []"
    text = _TEMPLATE.format(name=_quoted(name or _host_name()), listen=_quoted(listen), models=listed)
    folder.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.exists() else None
    path.write_text(text)
    try:
        config = load(path, env={})
        identity = keys.load(config.seed_file or config.state_dir / "identity.seed")
    except (ConfigError, IdentityError) as error:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
        fail(form, error.code, error.message)
    address = f"{listen.replace('0.0.0.0', _own_address())}/p2p/{identity.peer_id}"
    if form == "json":
        print_json({"config": str(path), "name": config.name, "peer_id": identity.peer_id, "address": address})
        return
    click.echo(f"wrote {path} and the identity of {config.name}\n")
    click.echo(f"  this box's key   {identity.peer_id}\n")
    click.echo("on every box that may speak to this one, add under net:")
    click.echo(f"  allow:\n    - key: {identity.peer_id}\n      name: {config.name}")
    click.echo(f"  peers:\n    - {address}\n")
    click.echo(f"then start it with: shoal run --config {path}")


@click.command("id")
@click.option("--config", "path", type=click.Path(path_type=Path), help=f"[default: {DEFAULT_DIR / CONFIG_NAME}]")
@output_option
def identity(path: Path | None, form: str) -> None:
    """Print this box's PeerID and public key."""
    from agent.config_file import load
    from agent.errors import ConfigError
    from fleet.errors import IdentityError
    from fleet.identity import keys

    try:
        config = load(path or DEFAULT_DIR / CONFIG_NAME)
        key = keys.load(config.seed_file or config.state_dir / "identity.seed", create=False)
    except (ConfigError, IdentityError) as error:
        fail(form, error.code, error.message)
    addrs = [f"{addr.replace('0.0.0.0', _own_address())}/p2p/{key.peer_id}" for addr in config.net.listen]
    if form == "json":
        print_json({"name": config.name, "peer_id": key.peer_id, "public_key": key.public_key.hex(), "addrs": addrs})
        return
    click.echo(f"name        {config.name}\npeer id     {key.peer_id}\npublic key  {key.public_key.hex()}")
    for addr in addrs:
        click.echo(f"address     {addr}")


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=DEFAULT_DIR / CONFIG_NAME,
    show_default=True,
    help="the configuration file",
)
def run(path: Path) -> None:
    """Run the agent until SIGTERM or Ctrl-C; the first one lets running jobs finish, a second one does not."""
    from agent import log
    from agent.config_file import load
    from agent.errors import ConfigError
    from fleet.errors import IdentityError
    from fleet.identity import keys

    try:
        config = load(path)
        log.configure(config.log.level, config.log.format)
        key = keys.load(config.seed_file or config.state_dir / "identity.seed")
    except (ConfigError, IdentityError) as error:
        fail("text", error.code, error.message)
    from agent.app import run_agent

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
    for package, number in found.items():
        click.echo(f"{package:<18}{number or 'not installed (this box can only borrow)'}")


def _host_name() -> str:
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname())[:64]
    return name if name and name[0].isalnum() else "box"


def _own_address() -> str:
    """The address this machine uses towards others; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _quoted(text: str) -> str:
    """A YAML scalar that reads back as exactly this text."""
    import json

    return json.dumps(text)
