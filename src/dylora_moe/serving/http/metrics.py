"""What a server counts, for Prometheus: names after vLLM's where one exists.

Labels are bounded: experts of the pool, the reasons an answer ends by, this application's own
routes. Nothing a client writes becomes a label.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dylora_moe.serving.engine.requests import Finished, Provenance
from dylora_moe.serving.http.gpu import gpu_memory
from dylora_moe.serving.served import Served

PREFIX = "dylora_"
# vLLM's buckets.
FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
         10.0, 20.0, 40.0, 80.0)  # fmt: skip
BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
           10.0)  # fmt: skip
WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
         120.0)  # fmt: skip
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
NATS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
MATURITIES = ("young", "growing", "mature")


class Metrics:
    """The counters of one server, in a registry of their own.

    Args:
        served: whose engine and pool are looked at when somebody asks.
        tokens: that the KV cache may hold.
    """

    def __init__(self, served: Served, tokens: int) -> None:
        self.registry = CollectorRegistry()
        self._served = served
        self.http = self._counter("http_requests", "Requests.", "route", "method", "status")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens written.")
        self.success = self._counter("request_success", "Answers that ended.", "finished_reason")
        self.expert_requests = self._counter(
            "expert_requests", "Answers by the expert of the largest weight.", "expert"
        )
        self.expert_weight = self._counter(
            "expert_weight", "Sum of an expert's routing weights over answers.", "expert"
        )
        self.screened = self._counter("screened_requests", "Prompts the screen looked at.")
        self.novel = self._counter("novel_requests", "Prompts strange to every skill.")
        self.canary = self._counter("canary_requests", "Answers by a version on trial.")
        self.first = self._histogram("time_to_first_token_seconds", "To the first token.", FIRST)
        self.between = self._histogram("inter_token_latency_seconds", "Between tokens.", BETWEEN)
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds", "The same, mean of an answer.", BETWEEN
        )
        self.whole = self._histogram("e2e_request_latency_seconds", "Of an answer.", WHOLE)
        self.queued = self._histogram("request_queue_time_seconds", "In the queue.", WHOLE)
        self.prompts = self._histogram("request_prompt_tokens", "Of a prompt.", COUNTS)
        self.answers = self._histogram("request_generation_tokens", "Of an answer.", COUNTS)
        self.entropy = self._histogram("routing_entropy_nats", "Of a routing.", NATS)
        self.registry.register(_Now(served, tokens))
        ProcessCollector(registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(PREFIX + name, help_text, buckets=tuple(buckets), registry=self.registry)

    def request(self, route: str, method: str, status: int) -> None:
        """Counts a request; status 0 where the client was gone before there was one."""
        self.http.labels(route, method, str(status)).inc()

    def step(self, seconds: float, tokens: int) -> None:
        """Counts the time that lay before some new tokens, the first ones apart."""
        for _ in range(tokens):
            self.between.observe(seconds / tokens)

    def finished(self, end: Finished) -> None:
        """Counts an answer that came to its end."""
        self.success.labels(end.reason).inc()
        self.prompt_tokens.inc(end.prompt_tokens)
        self.generation_tokens.inc(end.tokens)
        self.whole.observe(end.seconds)
        self.queued.observe(end.waited)
        self.prompts.observe(end.prompt_tokens)
        self.answers.observe(end.tokens)
        if end.first is not None:
            self.first.observe(end.first)
            if end.tokens > 1:
                self.per_token.observe((end.seconds - end.first) / (end.tokens - 1))
        if end.provenance is not None:
            self._routed(end.provenance)

    def _routed(self, found: Provenance) -> None:
        self.expert_requests.labels(found.expert).inc()
        for name, weight in found.weights.items():
            self.expert_weight.labels(name.rpartition("@")[0] or name).inc(weight)
        if found.entropy is not None:
            self.entropy.observe(found.entropy)
        if found.novel is not None:
            self.screened.inc()
            self.novel.inc(found.novel)
        self.canary.inc(found.canary)

    def forget(self) -> None:
        """Drops the counters of experts that the pool no longer has."""
        known = {expert.alias for expert in self._served.pool.experts()} | {"base"}
        for counter in (self.expert_requests, self.expert_weight):
            for sample in next(iter(counter.collect())).samples:
                if sample.labels["expert"] not in known and sample.name.endswith("_total"):
                    counter.remove(sample.labels["expert"])


class _Now(Collector):
    """What is looked up when somebody asks: engine, pool, GPU."""

    def __init__(self, served: Served, tokens: int) -> None:
        self._served, self._tokens = served, tokens

    def describe(self) -> Iterable[Metric]:
        """Nothing, or registering would already read the pool."""
        return ()

    def collect(self) -> Iterable[Metric]:
        state, revision = self._served.engine.state(), self._served.pool.revision
        yield _gauge("num_requests_running", "Answers being written.", state.running)
        yield _gauge("num_requests_waiting", "Answers in the queue.", state.waiting)
        yield _gauge("kv_cache_tokens", "Tokens that the KV cache holds.", state.cached_tokens)
        usage = state.cached_tokens / self._tokens
        yield _gauge("kv_cache_usage_perc", "Share of the KV cache; 1 is all.", usage)
        yield _gauge("ready", "Whether requests are taken.", state.ready)
        yield _gauge("pool_revision", "Of the pool that answers.", state.revision)
        yield _gauge("skills", "Skills learned.", len(revision.skills))
        experts = GaugeMetricFamily(PREFIX + "experts", "Experts.", labels=["maturity"])
        ripe = Tally[str](expert.maturity_state for expert in revision.experts)
        for maturity in MATURITIES:
            experts.add_metric([maturity], ripe[maturity])
        yield experts
        memory = gpu_memory()
        if memory:
            used = GaugeMetricFamily(
                PREFIX + "gpu_memory_used_bytes", "By everybody.", labels=["device"]
            )
            total = GaugeMetricFamily(
                PREFIX + "gpu_memory_total_bytes", "There is.", labels=["device"]
            )
            for device, (taken, whole) in memory.items():
                used.add_metric([device], taken)
                total.add_metric([device], whole)
            yield from (used, total)


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, help_text, value=float(value))
