"""Passwords in the address of a tracking server: used, never recorded."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit, urlunsplit

# by the address's scheme: where MLflow's client, and PostgreSQL's, look for user and password
VARIABLES = {
    "http": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "https": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "postgresql": ("PGUSER", "PGPASSWORD"),
}


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
