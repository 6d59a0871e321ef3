"""Log lines, in processes of their own: logging is a property of a whole process."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import textwrap
from typing import Any

LIMIT = 60.0


def written(code: str) -> str:
    """What a process that runs `code` writes to standard error, which is no terminal."""
    done = subprocess.run(
        [sys.executable, "-c", "from agent import log\nimport logging, structlog\n" + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    return done.stderr


def lines(code: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(code).splitlines()]


def test_a_line_is_one_json_object_where_standard_error_is_no_terminal() -> None:
    (line,) = lines("log.configure(); structlog.get_logger('shoal.x').info('box.up', peer='p', n=3)")
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "box.up", "logger": "shoal.x", "level": "info", "peer": "p", "n": 3}


def test_on_a_terminal_a_line_is_for_people() -> None:
    ours, theirs = pty.openpty()
    code = "from agent import log; import structlog; log.configure(); structlog.get_logger('shoal').info('box.up', n=3)"
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, timeout=LIMIT)
    os.close(theirs)
    text = os.read(ours, 65536).decode()
    os.close(ours)
    assert "box.up" in text
    assert not text.lstrip().startswith("{")


def test_the_level_decides_what_is_written() -> None:
    code = "logger = structlog.get_logger('shoal')\nfor level in ('debug', 'info', 'warning', 'error'):\n"
    code += "    getattr(logger, level)(level[0])"
    for level, expected in (("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")):
        assert "".join(line["event"] for line in lines(f"log.configure('{level}')\n{code}")) == expected


def test_other_libraries_come_out_in_the_same_form() -> None:
    (line,) = lines("log.configure(); logging.getLogger('other').warning('%s went %d', 'it', 3, extra={'peer': 'p'})")
    assert (line["event"], line["logger"], line["level"], line["peer"]) == ("it went 3", "other", "warning", "p")


def test_noise_of_network_libraries_is_written_only_while_debugging() -> None:
    code = "logging.getLogger('libp2p.transport.tcp').error('no luck')"
    assert lines(f"log.configure(); {code}") == []
    assert [line["event"] for line in lines(f"log.configure('debug'); {code}")] == ["no luck"]


def test_importing_libp2p_first_does_not_make_it_write_bare_text() -> None:
    code = "import libp2p; log.configure(); logging.getLogger('libp2p.transport.tcp').error('no luck')"
    assert written(code) == ""


def test_every_line_of_a_job_carries_its_id_in_child_tasks_too() -> None:
    code = """
        import trio
        logger = structlog.get_logger('shoal')
        log.configure()

        async def child(name):
            await trio.lowlevel.checkpoint()
            logger.info(name)

        async def job(id, trace):
            with log.bound_job(id, trace):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(child, 'a')
                    nursery.start_soon(child, 'b')
                logging.getLogger('other').warning('foreign')
            logger.info('after')

        async def main():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(job, 'job-1', None)
                nursery.start_soon(job, 'job-2', '00-trace')

        trio.run(main)
        try:
            with log.bound_job('job-3'):
                raise ValueError
        except ValueError:
            logger.info('after')
        """
    found = [(line["event"], line.get("job"), line.get("traceparent")) for line in lines(code)]
    expected = [(event, job, trace) for job, trace in (("job-1", None), ("job-2", "00-trace")) for event in "ab"]
    expected += [("foreign", "job-1", None), ("foreign", "job-2", "00-trace")]
    assert sorted(map(str, found)) == sorted(map(str, [*expected, *[("after", None, None)] * 3]))


def test_secrets_are_not_written_whoever_logs_them() -> None:
    code = """
        log.configure()
        structlog.get_logger('shoal').info('x', seed='5eed', Authorization='Bearer 5eed', api_key='5eed', tokens=5)
        logging.getLogger('other').warning('x', extra={'password': '5eed'})
        from fleet.identity.keys import Identity
        structlog.get_logger('shoal').info('x', identity=Identity.from_seed(b'5eed' * 8))
        """
    text = written(code)
    assert "5eed" not in text
    assert len(text.splitlines()) == 3
    assert '"tokens": 5' in text


def test_an_exception_is_part_of_its_line() -> None:
    code = (
        "log.configure()\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    structlog.get_logger('shoal').exception('x')"
    )
    (line,) = lines(code)
    assert "ZeroDivisionError" in line["exception"]
    human = written(code.replace("configure()", "configure(form='human')"))
    assert "ZeroDivisionError" in human
    assert "\n" in human


def test_warnings_of_python_keep_the_form_of_a_line() -> None:
    (line,) = lines("import warnings; log.configure(); warnings.warn('old')")
    assert line["logger"] == "py.warnings"


def test_what_a_peer_chose_can_neither_forge_a_line_nor_steer_a_terminal() -> None:
    code = "structlog.get_logger('shoal').info('x', name='a\\x1b[2Jb\\x9bc\\nlevel=error \\u202ed')"
    (line,) = lines(f"log.configure(); {code}")
    assert line["name"] == "a\x1b[2Jb\x9bc\nlevel=error \u202ed"
    human = written(f"log.configure(form='human'); {code}")
    assert len(human.splitlines()) == 1
    assert not {"\x1b", "\x9b", "\u202e"} & set(human)


def test_a_very_long_value_is_cut() -> None:
    (line,) = lines("log.configure(); structlog.get_logger('shoal').info('x', reason='a' * 100_000)")
    assert len(line["reason"]) < 3000
    assert "100000 characters" in line["reason"]


def test_text_that_cannot_be_encoded_loses_no_line() -> None:
    text = written("log.configure(); structlog.get_logger('shoal').info('x', name='a\\ud800b')")
    assert len(text.splitlines()) == 1
