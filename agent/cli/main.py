"""`shoal`: the commands by name. A command's module is imported when the command is used, so `--help` is quick."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from typing import Final

import click

from agent.cli.exits import FAILED, INTERRUPTED
from agent.cli.output import fail, wants_json

#: name -> (module, attribute, one line for `shoal --help`)
_COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "demo": ("agent.cli.demo", "demo", "Watch one box borrow another's model, on this machine."),
    "init": ("agent.cli.box", "init", "Write a configuration and make this box's identity."),
    "run": ("agent.cli.box", "run", "Run the agent."),
    "chat": ("agent.cli.chat", "chat", "Ask a question and see who answers."),
    "fleet": ("agent.cli.fleet", "fleet", "Found a fleet, and see what it is."),
    "invite": ("agent.cli.invite", "invite", "Make a token that lets a new box in; list and withdraw them."),
    "admit": ("agent.cli.admit", "admit", "Make a key a box of the fleet without an invite."),
    "join": ("agent.cli.join", "join", "Join a fleet with a token."),
    "boxes": ("agent.cli.boxes", "boxes", "List the boxes of the fleet."),
    "firewall": ("agent.cli.firewall", "firewall", "Say who may speak to the boxes, and about what."),
    "revoke": ("agent.cli.revoke", "revoke", "Shut a key out of the fleet for good."),
    "admin": ("agent.cli.admin", "admin", "Say who may change the fleet; recover a lost admin key."),
    "apply": ("agent.cli.manifests", "apply", "Make the fleet's desired state what manifests say."),
    "diff": ("agent.cli.manifests", "diff", "Show what `shoal apply` would change."),
    "get": ("agent.cli.manifests", "get", "Print desired state as manifests."),
    "delete": ("agent.cli.manifests", "delete", "Take desired state away."),
    "history": ("agent.cli.history", "history", "List what was written, by whom, and whether it counts."),
    "export": ("agent.cli.bundle", "export", "Write the fleet document to a file."),
    "import": ("agent.cli.bundle", "import_bundle", "Take in a file that `shoal export` wrote."),
    "peers": ("agent.cli.lists", "peers", "List the boxes this one knows."),
    "models": ("agent.cli.models", "models", "List, add, place, fetch, check and delete models."),
    "placements": ("agent.cli.placements", "placements", "Say where models are to be, whether they are, and why."),
    "transfers": ("agent.cli.transfers", "transfers", "List the models that move now."),
    "pipelines": ("agent.cli.pipelines", "pipelines", "List sensor pipelines; try one on recorded messages."),
    "explain": ("agent.cli.explain", "explain", "Say why a job ran where it ran."),
    "leaderboard": ("agent.cli.leaderboard", "leaderboard", "List who did how much for the other boxes."),
    "audit": ("agent.cli.audit", "audit", "List what became of every job."),
    "doctor": ("agent.cli.doctor", "doctor", "Say what is wrong with this box, and the remedy."),
    "id": ("agent.cli.box", "identity", "Print this box's PeerID and public key."),
    "version": ("agent.cli.box", "version", "Print versions."),
}


class _Lazy(click.Group):
    """A group that knows its commands' names and one-line helps without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def shoal() -> None:
    """Edge-fleet inference: boxes share the models they hold and borrow those they lack.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 unreachable, 4 denied, 5 degraded.
    """


def main() -> None:
    """Entry point of the `shoal` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A model may answer what the terminal's encoding lacks; that is no reason to stop in mid-answer.
            stream.reconfigure(errors="replace")
    try:
        shoal.main(prog_name="shoal", standalone_mode=False)
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except click.UsageError as error:
        if wants_json(sys.argv[1:]):
            fail("json", "usage", error.format_message())
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        fail("json" if wants_json(sys.argv[1:]) else "text", "failed", error.format_message())
    except BrokenPipeError:
        # Whoever read the output has gone; the interpreter's own flush at the end would complain once more.
        with contextlib.suppress(OSError):
            sys.stdout.close()
        sys.exit(FAILED)
    except OSError as error:
        # Such as a full disk under the output. What is still buffered goes with it, or the end would fail once more.
        with contextlib.suppress(OSError):
            sys.stdout.close()
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"shoal: {where}{error.strerror or error}", err=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
