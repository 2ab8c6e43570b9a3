"""Hide secrets in overrides, `key=value`, of the command line. Imports no Hydra, so that a message comes at once."""

from __future__ import annotations

import re

from lightning_lance.messages.redaction import has_secret, is_harmless_option, is_secret_name, redacted

#: Stands for a missing value, as in Hydra.
MISSING = "???"
#: Mappings whose values are never shown.
SECRET_MAPPINGS = ("storage_options", "env_set")


def shown_override(text: str) -> str:
    """Return an override without its value if that holds a secret, else as it is."""
    key, is_pair, value = text.partition("=")
    if not is_pair or value in ("", "null", "{}", MISSING):
        return redacted(text)
    if not is_secret_override(key, value):
        return text
    variable = re.search(r"hydra\.job\.env_set\.(\w+)$", key)
    if variable:
        return f"{key}=${{oc.env:{variable[1]}}}"
    if key.startswith("+"):
        # One + would fill a mapping; two only set the key.
        return f"++{key.lstrip('+')}={MISSING}"
    return f"{key}={MISSING}"


def is_secret_key(key: str) -> bool:
    """Return whether a key of the command line names a secret, or a mapping with secrets."""
    parts = re.split(r"[.@/]", key.lstrip("+~"))
    return any(part in SECRET_MAPPINGS for part in parts) or is_secret_name(parts[-1])


def is_secret_override(key: str, value: str) -> bool:
    """Return whether an override holds a secret, by its key or by its value."""
    if is_secret_key(key):
        harmless = is_harmless_option(re.split(r"[.@/]", key)[-1]) or value.startswith("${")
        return not harmless or has_secret(value)
    compact = re.sub(r"\s", "", value)
    if any(f"{name}:" in compact for name in SECRET_MAPPINGS):
        return True
    keys = re.findall(r"([\w-]+)['\"]?\s*:", value)
    return any(map(is_secret_name, keys)) or redacted(value) != value
