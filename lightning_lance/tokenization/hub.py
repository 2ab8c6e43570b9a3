"""The Hub as the place of a tokenizer: whether it answers, and what its errors mean."""

from __future__ import annotations

from lightning_lance.errors import ConfigError, SourceError, names_of_causes
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.redaction import in_one_line
from lightning_lance.readers.retry import RetryPolicy

# Fewer than for a source: a tokenizer needs few requests, and a user waits for the first.
_TRIES = 5
_TIMEOUT_SECONDS = 30.0
# What helps without the Hub.
_INSTEAD = "use a downloaded tokenizer.json by tokenizer=file (TokenizerFile)"

_log = logger(__name__)


def patience_with(model: str) -> RetryPolicy:
    """Return how long to wait for the files of a tokenizer."""
    return RetryPolicy(
        model,
        _TRIES,
        _TIMEOUT_SECONDS,
        f"The tokenizer {model!r}",
        f"check the network, set HF_ENDPOINT to a mirror of the Hub, or {_INSTEAD}",
    )


def hub_silence(model: str, patience: RetryPolicy) -> str | None:
    """Return the sentence for a Hub that does not answer a request, or must not be asked; None if it answers.

    Otherwise its client would try each of several files for half a minute.
    """
    from huggingface_hub import constants, get_session, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return (
            f"The tokenizer {model!r} cannot be loaded, since offline mode is on and the cache of huggingface_hub lacks it: "
            f"unset HF_HUB_OFFLINE, or {_INSTEAD}."
        )
    try:
        with patience.active():
            get_session().head(hf_hub_url(model, "tokenizer.json"))
    except SourceError as error:
        if not patience.reached:
            return str(error)
        reason = str(error).partition(" gave up on ")[2].partition(": all that")[0]
        return (
            f"The tokenizer {model!r} cannot be loaded, since the Hub does not answer ({reason}): check the network and "
            f"HF_ENDPOINT, then run it again, or {_INSTEAD}."
        )
    except Exception as error:  # a bad name or address: the download raises a better error
        _log.debug("%s", error)
    return None


def silence_error(sentence: str) -> ConfigError | SourceError:
    """Return the error for a Hub that gives nothing: in offline mode, the user's own settings are its cause."""
    from huggingface_hub import constants

    return (ConfigError if constants.HF_HUB_OFFLINE else SourceError)(sentence)


def cure_of(error: Exception, model: str) -> str:
    """Return what an error means and what helps, as the rest of a sentence."""
    text = in_one_line(error, 2000)
    kinds = names_of_causes(error)
    if "GatedRepoError" in kinds:
        return (
            f"its repository is gated; accept the terms at https://huggingface.co/{model}, then run 'hf auth login' or set "
            "HF_TOKEN"
        )
    if "RevisionNotFoundError" in kinds:
        return "the Hub has no such revision of it; check tokenizer.revision"
    if "RepositoryNotFoundError" in kinds:
        return (
            "the Hub has no such model, or it is private; check the name, or run 'hf auth login' or set HF_TOKEN for a private "
            "one"
        )
    if "401" in text or "403" in text:
        return "the Hub denies access; run 'hf auth login' or set HF_TOKEN"
    if "trust_remote_code" in text:
        return "it needs to run code of its repository; read that code, then set tokenizer.trust_remote_code=true"
    return f"{text[:300].rstrip('.')}; check the name and the connection to the Hub, or use tokenizer=file"
