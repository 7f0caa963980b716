"""Passwords in addresses, such as that of a tracking server: used, never recorded."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit, urlunsplit

from nlu_ppo.errors import ConfigError

# by the address's scheme: where MLflow's client, and PostgreSQL's, look for user and password
VARIABLES = {
    "http": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "https": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "postgresql": ("PGUSER", "PGPASSWORD"),
}

_IN_ADDRESS = re.compile(r"(://[^/\s:@'\"]*):[^/\s'\"]*@")


def check_tracking_uri(uri: str | None) -> None:
    """Raises ConfigError for a password that could not be kept out of what is written."""
    parts = urlsplit(uri or "")
    if parts.password is not None and parts.scheme.partition("+")[0] not in VARIABLES:
        raise ConfigError(
            f"tracking.uri={without_password(uri or '')}: a password can be taken from addresses of "
            f"{', '.join(VARIABLES)} only, whose clients read it from the environment. Put it where the database's "
            f"client looks for it (MySQL: ?read_default_file=FILE)"
        )


def hidden(text: str) -> str:
    """Any text without the passwords of the addresses in it."""
    return _IN_ADDRESS.sub(r"\1:***@", text)


def take_password(uri: str) -> str:
    """`uri` without user and password, which go into the environment, and from there to child processes.

    Configurations, command lines and error messages are written to files; the environment isn't. Of a scheme
    that knows no such variables the address stays as it is.
    """
    parts = urlsplit(uri)
    variables = VARIABLES.get(parts.scheme.partition("+")[0])
    if parts.password is None or variables is None:
        return uri
    for name, value in zip(variables, (parts.username or "", parts.password), strict=True):
        os.environ[name] = unquote(value)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def without_password(uri: str) -> str:
    """`uri` as it may be written down."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}"))


def hide_passwords(arguments: list[str]) -> list[str]:
    """Command-line overrides, those of `tracking.uri` without a password (`take_password`)."""
    hidden = []
    for word in arguments:
        key, equals, value = word.partition("=")
        if key.lstrip("+") == "tracking.uri" and equals:
            bare = value.strip("'\"")
            word = word if take_password(bare) == bare else f"{key}={take_password(bare)}"
        hidden.append(word)
    return hidden
