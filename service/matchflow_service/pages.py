"""Page tokens: opaque to the client, and bound to the request that they continue (AIP-158)."""

from __future__ import annotations

import base64
import binascii
import json

from matchflow_service.errors import FieldInvalidError, shown

FIELD = "page_token"


def page_token(method: str, parent: str, after: str) -> str:
    """Return the token that continues `method` on `parent` after the entry `after`."""
    text = json.dumps([method, parent, after], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode()


def parse_page_token(token: str, method: str, parent: str) -> str | None:
    """Return the entry after which to continue, None for the first page.

    Raises FieldInvalidError for what is no token, or the token of another request.
    """
    if not token:
        return None
    try:
        parts = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        json.dumps(parts, ensure_ascii=False).encode()  # a lone surrogate is no text that the store can look up
    except (binascii.Error, ValueError, RecursionError):
        parts = None
    match parts:
        case [str(token_method), str(token_parent), str(after)]:
            if (token_method, token_parent) != (method, parent):
                raise FieldInvalidError(
                    FIELD,
                    f"expected a token of {method} {parent}".rstrip()
                    + f"; got one of {shown(f'{token_method} {token_parent}'.rstrip())}",
                )
            return after
        case _:
            raise FieldInvalidError(FIELD, "expected a next_page_token of an earlier reply; got something else")
