"""Secrets stay out of messages, stores and configurations: what counts as a secret, and what is shown instead.

A secret comes from file system options, from a URL with a password or a signature, from the command line, or from the
environment. All values of options are hidden, since their names differ between file systems. User, password and signature are
removed from a URL, so that it stays the same URL when it is signed again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

#: Shown in place of a secret.
HIDDEN = "***"

_URL = re.compile(r"(?<![\w+.-])[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_USER = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")
# Ends a sentence, and not a URL.
_PUNCTUATION = ".,;:)]}"

# Names of options, configuration keys and environment variables that hold secrets. Not eos_token, prefix_token or max_tokens.
_NAMES = re.compile(
    r"(^|.*_)(password|passwd|passphrase|pwd|secret|secret_key|access_key|access_key_id|account_key|api_key|apikey|private_key|"
    r"(session|security|access|auth|bearer|sas|refresh|id|hub|hf|user|api|client)_token|client_secret|connection_string|"
    r"conn_string|credentials?|authorization|cookies?)$"
    r"|^(key|token|pass|auth|sas|sig|signature|secrets)$"
)
# Names in the query of a URL.
_PARAMETERS = re.compile(
    r"token(?!iz|s$)|secret|passw|passphrase|pwd|signature|credential|api_?key|access_?key|auth(?!or)|jwt|session|hmac|bearer|"
    r"^(sig|sas|key|pass|ticket|policy|hdnts|hdnea|q_ak)$|_key$|_sig$|^(x_amz|x_goog|x_oss|x_cos|q_sign|q_key)_"
)
# Parameters that belong to a signature and change with it.
_OF_SIGNATURES = {
    "expires", "expiry", "exp", "algorithm", "key_pair_id", "awsaccesskeyid", "googleaccessid", "ossaccesskeyid",
    "q_header_list", "q_url_param_list", "sv", "ss", "srt", "sp", "se", "st",
    "spr", "skoid", "sktid", "skt", "ske", "sks", "skv", "sr", "sip",
    "si", "sdd", "saoid", "suoid", "scid",
}  # fmt: skip
# Tokens with a known prefix, whatever their name.
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[0-9A-Z]{12,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|"
    r"xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)"
)
# Headers, in answers of servers and errors of clients.
_HEADERS = re.compile(r"(?i)\b(bearer|basic|AWS4-HMAC-SHA256)\s+[^\s'\",]{6,}(?:,\s*\w+=[^\s'\",]+)*")
_ELEMENTS = re.compile(
    r"<(AWSAccessKeyId|SignatureProvided|StringToSign\w*|CanonicalRequest\w*)>.*?(</\1>|$)", re.DOTALL
)

# Options whose values are shown in messages; without the prefix of their cloud.
_HARMLESS = {
    "region", "region_name", "default_region", "endpoint", "endpoint_url", "allow_http", "anon", "use_ssl", "verify",
    "skip_signature", "connect_timeout", "read_timeout", "timeout", "virtual_hosted_style_request", "account_name", "project",
    "signature_version", "addressing_style",
}  # fmt: skip
_CLOUD = re.compile(r"^(aws|azure_storage|azure|google|s3)_")
# Shorter values would be found in the middle of words.
_SHORTEST = 4
# Shorter lines of a secret, such as a brace, are not secret by themselves.
_LONG_LINE = 12

_known: set[str] = set()


def is_secret_name(name: str) -> bool:
    """Return whether an option, configuration key or environment variable of this name holds a secret."""
    return _NAMES.match(_plain(name)) is not None


def is_harmless_option(name: str) -> bool:
    """Return whether the value of a file system option may be shown."""
    return _CLOUD.sub("", _plain(name)) in _HARMLESS


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def public_url(url: str) -> str:
    """Return a URL without user, password and signature. Other text is returned as it is.

    Each URL of a chain (fsspec joins them with `::`) is handled separately.
    """
    return "::".join(map(_public_part, url.split("::")))


def _public_part(url: str) -> str:
    if "://" not in url:
        return url
    rest, hash_sign, fragment = _USER.sub(r"\1", url).partition("#")
    place, question_mark, query = rest.partition("?")
    kept_query = _public_query(query)
    kept_fragment = _public_query(fragment)
    # A pattern may end in `?`, which stands for one character.
    if query and not kept_query:
        question_mark = ""
    if fragment and not kept_fragment:
        hash_sign = ""
    return f"{place}{question_mark}{kept_query}{hash_sign}{kept_fragment}"


def _public_query(query: str) -> str:
    pairs = re.split(r"(?<=[&;])", query)
    if not any(map(_is_secret_pair, pairs)):
        return query
    public = [pair for pair in pairs if not _is_secret_pair(pair) and not _of_signature(pair)]
    return "".join(public).rstrip("&;")


def _is_secret_pair(pair: str) -> bool:
    name, is_pair, value = pair.rstrip("&;").partition("=")
    if not is_pair:
        return _SHAPES.match(pair) is not None
    # `key` is also the name of an object in a bucket.
    if name.lower() == "key" and re.search(r"/|\.\w{2,8}$", unquote(value)):
        return False
    return _PARAMETERS.search(_plain(unquote(name))) is not None or _SHAPES.match(unquote(value)) is not None


def _of_signature(pair: str) -> bool:
    return _plain(unquote(pair.partition("=")[0])) in _OF_SIGNATURES


def has_secret(url: str) -> bool:
    """Return whether a URL holds a user, a password or a signature."""
    return public_url(url) != url


def hidden_values(value: Any) -> Any:
    """Return a mapping with its keys, and `***` for each value at any depth."""
    if isinstance(value, Mapping):
        return {key: hidden_values(part) for key, part in value.items()}
    return HIDDEN


def remember_options(options: Mapping[Any, Any]) -> None:
    """Remember the values of file system options, so that they are hidden in all messages."""
    for name, value in _leaves(options):
        remember_option(name, value)


def remember_option(name: str, value: str) -> None:
    """Remember the value of one option. A plain word such as `bytes` is remembered only if the name is that of a secret."""
    remember_url(value)
    is_word = value.isalpha() and value.islower()
    if not is_harmless_option(name) and not has_secret(value) and (is_secret_name(name) or not is_word):
        remember(value)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, str(key))
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for part in value:
            yield from _leaves(part, name)
    elif isinstance(value, bytes):
        yield name, value.decode(errors="replace")
    elif isinstance(value, str):
        yield name, value


def remember_url(url: str) -> None:
    """Remember the secrets in a URL, since libraries show URLs in other spellings."""
    if not has_secret(url):
        return
    for part in url.split("::"):
        user = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)@", part)
        if user:
            name, _, password = user[1].partition(":")
            remember(user[1])
            remember(password or name)
        for pair in re.split(r"[?&;#]", part)[1:]:
            if _is_secret_pair(pair):
                remember(pair.partition("=")[2] or pair)


def remember(value: str) -> None:
    """Remember a secret, in the spellings of URLs and libraries."""
    in_urls = (quote(value, safe=""), quote(value), quote_plus(value), unquote(value), unquote_plus(value))
    for spelled in (*in_urls, *_spellings(value)):
        if len(spelled) >= _SHORTEST and spelled.lower() not in ("true", "false", "none", "null", "auto"):
            _known.add(spelled)


def _spellings(value: str) -> set[str]:
    """Return a secret as it is, as Python and JSON write it, in one line, its long lines, and secrets in it if it is JSON."""
    written = {repr(value)[1:-1], json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    spellings = {value, " ".join(value.split()), *written}
    if "\n" in value:
        for line in map(str.strip, value.splitlines()):
            if len(line) >= _LONG_LINE:
                spellings.add(line)
    for inner in _secrets_in_json(value):
        spellings |= _spellings(inner)
    return spellings


def _secrets_in_json(value: str) -> list[str]:
    """Return the secrets in a JSON object, such as the key of a service account."""
    if not value.lstrip().startswith("{"):
        return []
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return []
    return [text for name, text in _leaves(found) if is_secret_name(name)]


def redacted(text: str) -> str:
    """Return a text without secrets: remembered ones, those of the environment and of URLs, and those of known shapes."""
    text = _ELEMENTS.sub("", text)
    for value in sorted(_known.union(_of_environment()), key=len, reverse=True):
        if value in text:
            text = _without(text, value)
    text = _URL.sub(_public_match, text)
    return _HEADERS.sub(rf"\1 {HIDDEN}", _SHAPES.sub(HIDDEN, text))


def _without(text: str, value: str) -> str:
    """Hide a value; a short one only as a whole word."""
    if len(value) >= 8 or not value.isalnum():
        return text.replace(value, HIDDEN)
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])", HIDDEN, text)


def _public_match(match: re.Match[str]) -> str:
    url = match[0].rstrip(_PUNCTUATION)
    return public_url(url) + match[0][len(url) :]


def _of_environment() -> list[str]:
    found: list[str] = []
    for name, value in os.environ.items():
        # The path of a file with secrets is not a secret.
        is_place = value.startswith(("/", "~"))
        if len(value) >= 8 and not is_place and (is_secret_name(name) or _plain(name).endswith(("_token", "_secret"))):
            found += _spellings(value.strip())
    return found


def in_one_line(error: object, limit: int = 300) -> str:
    """Return the message of an error in one line, without secrets, cut to `limit` characters."""
    return redacted(" ".join(str(error).split()))[:limit]


def shown_cause(error: BaseException) -> BaseException | None:
    """Return an error for use as the cause of another one; None if it, or one of its own causes, would show a secret.

    Python prints the causes of an error, in the words of other libraries.
    """
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        if redacted(str(current)) != str(current) or redacted(repr(current)) != repr(current):
            return None
        current = current.__cause__ or current.__context__
    return error
