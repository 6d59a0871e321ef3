"""Where a box's key comes from, who may read it, and the PeerID that follows from it."""

from __future__ import annotations

import os
import secrets
import shlex
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fleet.errors import IdentityError
from fleet.identity import keys
from fleet.identity.keys import Identity, load, peer_id_from_public_key, public_key_from_peer_id, verify

SEED = bytes(range(32))
OTHER = bytes(range(1, 33))


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_the_peer_id_is_the_one_libp2p_derives() -> None:
    ed25519 = pytest.importorskip("libp2p.crypto.ed25519")
    peer = pytest.importorskip("libp2p.peer.id")
    for seed in (SEED, OTHER, secrets.token_bytes(32)):
        pair = ed25519.create_new_key_pair(seed)
        ours = Identity.from_seed(seed)
        assert ours.peer_id == peer.ID.from_pubkey(pair.public_key).to_base58()
        assert ours.public_key == pair.public_key.to_bytes()
        message = b"both sides sign alike"
        assert pair.private_key.sign(message) == ours.sign(message)


def test_a_peer_id_and_its_public_key_lead_to_each_other() -> None:
    for seed in (SEED, OTHER, b"\0" * 32, b"\xff" * 32):
        box = Identity.from_seed(seed)
        assert public_key_from_peer_id(box.peer_id) == box.public_key
        assert peer_id_from_public_key(box.public_key) == box.peer_id
        assert box.peer_id.startswith("12D3KooW")


VALID = Identity.from_seed(SEED).peer_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "12D3KooW",
        VALID[:-1],
        VALID + "1",
        VALID + " ",
        VALID + "\n",
        " " + VALID,
        "1" + VALID,
        VALID.replace("K", "0", 1),
        VALID[:-1] + "\u0661",
        VALID.lower(),
        "Qm" + "a" * 44,
        "z" * 52,
        "1" * 10_000,
    ],
)
def test_what_is_not_exactly_a_peer_id_is_refused(text: str) -> None:
    with pytest.raises(IdentityError):
        public_key_from_peer_id(text)


def test_most_typing_mistakes_in_a_peer_id_are_found() -> None:
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    missed, tried = 0, 0
    for place in range(8, len(VALID)):
        for letter in (alphabet[(alphabet.index(VALID[place]) + step) % 58] for step in (1, 17)):
            tried += 1
            try:
                public_key_from_peer_id(VALID[:place] + letter + VALID[place + 1 :])
                missed += 1
            except IdentityError:
                pass
    assert missed <= tried // 4


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_public_key_or_seed_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(IdentityError):
        peer_id_from_public_key(bytes(length))
    with pytest.raises(IdentityError):
        Identity.from_seed(bytes(length))


def test_b26_only_the_private_key_signs() -> None:
    box, stranger = Identity.from_seed(SEED), Identity.from_seed(OTHER)
    signature = box.sign(b"message")
    assert len(signature) == 64
    assert verify(box.public_key, b"message", signature)
    assert not verify(box.public_key, b"another message", signature)
    assert not verify(stranger.public_key, b"message", signature)
    assert not verify(box.public_key, b"message", signature[:-1] + bytes([signature[-1] ^ 1]))


@pytest.mark.parametrize(("key", "signature"), [(b"", b""), (b"k" * 31, b"s" * 64), (b"k" * 32, b"s" * 63)])
def test_malformed_keys_and_signatures_verify_as_false(key: bytes, signature: bytes) -> None:
    assert not verify(key, b"message", signature)


def test_the_seed_is_never_shown() -> None:
    box = Identity.from_seed(SEED)
    for text in (repr(box), str(box), f"{box}"):
        assert SEED.hex() not in text
        assert repr(SEED) not in text
        assert box.peer_id in text


def test_b29_a_new_seed_is_made_for_the_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        made = load(tmp_path / "state" / "identity.seed", env={})
    finally:
        os.umask(old)
    seed_file = tmp_path / "state" / "identity.seed"
    assert stat.S_IMODE(seed_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(seed_file.parent.stat().st_mode) == 0o700
    assert [path.name for path in seed_file.parent.iterdir()] == ["identity.seed"]
    assert seed_file.read_text().strip() == made.seed.hex()


def test_b15_the_identity_is_the_same_after_a_restart(tmp_path: Path) -> None:
    assert load(tmp_path / "identity.seed", env={}) == load(tmp_path / "identity.seed", env={})
    assert load(tmp_path / "a.seed", env={}) != load(tmp_path / "b.seed", env={})


def test_processes_that_make_the_same_identity_at_once_agree(tmp_path: Path) -> None:
    seed_file = tmp_path / "state" / "identity.seed"
    found: list[str] = []
    barrier = threading.Barrier(8)

    def make() -> None:
        barrier.wait(30)
        found.append(load(seed_file, env={}).peer_id)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in seed_file.parent.iterdir()] == ["identity.seed"]


def test_without_leave_to_create_a_missing_identity_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="shoal init"):
        load(tmp_path / "identity.seed", env={}, create=False)
    assert not list(tmp_path.iterdir())


def test_an_identity_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match=r"cannot make or reach the identity .*file/identity.seed: File exists"):
        load(tmp_path / "file" / "identity.seed", env={})


def test_the_environment_wins_over_files_and_the_seed_over_the_file_of_the_seed(tmp_path: Path) -> None:
    on_disk = write(tmp_path / "identity.seed", b"\1" * 32)
    secret = write(tmp_path / "secret", OTHER.hex().encode())
    by_file = {keys.SEED_FILE_ENV: str(secret)}
    assert load(on_disk, env={}).seed == b"\1" * 32
    assert load(on_disk, env=by_file).seed == OTHER
    assert load(on_disk, env={**by_file, keys.SEED_ENV: SEED.hex()}).seed == SEED
    assert load(on_disk, env={keys.SEED_ENV: "", keys.SEED_FILE_ENV: ""}).seed == b"\1" * 32
    assert load(tmp_path / "none" / "identity.seed", env={keys.SEED_ENV: SEED.hex()}).seed == SEED
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "data", [SEED, SEED.hex().encode(), SEED.hex().upper().encode() + b"\n", b" " + SEED.hex().encode()]
)
def test_a_seed_file_is_hex_or_raw(tmp_path: Path, data: bytes) -> None:
    assert load(write(tmp_path / "seed", data), env={}).seed == SEED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        SEED[:31],
        SEED + b"\n",
        SEED.hex().encode()[:32],
        SEED.hex().encode()[:-1],
        SEED.hex().encode() + b"00",
        SEED.hex(" ").encode(),
        SEED.hex(" ").encode()[:64],
        b"g" * 64,
        b"\xff" * 64,
        b"0" * 4096,
    ],
)
def test_a_seed_that_is_torn_or_malformed_is_refused_and_kept(tmp_path: Path, data: bytes) -> None:
    seed_file = write(tmp_path / "seed", data)
    with pytest.raises(IdentityError, match="64 hex digits") as caught:
        load(seed_file, env={})
    assert seed_file.read_bytes() == data
    if len(data.strip()) > 8:
        assert data.strip().decode("latin-1") not in caught.value.message


@pytest.mark.parametrize("text", ["0" * 63, "g" * 64, "0 " * 32, SEED.hex() + "00"])
def test_a_malformed_seed_in_the_environment_is_refused_without_being_shown(text: str, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=keys.SEED_ENV) as caught:
        load(tmp_path / "seed", env={keys.SEED_ENV: text})
    assert text not in caught.value.message


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o660, 0o666, 0o610, 0o777])
def test_b29_a_seed_that_others_can_reach_is_refused_with_the_command_to_run(tmp_path: Path, mode: int) -> None:
    seed_file = write(tmp_path / "my box" / "identity.seed", SEED, mode)
    with pytest.raises(IdentityError) as caught:
        load(seed_file, env={})
    command = caught.value.message.partition("run: ")[2]
    assert shlex.split(command) == ["chmod", "600", str(seed_file)]
    subprocess.run(shlex.split(command), check=True, timeout=30)
    assert load(seed_file, env={}).seed == SEED


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_b29_a_seed_for_its_owner_alone_is_accepted(tmp_path: Path, mode: int) -> None:
    assert load(write(tmp_path / "seed", SEED, mode), env={}).seed == SEED


def test_secrets_that_a_container_runtime_mounts_may_be_read_by_others_but_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_SECRETS_DIR", tmp_path / "run" / "secrets")
    secret = write(tmp_path / "run" / "secrets" / "shoal", SEED, 0o444)
    env = {keys.SEED_FILE_ENV: str(secret)}
    assert load(tmp_path / "unused", env=env).seed == SEED
    secret.chmod(0o464)
    with pytest.raises(IdentityError, match="chmod 600"):
        load(tmp_path / "unused", env=env)


def test_a_path_that_only_passes_through_the_secrets_folder_is_held_to_the_strict_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "secrets").mkdir(parents=True)
    monkeypatch.setattr(keys, "_SECRETS_DIR", tmp_path / "run" / "secrets")
    write(tmp_path / "seed", SEED, 0o444)
    for path in (tmp_path / "run" / "secrets" / ".." / ".." / "seed", tmp_path / "run" / "secrets" / "link"):
        if path.name == "link":
            path.symlink_to(tmp_path / "seed")
        with pytest.raises(IdentityError, match="chmod 600"):
            load(tmp_path / "unused", env={keys.SEED_FILE_ENV: str(path)})


def test_a_seed_that_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(IdentityError, match=name):
            load(tmp_path / name, env={})
    with pytest.raises(IdentityError, match="No such file"):
        load(tmp_path / "unused", env={keys.SEED_FILE_ENV: str(tmp_path / "none")})


def test_keys_need_no_libp2p() -> None:
    code = "import sys, fleet.identity.keys; sys.exit(any(name.split('.')[0] == 'libp2p' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
