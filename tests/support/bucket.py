"""A real S3 server on loopback, for stores and sources in a bucket."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.request import Request, urlopen

import boto3
from moto.server import ThreadedMotoServer


class Bucket:
    """The server, with one bucket named `bucket`. What stands before it may be wrapped around `app`."""

    def __init__(self, server: ThreadedMotoServer) -> None:
        host, port = server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self.client = boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
        )
        self._server = server
        self.lost = 0

    @property
    def lance_options(self) -> dict[str, str]:
        return {
            "aws_endpoint": self.endpoint,
            "aws_access_key_id": "k",
            "aws_secret_access_key": "s",
            "aws_region": "us-east-1",
            "allow_http": "true",
        }

    def wrap(self, around: Callable[[Any], Any]) -> None:
        """Put a WSGI application around the one that serves."""
        self._server._server.app = around(self._server._server.app)

    def lose_answer(self, part: str) -> None:
        """Let the next object whose path has this part be stored, and answer that the server has failed."""
        self.lost = 0

        def around(app: Any) -> Any:
            def losing(environ: dict[str, Any], start_response: Any) -> Any:
                if self.lost or environ["REQUEST_METHOD"] != "PUT" or part not in environ["PATH_INFO"]:
                    return app(environ, start_response)
                self.lost += 1
                list(app(environ, lambda *answer: None))
                start_response("503 Slow Down", [("Content-Length", "0")])
                return [b""]

            return losing

        self.wrap(around)


def _one_at_a_time(app: Any) -> Any:
    """Make conditional writes atomic, as S3 has them: the server looks for an object first, and then writes it."""
    lock = threading.Lock()

    def serves(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] != "PUT":
            return app(environ, start_response)
        with lock:
            return app(environ, start_response)

    return serves


@contextmanager
def serving() -> Iterator[Bucket]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        # For each request the server would look through all services that it knows.
        dispatcher: Any = server._server.app
        dispatcher.get_backend_for_host = cache(dispatcher.get_backend_for_host)
        bucket = Bucket(server)
        bucket.wrap(_one_at_a_time)
        # What it holds is held for the process, by whatever server.
        urlopen(Request(f"{bucket.endpoint}/moto-api/reset", method="POST")).close()
        bucket.client.create_bucket(Bucket="bucket")
        yield bucket
    finally:
        server.stop()
