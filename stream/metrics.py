"""Every metric of the worker, declared once. Names: `lepton_…`, the unit last.

Buckets are chosen for milliseconds: the defaults of most clients start at 5 ms, where half of our
observations end.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from models.engines import LARGE, SMALL
from models.scorer import Scorer

__all__ = ["REGISTRY", "exposition", "forget_partition", "show_engines"]

REGISTRY = CollectorRegistry()

FAST_S = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 4.0)
LATENCY_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

EVENTS = Counter("lepton_events_total", "Events scored and stored.", ["pipeline", "partition"], registry=REGISTRY)
LABELS = Counter(
    "lepton_labels_total", "Labels applied to shared profiles.", ["pipeline", "partition"], registry=REGISTRY
)
ALERTS = Counter("lepton_alerts_total", "Alerts acknowledged by the broker.", ["pipeline", "model"], registry=REGISTRY)
DEAD_LETTERS = Counter(
    "lepton_dead_letters_total", "Records refused, by reason.", ["pipeline", "topic", "reason"], registry=REGISTRY
)
DUPLICATES = Counter(
    "lepton_duplicates_skipped_total", "Events whose id the entity's window held.", ["pipeline"], registry=REGISTRY
)
LATE = Counter("lepton_late_events_total", "Events older than their entity's clock.", ["pipeline"], registry=REGISTRY)
FENCED = Counter(
    "lepton_fenced_writes_total", "Stores refused because the position had moved.", ["pipeline"], registry=REGISTRY
)
REWINDS = Counter(
    "lepton_rewinds_total", "Partitions set back to the position in Redis.", ["pipeline", "cause"], registry=REGISTRY
)
RETRIES = Counter(
    "lepton_batch_retries_total", "Batches tried again, by the error that stopped them.", ["lane", "error"],
    registry=REGISTRY,
)  # fmt: skip
STAGE = Histogram(
    "lepton_stage_seconds",
    "Time a batch spends in decode, load, features, score, decide, produce, store.",
    ["pipeline", "stage"],
    buckets=FAST_S,
    registry=REGISTRY,
)
LATENCY = Histogram(
    "lepton_event_latency_seconds", "From the event's append time to the acknowledgement of its score and alert.",
    ["pipeline"], buckets=LATENCY_S, registry=REGISTRY,
)  # fmt: skip
BATCH = Histogram("lepton_batch_events", "Events of a batch.", ["pipeline"], buckets=SIZES, registry=REGISTRY)
REDIS = Histogram(
    "lepton_redis_round_trip_seconds", "Time of one call to Redis.", ["pipeline", "call"], buckets=FAST_S,
    registry=REGISTRY,
)  # fmt: skip
LAG = Gauge("lepton_lag_events", "Records behind the end of the partition.", ["topic", "partition"], registry=REGISTRY)
FRESHNESS = Gauge(
    "lepton_freshness_seconds", "Age of the newest event stored, by the broker's clock.", ["topic", "partition"],
    registry=REGISTRY,
)  # fmt: skip
MODEL = Gauge("lepton_model_info", "1 for the model in use.", ["pipeline", "version"], registry=REGISTRY)
ENGINE = Gauge(
    "lepton_engine_info", "1 for the engine that runs the model in use.",
    ["pipeline", "version", "engine", "precision"], registry=REGISTRY,
)  # fmt: skip
ENGINE_TIME = Gauge(
    "lepton_engine_seconds", "Time an event took in a batch of so many when the model was loaded.",
    ["pipeline", "engine", "batch"], registry=REGISTRY,
)  # fmt: skip
SWAP = Histogram(
    "lepton_model_swap_seconds", "From noticing a new model to scoring with it.", ["pipeline"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0), registry=REGISTRY,
)  # fmt: skip
REFUSED = Counter(
    "lepton_models_refused_total", "Models that were promoted and not taken.", ["pipeline", "reason"],
    registry=REGISTRY,
)  # fmt: skip
STATE_BYTES = Gauge(
    "lepton_entity_state_bytes", "Size of one entity's state in Redis.", ["pipeline"], registry=REGISTRY
)


def forget_partition(topic: str, partition: int) -> None:
    """A partition that another worker reads now must not be reported by this one."""
    for gauge in (LAG, FRESHNESS):
        gauge.remove_by_labels({"topic": topic, "partition": str(partition)})


def show_engines(pipeline: str, scorer: Scorer) -> None:
    """The engine in use and what it was measured against; replaces what an earlier model left."""
    for gauge in (ENGINE, ENGINE_TIME):
        gauge.remove_by_labels({"pipeline": pipeline})
    ENGINE.labels(pipeline, scorer.version, scorer.engine, scorer.precision).set(1)
    for row in scorer.measured:
        for batch, seconds in ((SMALL, row.small_s), (LARGE, row.large_s)):
            if seconds is not None:
                ENGINE_TIME.labels(pipeline, row.engine, str(batch)).set(seconds)


def exposition() -> bytes:
    """The text Prometheus scrapes."""
    return generate_latest(REGISTRY)
