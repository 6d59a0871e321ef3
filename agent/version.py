"""The version of this build, as the package metadata states it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("shoal")
except PackageNotFoundError:
    VERSION = "0+source"
