"""Consoles as this project wants them, and libraries that keep quiet.

Knows rich and the environment; knows nothing of results.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TextIO

from rich.console import Console

from dylora_moe.cli.failure import debugging

PLAIN_WIDTH = 120
"""Columns where there is no terminal to ask: tables in a log are not to be cut at 80."""


def console_on(stream: TextIO) -> Console:
    """A console on `stream`: colours and the real width on a terminal, wide and plain elsewhere."""
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def progress_console() -> Console:
    """A console on stderr, for everything that is no result."""
    return console_on(sys.stderr)


class _Stderr(logging.Handler):
    """Writes to what stderr is at the moment: above the bars while there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def tell_warnings() -> None:
    """Shows this package's own warnings as `warning: ...` on stderr; called by the entry."""
    logger = logging.getLogger("dylora_moe")
    if not logger.handlers:
        logger.addHandler(_Stderr(logging.WARNING))
        logger.propagate = False


def quiet_libraries() -> None:
    """Keeps the model libraries' notices away, unless `DYLORA_DEBUG` is set.

    Called by the command line's entry, before any of them is imported; a variable that the person
    has set stays.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if debugging():
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Both say at their import, which peft does wherever they are installed, what they lack.
    for library in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
