"""OpenTelemetry: gauges to a collector, by OTLP over HTTP (protobuf).

The package that MLflow brings, opentelemetry-proto, has the messages. Each point keeps the time at which the worker
noted it, which the SDK's own exporters cannot do. Headers (a token, say) come from OTEL_EXPORTER_OTLP_HEADERS, as
OpenTelemetry's specification has it: name=value,name=value.
"""

import os
from urllib.parse import unquote

from cookbook import UserError
from cookbook.report import sinks
from cookbook.report.points import Batch, Now, Point
from cookbook.report.sinks import Settings

SECONDS = 10  # for an answer


class Sink(sinks.Sink):
    @classmethod
    def address(cls, settings: Settings) -> str:
        endpoint: str = settings["endpoint"]
        return endpoint

    @classmethod
    def check(cls, settings: Settings) -> None:
        parts = sinks.parsed("tracking.endpoint", settings["endpoint"])
        what = f"tracking.endpoint={settings['endpoint']}: expected http://HOST:PORT/v1/metrics (OTLP over HTTP)"
        if parts.scheme not in ("http", "https") or not parts.path.strip("/"):
            raise UserError(what)
        if parts.port == 4317:
            raise UserError(f"{what}; port 4317 is the one for gRPC, 4318 is HTTP's")

    def open(self) -> bool:
        import requests

        self.session = requests.Session()
        self.session.headers["Content-Type"] = "application/x-protobuf"
        for word in filter(None, os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",")):
            name, _, value = word.partition("=")
            self.session.headers[name.strip()] = unquote(value.strip())
        return bool(self.state.setdefault("sent", 0))

    def send(self, batch: Batch, now: Now) -> None:
        points = [*batch.points]
        points += [Point("trial/score", one.score, 0, one.time, label=f"{one.phase}/{one.id}") for one in batch.trials]
        if not points:
            return
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service

        answer = self.session.post(self.settings["endpoint"], data=self._request(points), timeout=SECONDS)
        answer.raise_for_status()
        said = service.ExportMetricsServiceResponse.FromString(answer.content) if answer.content else None
        if said and said.partial_success.rejected_data_points:
            partial = said.partial_success
            self.state["rejected"] = self.state.get("rejected", 0) + partial.rejected_data_points
            self.state["why"] = partial.error_message[:500]
        self.state["sent"] += len(points)

    def _request(self, points: list[Point]) -> bytes:
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service
        from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

        def text(key: str, value: str) -> KeyValue:
            return KeyValue(key=key, value=AnyValue(string_value=value))

        request = service.ExportMetricsServiceRequest()
        resource = request.resource_metrics.add()
        named = {"service.name": "cookbook", "cookbook.recipe": self.run.recipe, "cookbook.run": self.run.name}
        resource.resource.attributes.extend(text(key, value) for key, value in named.items())
        scope = resource.scope_metrics.add()
        scope.scope.name = "cookbook"
        gauges = {}
        # A step as an attribute would make a series of each point. It is a gauge beside the metric.
        steps = [Point("step", point.step, point.step, point.time, point.path) for point in points if not point.label]
        for point in [*points, *steps]:
            if point.name not in gauges:
                gauges[point.name] = scope.metrics.add(name=f"cookbook.{point.name}", unit=point.unit)
            one = gauges[point.name].gauge.data_points.add(
                time_unix_nano=int(point.time * 1e9), as_double=float(point.value)
            )
            if point.label:
                one.attributes.append(text("series", point.label))
        data: bytes = request.SerializeToString()
        return data

    def close(self) -> None:
        if hasattr(self, "session"):
            self.session.close()
