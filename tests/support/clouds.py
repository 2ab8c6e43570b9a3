"""Servers on loopback that speak as Google's and Microsoft's object stores do, for stores in `gs://` and `az://`."""

import base64
import hashlib
import hmac
import http.client
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from tests.support.bucket import serving

#: The key of the account that Azurite has by itself, which is in its documentation.
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
# Any signature will do, since the server does not check it.
_SIGNED = "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


@dataclass(frozen=True)
class Cloud:
    """A bucket of an object store.

    Attributes:
        root: Its URL.
        options: What reaches it, as `storage_options`.
        secret: The secret in them.
        objects: Returns all its objects by name.
    """

    root: str
    options: dict[str, str]
    secret: str
    objects: Callable[[], dict[str, bytes]]


def _in_words_of_s3(app: Any) -> Any:
    """Let a server of S3 understand Google's XML interface, which has other names for the headers of the same requests."""

    def serves(environ: dict[str, Any], start_response: Any) -> Any:
        if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"
        source = environ.pop("HTTP_X_GOOG_COPY_SOURCE", None)
        if source is not None:
            environ["HTTP_X_AMZ_COPY_SOURCE"] = source
        if not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4"):
            environ["HTTP_AUTHORIZATION"] = _SIGNED

        def answered(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, ("x-goog-generation", "1")], *rest)

        return app(environ, answered)

    return serves


@contextmanager
def google() -> Iterator[Cloud]:
    """Serve a bucket of Google's store."""
    with serving() as bucket:
        bucket.wrap(_in_words_of_s3)
        account = {
            "gcs_base_url": bucket.endpoint,
            "disable_oauth": True,
            "client_email": "me@example.com",
            "private_key_id": "7",
            "private_key": "HUSH-the-private-key",
        }
        options = {"google_service_account_key": json.dumps(account), "allow_http": "true"}

        def objects() -> dict[str, bytes]:
            names = [entry["Key"] for entry in bucket.client.list_objects_v2(Bucket="bucket")["Contents"]]
            return {name: bucket.client.get_object(Bucket="bucket", Key=name)["Body"].read() for name in names}

        yield Cloud("gs://bucket", options, account["private_key"], objects)


class _Azurite:
    """The requests that a test sends to Azurite by itself."""

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        self._host = url.netloc
        self._account = url.path.strip("/")

    def ask(self, method: str, path: str, **query: str) -> bytes:
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03", "Content-Length": "0"}
        signed = [method, *[""] * 11, *(f"{name}:{headers[name]}" for name in ("x-ms-date", "x-ms-version"))]
        signed += [f"/{self._account}/{self._account}/{path}", *(f"{name}:{query[name]}" for name in sorted(query))]
        made = hmac.new(base64.b64decode(AZURITE_KEY), "\n".join(signed).encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {self._account}:{base64.b64encode(made.digest()).decode()}"
        connection = http.client.HTTPConnection(self._host, timeout=30)
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        connection.request(method, f"/{self._account}/{path}?{asked}", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status < 300, body
        return body


def microsoft(endpoint: str) -> Cloud:
    """Make a container in a running Azurite, such as `http://127.0.0.1:10000/devstoreaccount1`."""
    azurite = _Azurite(endpoint)
    container = f"c{secrets.token_hex(8)}"
    azurite.ask("PUT", container, restype="container")
    options = {
        "azure_storage_account_name": urlsplit(endpoint).path.strip("/"),
        "azure_storage_account_key": AZURITE_KEY,
        "azure_storage_endpoint": endpoint,
        "allow_http": "true",
    }

    def objects() -> dict[str, bytes]:
        listed = ElementTree.fromstring(azurite.ask("GET", container, restype="container", comp="list"))
        names = [str(name.text) for name in listed.iterfind("Blobs/Blob/Name")]
        return {name: azurite.ask("GET", f"{container}/{name}") for name in names}

    return Cloud(f"az://{container}", options, AZURITE_KEY, objects)
