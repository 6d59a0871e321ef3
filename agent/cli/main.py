"""`shoal`: the commands by name. A command's module is imported when the command is used, so `--help` is quick."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from agent.cli.exits import INTERRUPTED

#: name -> (module, attribute, one line for `shoal --help`)
_COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "demo": ("agent.cli.demo", "demo", "Watch one box borrow another's model, on this machine."),
    "init": ("agent.cli.box", "init", "Write a configuration and make this box's identity."),
    "run": ("agent.cli.box", "run", "Run the agent."),
    "chat": ("agent.cli.ask", "chat", "Ask a question and see who answers."),
    "peers": ("agent.cli.ask", "peers", "List the boxes this one knows."),
    "models": ("agent.cli.ask", "models", "List the models that can be asked for here."),
    "doctor": ("agent.cli.ask", "doctor", "Say what is wrong with this box, and the remedy."),
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
    try:
        shoal.main(standalone_mode=False)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
