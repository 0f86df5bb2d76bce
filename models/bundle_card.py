"""The model card of a bundle: what a person wants to know before promoting it, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.pipeline.spec import SURPRISE, without_labels

if TYPE_CHECKING:
    from models.bundle import BundleInfo
    from models.features.encoded import InputSpec

__all__ = ["card"]


def card(info: BundleInfo) -> str:
    """Markdown, made of `bundle.json` alone, so the two cannot disagree."""
    inputs = info.inputs
    return "\n".join([
        f"# {info.pipeline} {info.version}",
        "",
        _what(info),
        "",
        f"- made: {info.created_at}",
        f"- fits pipeline digest: `{info.digest}`",
        f"- inputs: {len(inputs.x)} numbers and {len(inputs.codes)} categories an event, "
        f"{len(inputs.context)} context features{_verdicts(inputs)}",
        f"- alerts from a score of {info.threshold:.6g}; {_probabilities(info)}",
        "",
        "## Measured", "", *_table(info.metrics),
        "",
        "## Trained on", "", *_table(info.training),
        "",
        "## Limits",
        "",
        *_limits(info),
        "",
    ])  # fmt: skip


def _what(info: BundleInfo) -> str:
    if without_labels(info.architecture):
        return (
            "A detector without labels: it answers how unlike the newest event is to anything its entity has done "
            f"before{_forecasts(info)}."
        )
    return (
        f"A `{info.architecture}` detector (hidden {info.hidden}, embedding {info.embedding}) that reads the last "
        f"{info.inputs.length} events of an entity and answers how likely the newest one is fraud."
    )


def _forecasts(info: BundleInfo) -> str:
    if info.architecture == SURPRISE:
        return ". Nothing in it was trained but the threshold"
    return (
        f", and to what a trunk ({info.architecture}, hidden {info.hidden}) that has learnt from all entities expects "
        f"after the last {info.inputs.length} events"
    )


def _probabilities(info: BundleInfo) -> str:
    if without_labels(info.architecture):
        return "the probability is the share of the entity's own earlier events that scored lower"
    return f"probabilities come from a curve of {len(info.calibration.scores)} knots"


def _limits(info: BundleInfo) -> list[str]:
    if without_labels(info.architecture):
        return [
            "Strange is not the same as bad: a new recipe, a moved sensor or a repair is strange, too, until it is "
            "usual. An entity that has seen too little is not judged. The budget holds as far as the past resembles "
            "the future."
        ]
    return [
        "Measured on the validation days named above; a change of customers, merchants or fraud shows first in "
        "these figures on newer labels. The score orders events; only the probability is calibrated, and only as "
        "far as the past resembles the future. An alert is a reason to look, not a verdict on a person."
    ]


def _verdicts(inputs: InputSpec) -> str:
    if not inputs.verdicts:
        return ""
    return f", the last {inputs.verdict_length} verdicts on {' and '.join(inputs.verdicts)}"


def _table(values: dict[str, Any]) -> list[str]:
    if not values:
        return ["Nothing was recorded."]
    rows = [f"| {name} | {_shown(value)} |" for name, value in values.items()]
    return ["| what | value |", "|---|---|", *rows]


def _shown(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
