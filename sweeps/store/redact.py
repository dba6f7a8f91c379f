"""Credentials out of what is recorded: addresses, commands, messages."""

import os
import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_USER_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.IGNORECASE)
_NAMED = re.compile(
    r"(?<![A-Za-z0-9.])((?:[A-Za-z]+_)*"
    r"(?:token|secret|password|passwd|api_?key|access_?key(?:_id)?|secret_?key|credentials)=)[^\s&,;'\"]+",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_LEAST = 8
"""Characters of a value that is taken for a secret wherever it stands."""
_QUERY_SECRETS = ("access_key", "secret_key", "session_token", "token", "password", "access_token")
HIDDEN = "***"


def redacted(value: Any) -> Any:
    """The value with credentials hidden in every text of it: in URLs, after names like `token=`, and the
    values that this process's environment holds under such names.
    """
    return _walk(value, _secrets())


def _walk(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return _NAMED.sub(rf"\1{HIDDEN}", _USER_IN_URL.sub(rf"\1{HIDDEN}@", value))
    if isinstance(value, dict):
        return {key: _walk(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(item, secrets) for item in value]
    return value


def _secrets() -> list[str]:
    """Values of the environment that are secret by their name, the longest first; paths to them are not."""
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _LEAST and "/" not in value[:2]
    }
    return sorted(found, key=len, reverse=True)


def credentials_in(url: str) -> bool:
    """Whether a URL carries a user, a password, or a key in its query."""
    parts = urlsplit(url)
    names = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    return "@" in parts.netloc or not names.isdisjoint(_QUERY_SECRETS)
