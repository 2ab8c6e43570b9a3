"""An override of the command line, `key=value`: what may be shown of it. Needs no Hydra, so that a message comes at once."""

from __future__ import annotations

import re

from lightning_lance.messages.redaction import has_secret, is_harmless_option, is_secret_name, redacted

#: What stands for a value that is not there: Hydra itself asks for it.
MISSING = "???"
#: Mappings of which no value is shown.
SECRET_MAPPINGS = ("storage_options", "env_set")


def shown_override(text: str) -> str:
    """Return an override of the command line as it may be shown: without its value, if that holds a secret."""
    key, is_pair, value = text.partition("=")
    if not is_pair or value in ("", "null", "{}", MISSING):
        return redacted(text)
    if not is_secret_override(key, value):
        return text
    if variable := re.search(r"hydra\.job\.env_set\.(\w+)$", key):
        return f"{key}=${{oc.env:{variable[1]}}}"
    # A mapping is filled by one +, and only set by two.
    return f"{'++' if key.startswith('+') else ''}{key.lstrip('+')}={MISSING}"


def is_secret_key(key: str) -> bool:
    """Tell whether a key, as the command line has it, is of a secret, or of a mapping that holds some."""
    parts = re.split(r"[.@/]", key.lstrip("+~"))
    return any(part in SECRET_MAPPINGS for part in parts) or is_secret_name(parts[-1])


def is_secret_override(key: str, value: str) -> bool:
    """Tell whether an override holds a secret, by its key or by its value."""
    inside = any(f"{name}:" in re.sub(r"\s", "", value) for name in SECRET_MAPPINGS)
    named = is_secret_key(key)
    if named and (is_harmless_option(re.split(r"[.@/]", key)[-1]) or value.startswith("${")):
        return has_secret(value)
    keys = re.findall(r"([\w-]+)['\"]?\s*:", value)
    return named or inside or any(map(is_secret_name, keys)) or redacted(value) != value
