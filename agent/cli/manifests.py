"""`shoal apply`, `diff`, `get`, `delete`: desired state of the fleet as YAML manifests."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agent.cli.client import ClientError
from agent.cli.command import Place, admin_key_option, agree, box_command, load_admin_key, yes_option
from agent.cli.output import print_json, printable, styled

if TYPE_CHECKING:
    from agent.cli.document import Document
    from agent.cli.naming import Names
    from agent.manifests.plan import Step
    from agent.manifests.read import Manifest
    from fleet.document.op import Op
    from fleet.document.settings import Setting

_MAX_FILES: Final = 1000
_MAX_FILE: Final = 1024 * 1024
_STANDARD_INPUT: Final = "-"
_SIGNS: Final = {"create": "+", "change": "~", "settle": "!", "delete": "-", "same": "="}

_files_option = click.option(
    "-f",
    "--file",
    "sources",
    type=click.Path(path_type=Path, allow_dash=True),
    multiple=True,
    required=True,
    help="a YAML file, or a folder with *.yaml and *.yml below it; - for standard input; repeatable",
)
_prune_option = click.option(
    "--prune",
    type=click.Choice(["no", "yes"]),
    default="no",
    show_default=True,
    help="delete what stands in the fleet and in none of the manifests; policies only by `shoal delete`",
)


@click.command()
@_files_option
@_prune_option
@click.option("--dry-run", is_flag=True, help="check and show, and write nothing")
@admin_key_option
@yes_option
@box_command
def apply(
    place: Place, form: str, sources: tuple[Path, ...], prune: str, dry_run: bool, admin_key: Path, yes: bool
) -> None:
    """Make the fleet's desired state what the manifests say; only what differs is written.

    Asks first where something is deleted, where admins contradict one another about a value, and where a policy
    changes what boxes may do.
    """
    from agent.manifests.plan import plan

    manifests = _read(sources)
    access = place.access()
    document = access.read(facts=True)
    steps = plan(document.view.settings, manifests, prune=prune == "yes")
    changing = [step for step in steps if step.action != "same"]
    if dry_run or not changing:
        _print_plan(form, steps, [], document, dry_run=dry_run)
        return
    admin = load_admin_key(admin_key)
    ops = admin.sign(document, _drafts(document, changing))
    risks = _risks(changing, document, ops)
    text = "\n".join(line for step in changing for line in _lines(step, document))
    if risks:
        facts = {"steps": [_facts(step, document) for step in steps], "risks": risks}
        agree(form, yes, "\n".join([text, *risks]), facts)
    elif form != "json":
        click.echo(text)
    admin.hand_over(access, document, ops)
    if form == "json":
        _print_plan(form, steps, ops, document, dry_run=False)
    else:
        click.echo(f"{len(changing)} written, {len(steps) - len(changing)} unchanged")


@click.command()
@_files_option
@_prune_option
@box_command
def diff(place: Place, form: str, sources: tuple[Path, ...], prune: str) -> None:
    """Show what `shoal apply` would change. Exit code 0 whether or not there is something."""
    from agent.manifests.plan import plan

    manifests = _read(sources)
    document = place.access().read(facts=True)
    steps = plan(document.view.settings, manifests, prune=prune == "yes")
    _print_plan(form, steps, [], document, dry_run=True)


@click.command()
@click.argument("what", metavar="[PATH|KIND]", required=False)
@box_command
def get(place: Place, form: str, what: str | None) -> None:
    """Print desired state as manifests that `shoal apply` reads: all of it, one kind, or one path."""
    from agent.cli.naming import Names
    from agent.manifests.kinds import KINDS
    from agent.manifests.plan import is_set

    document = place.access().read(facts=True)
    settings = document.view.settings
    if what is None:
        chosen = {path: held for path, held in settings.items() if is_set(path, held)}
    elif what.capitalize() in KINDS:
        prefix = KINDS[what.capitalize()][0] + "/"
        chosen = {path: held for path, held in settings.items() if path.startswith(prefix) and is_set(path, held)}
    else:
        path = _path(what)
        held = settings.get(path)
        if held is None or (held.value is None and not held.rivals):
            raise _no_such(what, document)
        chosen = {path: held}
    names = Names(document.view)
    if form == "json":
        print_json({"settings": [_setting_facts(path, held, names) for path, held in chosen.items()]})
        return
    for path, held in chosen.items():
        click.echo(_yaml(path, held, names), nl=False)
    if not chosen:
        click.echo("nothing is set; see: shoal apply", err=True)


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@admin_key_option
@yes_option
@box_command
def delete(place: Place, form: str, paths: tuple[str, ...], admin_key: Path, yes: bool) -> None:
    """Take desired state away: PATH is model/NAME, place/NAME, policy/NAME, pipe/NAME or ver/NAME."""
    from agent.manifests.plan import delete as deletion

    access = place.access()
    document = access.read(facts=True)
    steps = []
    for text in dict.fromkeys(paths):
        path = _path(text)
        held = document.view.settings.get(path)
        if path.startswith("invite/"):
            raise ClientError("usage", f"an invite is taken back with: shoal invite withdraw {path[7:]}")
        if held is None or (held.value is None and not held.rivals):
            raise _no_such(text, document)
        steps.append(deletion(path, held))
    admin = load_admin_key(admin_key)
    ops = admin.sign(document, _drafts(document, steps))
    facts = [_facts(step, document) for step in steps]
    lines = [line for step in steps for line in _lines(step, document)] + _risks(steps, document, ops)
    agree(form, yes, "\n".join(lines), {"steps": facts})
    admin.hand_over(access, document, ops)
    if form == "json":
        print_json({"steps": facts, "ops": [op.id.hex() for op in ops]})


def _risks(steps: Sequence[Step], document: Document, ops: Sequence[Op]) -> list[str]:
    """What a person should agree to first: deletions, values in conflict, and keys that would stand differently."""
    from agent.cli.effect import effects, with_ops

    contested = [step.path for step in steps if step.in_conflict]
    deleted = [step.path for step in steps if step.action == "delete"]
    risks = [f"admins contradict one another about: {', '.join(contested)}"] if contested else []
    risks += [f"this deletes: {', '.join(deleted)}"] if deleted else []
    moved = [one for one in effects(document.view, with_ops(document, ops)) if one.about == "box"]
    return risks + [f"who may do what changes:{one.text()[1:]}" for one in moved]


def _drafts(document: Document, steps: Sequence[Step]) -> list[Any]:
    from agent.cli.effect import superseding

    return [draft for step in steps for draft in superseding(document.view, "cfg", step.path, step.after)]


def _read(sources: Sequence[Path]) -> list[Manifest]:
    """The manifests of files and folders; raises ManifestError, and ClientError for what cannot be read."""
    from agent.manifests.read import ManifestError, read_manifests
    from agent.yaml_text import MAX_PROBLEMS

    texts = [(str(path), manifest_text(path)) for source in sources for path in _files(source)]
    if not texts:
        raise ClientError("manifest", f"there is no *.yaml or *.yml in {', '.join(map(str, sources))}")
    found = read_manifests(texts)
    pipelines = [one for one in found if one.kind == "Pipeline"]
    if pipelines:
        from agent.mqtt.pipeline_checks import mistakes_in

        # Each box would find that it cannot run it, and say so where nobody looks.
        mistakes = [mistake for one in pipelines for mistake in mistakes_in(one)]
        if mistakes:
            raise ManifestError("\n".join(mistakes[:MAX_PROBLEMS]), details={"mistakes": mistakes})
    if not found:
        raise ClientError("manifest", f"there is no manifest in {', '.join(source for source, _ in texts[:5])}")
    return found


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    files = sorted(path for path in source.rglob("*") if path.suffix in (".yaml", ".yml") and path.is_file())
    if len(files) > _MAX_FILES:
        raise ClientError("manifest", f"{source} has more than {_MAX_FILES} YAML files; this is no folder of manifests")
    return files


def manifest_text(path: Path) -> str:
    """The text of a file of manifests, or of standard input for `-`; raises ClientError."""
    try:
        if str(path) == _STANDARD_INPUT:
            data = sys.stdin.buffer.read(_MAX_FILE + 1)
        else:
            with path.open("rb") as file:
                data = file.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise ClientError("manifest", f"{path} is larger than {_MAX_FILE} bytes; this is no manifest")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ClientError("manifest", f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ClientError("manifest", f"{path} is not UTF-8 text") from None


def _path(text: str) -> str:
    """A path of the document; `Model/NAME` and `placement/NAME` mean what the kinds do."""
    from agent.manifests.kinds import KINDS

    first, slash, rest = text.partition("/")
    kind = first.capitalize()
    return f"{KINDS[kind][0]}/{rest}" if slash and kind in KINDS else text


def _no_such(text: str, document: Document) -> ClientError:
    from agent.manifests.plan import is_set

    known = [path for path, held in document.view.settings.items() if is_set(path, held)]
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see: shoal get"
    return ClientError("usage", f"nothing is set at {text!r}; {hint}")


def _print_plan(form: str, steps: Sequence[Step], ops: Sequence[Op], document: Document, *, dry_run: bool) -> None:
    changing = [step for step in steps if step.action != "same"]
    if form == "json":
        facts = [_facts(step, document) for step in steps]
        print_json(
            {"dry_run": dry_run, "changes": len(changing), "steps": facts, "ops": [op.id.hex() for op in ops]},
        )
        return
    for step in changing:
        for line in _lines(step, document):
            click.echo(_coloured(line))
    same = len(steps) - len(changing)
    click.echo(f"{len(changing)} would change, {same} unchanged" if changing else f"nothing to do: {same} unchanged")


def _coloured(line: str) -> str:
    colour = {"+": "green", "-": "red", "!": "yellow", "~": "cyan"}.get(line.strip()[:1])
    return styled(line, fg=colour) if colour else line


def _lines(step: Step, document: Document) -> list[str]:
    """What happens at one path, and for values in conflict each of them with who wrote it."""
    from agent.cli.naming import Names

    lines = [f"{_SIGNS[step.action]} {step.action} {step.path}"]
    before, after = _dump(step.before).splitlines(), _dump(step.after).splitlines()
    difference = list(difflib.unified_diff(before, after, lineterm="", n=1000))[3:]
    lines += [f"    {printable(line)}" for line in difference]
    if step.in_conflict and step.held is not None:
        names = Names(document.view)
        for op in (step.held.op, *step.held.rivals):
            which = "stands" if op is step.held.op else "lost"
            lines.append(f"  ! {which}, by {printable(names.of(op.author))}: {_one_line(op)}")
    return lines


def _one_line(op: Op) -> str:
    from agent.cli.verdict import plain_value
    from fleet.document.plain_json import text_of

    value = plain_value(op)
    return "deleted" if value is None else text_of(value)


def _dump(value: object) -> str:
    from agent.manifests.text import yaml_of

    return "" if value is None else yaml_of(value)


def _facts(step: Step, document: Document) -> dict[str, Any]:
    from agent.cli.naming import Names
    from agent.manifests.text import plain

    rivals = _rivals(step.held, Names(document.view)) if step.held is not None else []
    return {
        "path": step.path,
        "action": step.action,
        "before": plain(step.before),
        "after": plain(step.after),
        "conflicts_with": rivals,
    }


def _setting_facts(path: str, held: Setting, names: Names) -> dict[str, Any]:
    from agent.cli.history import iso_time
    from agent.manifests.kinds import kind_of
    from agent.manifests.text import plain

    return {
        "path": path,
        "kind": kind_of(path),
        "name": path.partition("/")[2],
        "spec": plain(held.value),
        "by": names.of(held.op.author),
        "time": iso_time(held.op.hlc),
        "op": held.op.id.hex(),
        "rivals": _rivals(held, names),
    }


def _rivals(held: Setting, names: Names) -> list[dict[str, Any]]:
    from agent.cli.verdict import plain_value
    from agent.manifests.text import plain

    return [{"spec": plain(plain_value(op)), "by": names.of(op.author), "op": op.id.hex()} for op in held.rivals]


def _yaml(path: str, held: Setting, names: Names) -> str:
    """One setting as a manifest; a value that lost to it stands above as a comment."""
    from agent.cli.history import iso_time
    from agent.manifests.kinds import kind_of
    from agent.manifests.text import yaml_of

    comment = f"# {path}, by {names.of(held.op.author)}, {iso_time(held.op.hlc)[:19]}Z\n"
    for op in held.rivals:
        comment += f"# in conflict with what {names.of(op.author)} wrote: {_one_line(op)}\n"
    kind, name = kind_of(path), path.partition("/")[2]
    whole = {"kind": kind, "name": name, "spec": held.value} if kind else {path: held.value}
    return f"---\n{printable(comment, keep_lines=True)}{yaml_of(whole, sort_keys=False)}"
