"""Every target, by name."""

from __future__ import annotations

from tests.fuzz.admission import ADMISSION
from tests.fuzz.base import Target
from tests.fuzz.blobs import BLOBS
from tests.fuzz.document import DOCUMENT
from tests.fuzz.files import FILES
from tests.fuzz.sync import SYNC
from tests.fuzz.wire import WIRE

TARGETS: dict[str, Target] = {target.name: target for target in (*WIRE, *DOCUMENT, *SYNC, *ADMISSION, *FILES, *BLOBS)}
