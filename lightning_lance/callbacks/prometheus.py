"""Metrics for Prometheus: a text file that node_exporter reads, or a port."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_lance.errors import ConfigError
from lightning_lance.messages.escaping import logger

_log = logger(__name__)

_PREFIX = "lightning_lance_"


def check_prometheus_client() -> None:
    """Check that the package is there.

    Raises:
        ConfigError: If it is not.
    """
    if find_spec("prometheus_client") is None:
        raise ConfigError(
            "Metrics for Prometheus need the package prometheus_client, which is not installed: pip install "
            "'lightning-lance[monitor]', or leave prometheus and port out."
        )


class PrometheusMetrics:
    """Metrics of a run, each a gauge, as Prometheus reads them.

    Args:
        file: A file named `*.prom`, written in one piece at each update; None for none.
        port: Port to serve them on, on all addresses of this machine; None for none.
    """

    def __init__(self, file: str | None, port: int | None) -> None:
        from prometheus_client import CollectorRegistry

        self._file = file
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Any] = {}
        self._server: Any = None
        self._told = False
        if port is not None:
            self._serve(port)

    def _serve(self, port: int) -> None:
        from prometheus_client import start_http_server

        try:
            self._server = start_http_server(port, registry=self._registry)
        except (OSError, OverflowError) as error:
            # What only looks at a run does not end it.
            _log.warning("No metrics are served on port %d, and the run goes on without: %s", port, error)

    def update(self, metrics: Mapping[str, float], components: Mapping[str, Mapping[str, float]]) -> None:
        """Set the metrics, and write the file.

        Args:
            metrics: Name to value.
            components: Name of a component of the mixture to its metrics, which get it as a label.
        """
        for name, value in metrics.items():
            self._gauge(name).set(value)
        for component, values in components.items():
            for name, value in values.items():
                self._gauge(f"component_{name}", "component").labels(component=component).set(value)
        if self._file is not None:
            self._write(self._file)

    def _gauge(self, name: str, *labels: str) -> Any:
        from prometheus_client import Gauge

        if name not in self._gauges:
            title = f"{name.replace('_', ' ')}, of a training run"
            self._gauges[name] = Gauge(f"{_PREFIX}{name}", title, labels, registry=self._registry)
        return self._gauges[name]

    def _write(self, file: str) -> None:
        from prometheus_client import write_to_textfile

        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            write_to_textfile(file, self._registry)
        except OSError as error:
            if not self._told:
                self._told = True
                _log.warning("The metrics for Prometheus cannot be written, and the run goes on without: %s", error)

    def close(self) -> None:
        """Stop to serve. The file stays, with the last values."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
            self._server = None
