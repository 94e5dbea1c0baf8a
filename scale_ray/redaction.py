"""What may be shown of a URI: neither its user and password, or keys, nor its options, which may hold keys, too.

Messages, results and records are redacted where they leave the program, since they contain texts of other packages, and
those contain URIs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

_Value = TypeVar("_Value")

# scheme://user:password@ and what follows, up to a space or the quote that encloses the URI. A password may contain `/`
# or `?` although it should not: what follows the first colon is one unless it is the number of a port.
_URI = re.compile(
    r"""(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30})://
        (?:[^/?\s]*@ | [^/?\s:]+:(?!\d*(?:[/?\s'"]|$))\S*?@)?
        (?P<place>[^?\s'"<>]*)
        (?P<options>\?[^\s'"<>]*)?""",
    re.VERBOSE,
)


def redacted(value: _Value) -> _Value:
    """A text whose URIs are without user, password and options; and the same for the texts in mappings and lists."""
    shown: Any = value
    if isinstance(value, str):
        shown = _URI.sub(_shown, value) if "://" in value else value
    elif isinstance(value, Mapping):
        shown = {redacted(key): redacted(inner) for key, inner in value.items()}
    elif isinstance(value, list):
        shown = [redacted(inner) for inner in value]
    elif isinstance(value, tuple):
        shown = tuple(redacted(inner) for inner in value)
    return shown


def _shown(uri: re.Match[str]) -> str:
    # What follows the # of a page stays in the browser.
    is_page = uri["scheme"].startswith("http") and "#" in uri["place"]
    return f"{uri['scheme']}://{uri['place']}{(uri['options'] or '') if is_page else ''}"
