"""A fleet of three, from nothing to its end, by the playbooks as they are typed.

The tests follow one another: each finds the fleet as the one before it has left it.

till-1 has no Docker and will have no llama.cpp, the others have an engine that does not run yet and the real model. The
images come in a file.
"""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.ansible.app import App
from tests.ansible.control import BIN, ROOT, Control, Played
from tests.ansible.machine import BARE, WITH_ENGINE, Machine, build, machines
from tests.containers import engine
from tests.containers.box import MODEL, eventually
from tests.harness import model_path

pytestmark = pytest.mark.docker

REPOSITORY = {"till-1": "shoal-slim", "till-2": "shoal-agent", "till-3": "shoal-agent"}
BOXES = list(REPOSITORY)
KEY = "a-key-for-the-apps-of-this-box"
MOSQUITTO = "shoal-base/mosquitto:2"
FIRST, UPDATE, DEAD, UNSEEN = "1.0.0", "1.1.0", "1.2.0", "1.3.0"
Play = Callable[..., Played]
#: How fast a machine is that plays all the parts must not decide where a job runs, or whether it does.
PATIENT = {
    "routing": {"threshold": 0.0, "borrow_only_below": 0.0, "max_cpu": 1.0, "max_memory": 1.0},
    "timeouts": {"connect": 10.0, "first_token": 120.0, "inter_token": 60.0},
}


class Fleet:
    """The machines, and the one that rules them. `broken` is the test that has failed: those after it mean nothing."""

    def __init__(self, control: Control, boxes: dict[str, Machine]) -> None:
        self.control = control
        self.boxes = boxes
        self.broken = ""

    def images(self) -> dict[str, str]:
        """The image of each box's agent, by its id; empty where there is no agent."""
        asked = ["docker", "inspect", "--format", "{{.Image}}", "shoal-agent-1"]
        return {name: box.run(*asked, check=False) for name, box in self.boxes.items()}

    def image(self, box: str, tag: str) -> str:
        """The id of a tag on a box."""
        return self.boxes[box].run("docker", "image", "inspect", "--format", "{{.Id}}", f"{REPOSITORY[box]}:{tag}")

    def derive(self, tag: str, *lines: str) -> None:
        """Give every box another version of its image."""
        for name, box in self.boxes.items():
            box.derive(f"{REPOSITORY[name]}:{FIRST}", f"{REPOSITORY[name]}:{tag}", *lines)

    def serves(self, box: str, image: str) -> bool:
        """Whether its agent is of that image, and can be asked for the model."""
        asked = ["docker", "exec", "shoal-agent-1", "shoal", "models", "-o", "json"]
        return self.images()[box] == image and MODEL in self.boxes[box].run(*asked, check=False)

    def admitted(self, witness: str) -> set[str]:
        """The PeerIDs that a box lets in."""
        known = self.boxes[witness].shoal("boxes")["boxes"]
        return {str(box["peer_id"]) for box in known if box["admitted"]}


@pytest.fixture(scope="module")
def whole_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    engine.sweep_dead()
    build(BARE)
    build(WITH_ENGINE, "docker.io")
    control = Control(tmp_path_factory.mktemp("control"))
    archive = control.folder / "images.tar"
    # docker/build makes this one where the other cannot be pulled.
    mosquitto = MOSQUITTO
    if not engine.docker("image", "inspect", "--format", "{{.Id}}", MOSQUITTO, check=False):
        mosquitto = "eclipse-mosquitto:2"
        engine.docker("pull", "--quiet", mosquitto)
    shipped = {f"shoal-slim:{FIRST}": engine.SLIM, f"shoal-agent:{FIRST}": engine.AGENT}
    for tag, image in shipped.items():
        engine.docker("tag", image, tag)
    try:
        engine.docker("save", "--output", str(archive), *shipped, mosquitto)
    finally:
        engine.docker("rmi", *shipped)
    try:
        with machines({"till-1": BARE, "till-2": WITH_ENGINE, "till-3": WITH_ENGINE}, control.public_key) as made:
            common = {
                "shoal_image": "shoal-slim",
                "shoal_version": FIRST,
                "shoal_mosquitto_image": mosquitto,
                "shoal_image_archive": str(archive),
                "shoal_docker": "distribution",
                "shoal_memory": "512m",
                "shoal_secrets": {"api-keys": f"{KEY}\n"},
                "shoal_config": PATIENT,
            }
            holds = {
                "shoal_image": "shoal-agent",
                "shoal_memory": "1g",
                "shoal_models_dir": "/srv/models",
                "shoal_models": [{"path": f"/models/{model_path().name}", "name": MODEL}],
            }
            for name in ("till-2", "till-3"):
                made[name].run("mkdir", "-p", "/srv/models")
                engine.docker("cp", str(model_path()), f"{made[name].container}:/srv/models/")
            own = {"till-2": {**holds, "shoal_labels": {"site": "berlin"}}, "till-3": holds}
            control.inventory(made.values(), common, own)
            yield Fleet(control, made)
    finally:
        engine.sweep(f"{engine.RUN_LABEL}={engine.RUN}")


@pytest.fixture
def fleet(whole_fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    if whole_fleet.broken:
        pytest.fail(f"{whole_fleet.broken} has failed, and this one begins where that ends", pytrace=False)
    whole_fleet.broken = request.node.name
    failed = request.session.testsfailed
    yield whole_fleet
    if request.session.testsfailed == failed:
        whole_fleet.broken = ""


@pytest.fixture
def play(fleet: Fleet, times: list[tuple[str, float]]) -> Play:
    """`play(WHAT, PLAYBOOK, ARGUMENTS..., VARIABLES...)`: play, and note the time."""

    def played(what: str, playbook: str, *arguments: str, **variables: Any) -> Played:
        done = fleet.control.play(playbook, *arguments, **variables)
        times.append((what, done.seconds))
        return done

    return played


def test_the_playbooks_are_well_written() -> None:
    for command in (["ansible-playbook", "--syntax-check", "site.yml", "remove.yml"], ["ansible-lint", "--offline"]):
        done = subprocess.run(
            [BIN / command[0], *command[1:]], cwd=ROOT / "ansible", capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_fleet_it_says_how_to_found_one(fleet: Fleet, play: Play) -> None:
    refused = play("a rollout without a fleet, refused", "site.yml", "--tags", "enrol", "--check")
    assert refused.rc != 0
    assert "shoal fleet init --name NAME" in refused.text


def test_a_wrong_variable_is_refused_before_anything_is_done(fleet: Fleet, play: Play) -> None:
    wrong = play("a wrong variable, refused", "site.yml", shoal_pull="sometimes", shoal_p2p_port="near")
    assert wrong.rc != 0
    assert "value of shoal_pull must be one of: missing, always, never" in wrong.text
    assert "shoal_p2p_port" in wrong.text
    unknown = fleet.control.play("site.yml", shoal_verison="1.1.0")
    assert "no such variable: shoal_verison" in unknown.text
    for one in (wrong, unknown):
        assert one.failed == set(BOXES)
        assert set(one.changed.values()) == {0}


def test_check_mode_shows_what_a_rollout_would_do_to_fresh_machines(fleet: Fleet, play: Play) -> None:
    fleet.control.found("shops")
    done = play("--check --diff, fresh machines", "site.yml", "--check", "--diff").good()
    assert "+SHOAL_NAME=till-2" in done.text
    assert KEY not in done.text
    for box in fleet.boxes.values():
        assert box.run("ls", "-d", "/opt/shoal", "/run/docker.sock", check=False) == ""


def test_a_first_rollout_makes_a_fleet_of_three(fleet: Fleet, play: Play) -> None:
    play("first rollout, Docker included", "site.yml").good()
    keys = {fleet.control.peer_id(box) for box in BOXES}
    assert len(keys) == 3
    for box in BOXES:
        assert fleet.boxes[box].running() == {"shoal-agent-1", "shoal-mosquitto-1"}
        assert keys <= fleet.admitted(box)
    known = {one["name"]: one for one in fleet.boxes["till-1"].shoal("boxes")["boxes"]}
    assert known["till-2"]["labels"] == {"site": "berlin"}
    secret = fleet.boxes["till-3"].run("stat", "--format", "%a %u", "/opt/shoal/current/secrets/api-keys")
    assert secret == f"400 {engine.UID}"
    asked = ["docker", "exec", "shoal-agent-1", "cat", "/run/secrets/api-keys"]
    assert fleet.boxes["till-3"].run(*asked) == KEY


def test_a_second_run_changes_nothing(fleet: Fleet, play: Play) -> None:
    done = play("second run, 0 changed", "site.yml").good()
    assert done.changed == dict.fromkeys(BOXES, 0), done.text


def test_images_can_be_fetched_ahead(fleet: Fleet, play: Play) -> None:
    done = play("images ahead, 0 changed", "site.yml", "--tags", "images").good()
    assert done.changed == dict.fromkeys(BOXES, 0), done.text


def test_check_mode_has_nothing_to_show_then(fleet: Fleet, play: Play) -> None:
    done = play("--check --diff, 0 changed", "site.yml", "--check", "--diff").good()
    assert done.changed == dict.fromkeys(BOXES, 0), done.text
    assert "+++" not in done.text


def test_an_update_goes_through_in_waves_and_no_request_fails(fleet: Fleet, play: Play) -> None:
    fleet.derive(UPDATE, 'LABEL of="the update"')
    new = {box: fleet.image(box, UPDATE) for box in BOXES}
    with ExitStack() as apps, ThreadPoolExecutor(1) as pool:

        def ask_at(box: str) -> App:
            app = App(fleet.boxes[box], MODEL, KEY)
            apps.callback(app.kill)
            return app

        # An app goes down with its own box; what it asks must not fail for another's. So one asks at the box that comes
        # last while the others are changed, and one at the box that came first for the rest of the time.
        early = ask_at("till-3")
        playing: Future[Played] = pool.submit(
            play, "update, one box after another, under load", "site.yml", shoal_version=UPDATE
        )
        eventually(lambda: playing.done() or fleet.serves("till-1", new["till-1"]), "till-1 is updated")
        late = ask_at("till-1")
        eventually(lambda: playing.done() or fleet.images()["till-2"] == new["till-2"], "till-2 is updated")
        answers = early.stop()
        done = playing.result().good()
        borrowed = late.stop()
    assert fleet.images() == new
    assert done.text.count("PLAY [Roll out in waves]") == 3
    assert "msg: seen by till-1" in done.text
    assert [one for one in (*answers, *borrowed) if "error" in one] == []
    assert {one["by"] for one in borrowed} == {"till-2", "till-3"}
    assert answers
    print(f"{len(answers)} requests at till-3 and {len(borrowed)} at till-1, none failed")


def test_a_bad_update_ends_at_its_canary_which_goes_back(fleet: Fleet, play: Play) -> None:
    before = fleet.images()
    fleet.derive(DEAD, 'CMD ["false"]')
    done = play("an update whose agent dies, rolled back", "site.yml", shoal_version=DEAD)
    assert done.rc != 0
    assert done.failed == {"till-1"}
    assert f"shoal-slim:{DEAD} did not become well on till-1: rolled back to shoal-slim:{UPDATE}" in done.text
    assert "which is healthy" in done.text
    assert fleet.images() == before
    for box in BOXES[1:]:
        assert done.changed[box] == 0


def test_a_box_that_only_thinks_it_is_well_goes_back_too(fleet: Fleet, play: Play) -> None:
    before = fleet.images()
    # Its own /readyz says 200; the others do not know this key.
    fleet.derive(UNSEEN, f"ENV SHOAL_IDENTITY_SEED={'01' * 32}")
    done = play(
        "an update that the fleet does not see, rolled back", "site.yml", shoal_version=UNSEEN, shoal_gate_timeout=12
    )
    assert done.rc != 0
    assert done.failed == {"till-1"}
    assert "till-1 says that it is well, but within 12 s till-2, till-3 did not see it" in done.text
    assert fleet.images() == before


def test_a_backup_comes_to_the_control_machine(fleet: Fleet, play: Play) -> None:
    # Of the image that the box has: the inventory still names the version before it.
    play("backup of three boxes", "site.yml", "--tags", "backup").good()
    for box in BOXES:
        backup = fleet.control.fleet / "backup" / f"{box}.tar"
        assert stat.S_IMODE(backup.stat().st_mode) == 0o600
        listed = subprocess.run(["tar", "-tf", backup], capture_output=True, text=True, check=True).stdout.split()
        assert "identity.seed" in listed
        assert "fleet/genesis.cbor" in listed
        assert fleet.boxes[box].run("ls", "/opt/shoal").split() == ["bin", "current", "last-good"]


def test_a_box_that_lost_its_disk_is_the_same_again_by_its_backup(fleet: Fleet, play: Play) -> None:
    before = fleet.control.peer_id("till-2")
    project = ["docker", "compose", "--project-directory", "/opt/shoal/current"]
    fleet.boxes["till-2"].run("sh", "-c", f"cd /opt/shoal/current && {' '.join(project)} down --volumes")
    play("one box again, by its backup", "site.yml", "-l", "till-2", shoal_version=UPDATE, shoal_restore=True).good()
    assert fleet.control.peer_id("till-2") == before
    assert fleet.boxes["till-2"].shoal("boxes")["boxes"]
    assert before in fleet.admitted("till-1")


def test_removal_shuts_the_box_out_and_leaves_nothing(fleet: Fleet, play: Play) -> None:
    refused = fleet.control.play("remove.yml")
    assert "name the boxes with -l" in refused.text
    gone = fleet.control.peer_id("till-3")
    play("removal of a box", "remove.yml", "-l", "till-3").good()
    for witness in ("till-1", "till-2"):
        assert gone not in fleet.admitted(witness)
        assert "revoked" in json.dumps(fleet.boxes[witness].shoal("firewall", "explain", gone))
    box = fleet.boxes["till-3"]
    assert box.run("docker", "ps", "--all", "--quiet") == ""
    assert box.run("docker", "volume", "ls", "--quiet") == ""
    assert box.run("docker", "network", "ls", "--quiet", "--filter", "name=shoal") == ""
    assert box.run("docker", "image", "ls", "--quiet") == ""
    assert box.run("ls", "-d", "/opt/shoal", check=False) == ""


def test_a_first_installation_that_fails_is_stopped_and_says_why(fleet: Fleet, play: Play) -> None:
    before = fleet.images()
    done = play(
        "a first installation that fails, stopped",
        "site.yml",
        *("-l", "till-3"),
        shoal_enrol=False,
        shoal_config={"net": {"pears": []}},
    )
    assert done.failed == {"till-3"}
    assert "nothing was good there before: it was stopped" in done.text
    assert "unknown key 'pears' in net" in done.text
    assert fleet.boxes["till-3"].running() == set()
    assert fleet.boxes["till-3"].run("ls", "/opt/shoal") == "current"
    after = fleet.images()
    assert (after["till-1"], after["till-2"]) == (before["till-1"], before["till-2"])


def test_a_box_comes_back_with_a_token_of_an_invite(fleet: Fleet, play: Play) -> None:
    # The same key as in the installation that failed: what is right now goes on where that ended.
    control = fleet.control
    before = control.peer_id("till-3")
    seed = json.loads((control.fleet / "boxes" / "till-1.json").read_text())
    token = control.folder / "till-3.token"
    control.shoal(
        *("invite", "--ttl", "1h", "--file", str(token), "--addr", f"{seed['addrs'][0]}/p2p/{seed['peer_id']}"),
        *("--state-dir", str(control.fleet / "state")),
    )
    done = play(
        "one box again, by an invite",
        "site.yml",
        *("-l", "till-3"),
        shoal_enrol=False,
        shoal_join_token=token.read_text().strip(),
    ).good()
    assert token.read_text().strip() not in done.text
    assert control.peer_id("till-3") == before
    assert before in fleet.admitted("till-2")
