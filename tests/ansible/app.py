"""An app on a machine, which asks the box there one question after another, and never the same one twice."""

from __future__ import annotations

import json
import subprocess
from typing import Any, Final

from tests.ansible.machine import Machine

# Runs on the machine with the Python that Ansible needs there, until its standard input ends.
_ASKING: Final = """
import json, sys, threading, urllib.error, urllib.request
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
question = sys.argv[1].encode()
url, headers = "http://127.0.0.1:8420/v1/chat/completions", json.loads(sys.argv[2])
while not over.is_set():
    request = urllib.request.Request(url, question, headers)
    try:
        with urllib.request.urlopen(request, timeout=180) as answer:
            text = json.load(answer)["choices"][0]["message"]["content"]
            said = {"by": answer.headers["x-shoal-served-by"]} if text else {"error": "an empty answer"}
    except urllib.error.HTTPError as error:
        said = {"error": f"{error.code} {error.read().decode()}"}
    except Exception as error:
        said = {"error": repr(error)}
    print(json.dumps(said), flush=True)
    over.wait(0.5)
"""


class App:
    """It asks from its start until `stop`."""

    def __init__(self, machine: Machine, model: str, key: str) -> None:
        messages = [{"role": "user", "content": "What is a lighthouse for?"}]
        question = {"model": model, "messages": messages, "max_tokens": 8}
        headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "X-Shoal-On-Interrupt": "resume",
        }
        self._process = subprocess.Popen(
            [
                *("docker", "exec", "--interactive", machine.container, "python3", "-c", _ASKING),
                *(json.dumps(question), json.dumps(headers)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> list[dict[str, Any]]:
        """Ask nothing more; returns when the last question is answered, with what became of each: `by` whom it was
        answered, or the `error`."""
        said, _ = self._process.communicate(timeout=200)
        assert self._process.returncode == 0
        return [json.loads(line) for line in said.splitlines()]

    def kill(self) -> None:
        """End it where nobody cares for its answers any more."""
        self._process.kill()
        self._process.communicate()
