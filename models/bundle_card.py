"""The model card of a bundle: what a person wants to know before promoting it, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        f"A `{info.architecture}` detector (hidden {info.hidden}, embedding {info.embedding}) that reads the last "
        f"{inputs.length} events of an entity and answers how likely the newest one is fraud.",
        "",
        f"- made: {info.created_at}",
        f"- fits pipeline digest: `{info.digest}`",
        f"- inputs: {len(inputs.x)} numbers and {len(inputs.codes)} categories an event, "
        f"{len(inputs.context)} context features{_verdicts(inputs)}",
        f"- alerts from a score of {info.threshold:.6g}; probabilities come from a curve of "
        f"{len(info.calibration.scores)} knots",
        "",
        "## Measured", "", *_table(info.metrics),
        "",
        "## Trained on", "", *_table(info.training),
        "",
        "## Limits",
        "",
        "Measured on the validation days named above; a change of customers, merchants or fraud shows first in "
        "these figures on newer labels. The score orders events; only the probability is calibrated, and only as "
        "far as the past resembles the future. An alert is a reason to look, not a verdict on a person.",
        "",
    ])  # fmt: skip


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
