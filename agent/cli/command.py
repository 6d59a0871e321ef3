"""What the commands of a fleet share: which box they work on, how they report errors, and how they ask for consent."""

from __future__ import annotations

import fcntl
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from agent.cli.box import DEFAULT_CONFIG
from agent.cli.client import DEFAULT_URL, AgentClient, ClientError
from agent.cli.output import fail, output_option

if TYPE_CHECKING:
    from agent.cli.admin_key import AdminKey
    from agent.cli.document import DocumentAccess
    from agent.config import Config
    from fleet.identity.genesis import Genesis
    from fleet.identity.keys import Identity

DEFAULT_STATE_DIR: Final = DEFAULT_CONFIG.parent / "state"
KEYS_DIR: Final = Path("shoal-keys")
ADMIN_KEY_NAME: Final = "admin.key"
RECOVERY_KEY_NAME: Final = "recovery.key"

#: How an agent that listens on every address is asked from its own machine.
_HERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Place:
    """The box a command works on: its running agent, its disk, or whichever of the two can be had."""

    url: str | None
    api_key_file: Path | None
    state_dir: Path | None
    seed_file: Path | None = None
    listen: tuple[str, ...] = ()

    def client(self) -> AgentClient:
        """The running agent; raises ClientError where only a disk was named."""
        if self.url is None:
            raise ClientError("agent_unreachable", f"the agent of {self.state_dir} does not run")
        return AgentClient(self.url, self.api_key_file)

    def access(self) -> DocumentAccess:
        """The box's document."""
        from agent.cli.document import DocumentAccess

        return DocumentAccess(self.url, self.api_key_file, self.state_dir)

    def identity(self) -> Identity:
        """The box's own key on disk; raises IdentityError."""
        from fleet.identity import keys

        if self.seed_file is None and self.state_dir is None:
            raise ClientError("agent_unreachable", "the agent does not answer, and no state folder was named")
        return keys.load(self.seed_file or (self.state_dir or Path()) / "identity.seed", create=False)

    def facts(self) -> Mapping[str, Any] | None:
        """What the running agent says of itself; None where it does not run."""
        try:
            return self.client().get("/v1/fleet/self")
        except ClientError as error:
            if error.code != "agent_unreachable":
                raise
            return None

    def peer_id(self) -> str:
        """The box's PeerID, as its agent says or else by its disk; raises ClientError or IdentityError."""
        facts = self.facts()
        return str(facts["peer_id"]) if facts is not None and "peer_id" in facts else self.identity().peer_id


def genesis_of(place: Place) -> Genesis | None:
    """The fleet a box belongs to; None for one that belongs to none, also where it was never started yet.

    Raises ClientError and IdentityError where there is no box at all.
    """
    try:
        return place.access().read().genesis
    except ClientError as error:
        if error.code != "agent_unreachable" or place.state_dir is None or place.state_dir.is_dir():
            raise
    place.identity()
    return None


def box_command(function: F, output: Callable[[Any], Any] = output_option) -> F:
    """Gives a command the options that name a box, passes them as `place` beside `form`, and reports its errors.

    The options are --config, --url, --api-key-file, --state-dir and -o, which `output` adds.
    """

    @click.option(
        "--config",
        type=click.Path(path_type=Path),
        help=f"configuration of the box to work on  [default: {DEFAULT_CONFIG}, if there]",
    )
    @click.option("--url", envvar="SHOAL_URL", help=f"its running agent (env SHOAL_URL)  [default: {DEFAULT_URL}]")
    @click.option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        help="file with the API key; else env SHOAL_API_KEY, if the agent wants one",
    )
    @click.option(
        "--state-dir",
        type=click.Path(path_type=Path),
        envvar="SHOAL_STATE_DIR",
        help=f"its state folder, while the agent does not run (env SHOAL_STATE_DIR)  [default: {DEFAULT_STATE_DIR}]",
    )
    @output
    @functools.wraps(function)
    def command(
        config: Path | None, url: str | None, api_key_file: Path | None, state_dir: Path | None, form: str, **rest: Any
    ) -> None:
        with reported(form):
            function(place=find_place(config, url, api_key_file, state_dir), form=form, **rest)

    return cast(F, command)


@contextmanager
def reported(form: str) -> Iterator[None]:
    """Around a command: its errors are printed, and become exit codes."""
    from agent.errors import AgentError
    from fleet.errors import FleetError

    try:
        yield
    except (ClientError, FleetError, AgentError) as error:
        fail(form, error.code, error.message, error.details)


def find_place(config: Path | None, url: str | None, api_key_file: Path | None, state_dir: Path | None) -> Place:
    """Which box is meant.

    A configuration names both its agent and its disk. A URL alone means that agent and no disk: what was meant for
    another machine must never end up in this one's files. A state folder alone means its disk, unless an agent has
    it locked. Raises ConfigError for a configuration that cannot be used.
    """
    if config is None and url is None and state_dir is None and DEFAULT_CONFIG.exists():
        config = DEFAULT_CONFIG
    if config is not None:
        from agent.config_file import load

        return _configured(load(config), url, api_key_file, state_dir)
    if url is not None:
        return Place(url, api_key_file, state_dir)
    if state_dir is not None:
        return Place(DEFAULT_URL if _is_locked(state_dir) else None, api_key_file, state_dir)
    return Place(DEFAULT_URL, api_key_file, DEFAULT_STATE_DIR)


def _configured(config: Config, url: str | None, api_key_file: Path | None, state_dir: Path | None) -> Place:
    if url is None:
        host, _, port = config.http.listen.rpartition(":")
        url = f"http://{_HERE.get(host, host)}:{port}"
        if api_key_file is None and not os.environ.get("SHOAL_API_KEY"):
            # The file that lists who may ask this agent also holds a key to ask it with.
            api_key_file = config.http.api_key_file
    addrs = config.net.announce or config.net.listen
    return Place(url, api_key_file, state_dir or config.state_dir, config.seed_file, addrs)


def _is_locked(state_dir: Path) -> bool:
    try:
        with (state_dir / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def admin_key_option(function: F) -> F:
    """The `--admin-key FILE` option."""
    return click.option(
        "--admin-key",
        type=click.Path(path_type=Path),
        envvar="SHOAL_ADMIN_KEY_FILE",
        default=KEYS_DIR / ADMIN_KEY_NAME,
        show_default=True,
        help="the admin's secret key (env SHOAL_ADMIN_KEY_FILE)",
    )(function)


def load_admin_key(path: Path) -> AdminKey:
    """Read an admin's key; raises ClientError."""
    from agent.cli.admin_key import AdminKey

    return AdminKey(path)


def yes_option(function: F) -> F:
    """The `--yes` option of commands that ask before they change anything."""
    return click.option("-y", "--yes", is_flag=True, help="do it without asking")(function)


def agree(form: str, yes: bool, what: str, details: Mapping[str, Any] | None = None) -> None:
    """Show what will change and ask for consent; returns where it is given.

    Without a terminal nobody can be asked: then `--yes` is needed, and ClientError `usage` (exit 2) says so. A no is
    ClientError `declined`.
    """
    if not yes and (form == "json" or not sys.stdin.isatty()):
        raise ClientError("usage", f"{what}\nnothing was changed; to do it without being asked, add --yes", details)
    if form != "json":
        click.echo(what, err=True)
    if not yes and not click.confirm("Do it?", err=True):
        raise ClientError("declined", "nothing was changed")
