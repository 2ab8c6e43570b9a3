"""Remote files, read by the file systems of fsspec."""

from __future__ import annotations

from functools import cache
from typing import Any

from lightning_lance.errors import ConfigError


@cache
def s3_session() -> Any:
    """Return a session that ignores the HTTP options which `datasets` (5.2) gives to the file system of any compressed file."""
    try:
        from aiobotocore.session import AioSession
    except ImportError as error:
        raise ConfigError("Reading s3:// needs the package s3fs: run pip install 'lightning-lance[s3]'.") from error

    class Session(AioSession):  # type: ignore[misc] # the library has no types, so its class is Any
        def create_client(
            self, *args: Any, requote_redirect_url: Any = None, trust_env: Any = None, **kwargs: Any
        ) -> Any:
            return super().create_client(*args, **kwargs)

    return Session()
