"""The groups of routes that look after a pool: experts, jobs, verdicts, the inbox."""

from __future__ import annotations

from fastapi import APIRouter

from dylora_moe.serving.http import experts, inbox, jobs, verdict
from dylora_moe.serving.served import Served


def routers(served: Served, run_tests: bool = False) -> list[APIRouter]:
    """All of them.

    Args:
        run_tests: whether rows that are to be learned may carry tests, which are run.
    """
    return [
        experts.router(served, run_tests),
        jobs.router(served),
        verdict.router(served),
        inbox.router(served, run_tests),
    ]
