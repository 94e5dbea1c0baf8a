"""What attacks share: the attack is made first, and what it left behind is looked at before how it ended."""

from __future__ import annotations

from collections.abc import Callable

from scale_ray.errors import UserError


def refusal(call: Callable[[], object]) -> str:
    """The message with which a call was refused; otherwise how it ended."""
    try:
        call()
    except UserError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001
        return f"not refused, but ended in {error!r}"
    return "not refused"
