"""The benchmarks are scripts, not a package: they import each other from their folder."""

from __future__ import annotations

import sys

from tests import docs_reading as docs

sys.path.insert(0, str(docs.ROOT / "benchmarks"))
