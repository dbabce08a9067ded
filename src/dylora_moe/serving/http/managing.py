"""The groups of routes that look after a pool: experts, jobs, verdicts, the inbox."""

from __future__ import annotations

from fastapi import APIRouter

from dylora_moe.serving.http import experts, inbox, jobs, verdict
from dylora_moe.serving.served import Served


def routers(served: Served) -> list[APIRouter]:
    """All of them."""
    return [group.router(served) for group in (experts, jobs, verdict, inbox)]
