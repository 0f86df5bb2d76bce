"""The page about a model: whole in one file, its numbers those of `measure`, and not to be broken by data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from models.bundle_write import write_bundle
from models.calibration import Calibration
from models.clock import DAY_MS, from_iso
from models.detectors import build_detector
from models.engines.base import scores_of
from models.engines.torch_engine import TorchEngine
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.pipeline.load import parse_pipeline
from models.pipeline.spec import Pipeline
from models.scorer import Scorer, load_scorer
from training.archive import Archive
from training.errors import TrainingError
from training.evaluate import Scored, measure, offline_scores
from training.history import import_file
from training.metrics import CARDS
from training.replay import History, load_history, replay
from training.report import Options, Report, make_report
from training.report_data import gather
from training.tables import Mapped

START = from_iso("2026-01-01")
RANGE = {"start_ms": START + 12 * DAY_MS, "end_ms": START + 20 * DAY_MS}
HOSTILE = ["<script>alert(1)</script>", '"><img src="http://example.org/x.png">', r"$\frac{", "{{ 7 * 7 }}",
           "a\x00\u202eb"]  # fmt: skip
TRAINING = {"train_start": "2026-01-01T00:00:00.000Z", "train_end": "2026-01-08T00:00:00.000Z",
            "validation_start": "2026-01-09T00:00:00.000Z", "holdout_end": "2026-01-12T00:00:00.000Z"}  # fmt: skip
SECTIONS = ["ranking", "calibration", "alerts", "segments", "importance", "reasons", "drift", "model", "made"]
PLAIN = """
[pipeline]
name = "small"
entity = "card"
event_id = "id"
time = "at"

[fields]
id = { type = "id" }
at = { type = "time", unit = "ms" }
card = { type = "entity" }
shop = { type = "entity" }

[window]
length = 6
horizons = ["1d"]

[profiles.shop]
key = "shop"
half_lives = ["7d"]
verdicts = 4

[policy]
alerts_per_day = 5
"""
FULL = PLAIN.replace("[window]", 'amount = { type = "number", unit = "GBP", required = false }\n'
                     'kind = { type = "category", required = false }\n\n[window]').replace(
    'key = "shop"', 'key = "shop"\namount = "amount"')  # fmt: skip

Make = Callable[..., tuple[History, Scorer]]


def world(folder: Path, pipeline: Pipeline, fraud_share: float = 0.06, events: int = 1500) -> History:
    """Twenty days of cards that shop; a tenth of the shops have all the frauds. Verdicts come a day later."""
    rng = np.random.default_rng(7)
    shop = rng.integers(0, 20, events)
    frame = pd.DataFrame({
        "id": [f"e{i}" for i in range(events)],
        "at": np.sort(START + (rng.random(events) * 20 * DAY_MS).astype(np.int64)),
        "card": [f"<b>{c}</b>" for c in rng.integers(0, 60, events)], "shop": [f"s{s}" for s in shop],
        "amount": np.where(rng.random(events) < 0.05, np.nan, rng.lognormal(3, 1, events)),
        "kind": rng.choice([*HOSTILE, None], events),
        "fraud": (shop < 4) & (rng.random(events) < 5 * fraud_share),
    })  # fmt: skip
    import_file(pipeline, folder, Mapped(frame, pipeline, labels="fraud", label_delay_ms=DAY_MS))
    return load_history(Archive(folder, pipeline))


def windows(history: History) -> Encoded:
    chunks = replay(history, lambda batch: np.ones(len(batch), dtype=bool))
    return Encoded.concatenate([chunk.encoded for chunk in chunks])


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(text, quantile=…, …): a history of `world`, and a small real bundle for it, not trained at all."""

    def made(text: str = FULL, *, quantile: float = 0.97, training: dict[str, str] | None = None, **options: float):  # type: ignore[no-untyped-def]
        pipeline = parse_pipeline(text, "small.toml")
        history = world(tmp_path_factory.mktemp("world"), pipeline, **options)  # type: ignore[arg-type]
        encoded = windows(history)
        torch.manual_seed(0)
        detector = build_detector("gru", Layout(pipeline).inputs, hidden=16, embedding=4)
        detector.fit_scaler(encoded)
        detector.eval()
        scores = scores_of(TorchEngine(detector).logits(encoded))
        folder = tmp_path_factory.mktemp("bundle") / "bundle"
        write_bundle(
            folder, pipeline, detector, calibration=Calibration.identity(),
            threshold=float(np.quantile(scores, quantile)) if quantile <= 1 else 1.5,
            metrics={"average_precision": 0.5, "card": "<i>"}, training=TRAINING if training is None else training,
            golden=encoded.take(slice(0, 8)),
        )  # fmt: skip
        return history, load_scorer(folder, pipeline, "native")

    return made


@pytest.fixture(scope="module")
def full(make: Make) -> tuple[History, Scorer]:
    return make()


@pytest.fixture(scope="module")
def report(full: tuple[History, Scorer]) -> Report:
    return make_report(*full, Options(**RANGE, folds=2, known_ms=7 * DAY_MS, command="python -m training report <x>"))


class Page(HTMLParser):
    """What a browser would see of a page: its elements with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self) -> dict[str, float]:
        return {str(a["id"]): float(str(a["value"])) for tag, a in self.elements if tag == "data"}

    def ids(self) -> list[str]:
        return [str(a["id"]) for _, a in self.elements if "id" in a]


def test_the_page_loads_nothing_and_runs_nothing(report: Report) -> None:
    """No script, link, image or address: it can be mailed, kept, and opened without a network."""
    page = Page(report.html)
    active = {"script", "link", "img", "iframe", "object", "base", "form", "image"}
    assert not {tag for tag, _ in page.elements} & active
    addresses = [a[name] for _, a in page.elements for name in ("src", "href", "xlink:href") if name in a]
    assert addresses
    assert all(str(address).startswith("#") for address in addresses)
    assert "@import" not in report.html
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)", report.html))
    policies = [a.get("content") for tag, a in page.elements if tag == "meta" and a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_every_section_and_figure_is_there(report: Report) -> None:
    """Each link of the page leads to a section; each id is there once, also within the figures."""
    page = Page(report.html)
    ids = page.ids()
    assert [name for name in ids if name in SECTIONS] == SECTIONS
    assert {str(a["href"])[1:] for tag, a in page.elements if tag == "a"} == set(SECTIONS)
    assert len(ids) == len(set(ids))
    figures = [str(a["aria-label"]) for tag, a in page.elements if tag == "svg"]
    expected = ["precision recall", "histogram", "reliability", "alerts", "money", "folds", "segment card",
                "segment amount", "segment kind", "importance", "deletion",
                *(f"drift {i}" for i in range(10))]  # fmt: skip
    assert figures == expected


def test_numbers_are_those_of_measure(full: tuple[History, Scorer], report: Report) -> None:
    """The headline, in the page and as facts, to the last digit; fold by fold, too."""
    history, scorer = full
    scored = offline_scores(history, scorer, RANGE["start_ms"], RANGE["end_ms"])
    expected = measure(scored, history, RANGE["start_ms"], RANGE["end_ms"], folds=2, known_ms=7 * DAY_MS)
    values, page = Page(report.html).values(), Page(report.html)
    for name in ("average_precision", "roc_auc", f"card_precision_at_{CARDS}", "expected_calibration_error"):
        assert values[name] == report.facts[name] == expected[name]
    assert report.facts["folds"] == expected["folds"]
    for fold in expected["folds"]:
        assert f"{fold['average_precision']:.3f}" in page.text
    alert_N = scored.score_N >= np.float32(scorer.threshold)
    assert values["alerts_per_day"] == pytest.approx(int(alert_N.sum()) / 8, rel=0.01)
    assert report.facts["alert_precision"] == pytest.approx(float(scored.fraud_N[alert_N].mean()))


def test_money_is_the_frauds_amounts(full: tuple[History, Scorer], report: Report) -> None:
    """Caught over all; a fraud without an amount counts as nothing."""
    history, scorer = full
    scored = offline_scores(history, scorer, RANGE["start_ms"], RANGE["end_ms"])
    amounts = dict(zip(history.events["id"].to_pylist(), history.events["amount"].to_pylist(), strict=True))
    lost_N = np.array([(amounts[i] or 0.0) if fraud else 0.0
                       for i, fraud in zip(scored.event_id, scored.fraud_N.tolist(), strict=True)])  # fmt: skip
    assert report.facts["money"] == pytest.approx(lost_N.sum())
    caught = lost_N[scored.score_N >= np.float32(scorer.threshold)].sum()
    assert report.facts["money_caught"] == pytest.approx(caught / lost_N.sum())
    assert "GBP" in Page(report.html).text


def test_hostile_values_are_shown_and_not_obeyed(report: Report) -> None:
    """Markup, templates, formulas and control characters in a category or an option are text."""
    page = Page(report.html)
    for value in HOSTILE[:4]:
        assert value in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "python -m training report <x>" in page.text
    assert "\x00" not in report.html
    assert "\u202e" not in report.html
    assert "<i>" in page.text


def test_the_same_history_gives_the_same_page(full: tuple[History, Scorer], report: Report) -> None:
    """But for the date: whatever is drawn at random is seeded."""
    again = make_report(*full, Options(**RANGE, folds=2, known_ms=7 * DAY_MS, command="python -m training report <x>"))
    dated = re.compile(r"20\d\d-\d\d-\d\d \d\d:\d\d")
    assert dated.sub("", again.html) == dated.sub("", report.html)
    assert again.facts == report.facts


def test_without_amount_or_category_there_is_less_to_show(make: Make) -> None:
    """The page says that no money is counted, and segments are of the entity alone."""
    report = make_report(*make(PLAIN), Options(**RANGE))
    page = Page(report.html)
    assert "no money is counted" in page.text
    assert "money_caught" not in page.values()
    figures = [str(a["aria-label"]) for tag, a in page.elements if tag == "svg"]
    assert [name for name in figures if name.startswith("segment")] == ["segment card"]


def test_without_an_alert_the_highest_scores_are_explained(make: Make) -> None:
    """Precision of no alerts is a dash, and nothing is caught."""
    history, scorer = make(quantile=2.0)
    report = make_report(history, scorer, Options(**RANGE))
    assert report.facts["alerts"] == 0
    assert math.isnan(report.facts["alert_precision"])
    assert report.facts["money_caught"] == 0.0
    page = Page(report.html)
    assert "events of the highest scores" in page.text
    assert "0 alerts, – of them frauds" in page.text


def test_without_a_fraud_there_are_dashes(make: Make) -> None:
    """Average precision, importance and money need one; the rest of the page is still made."""
    report = make_report(*make(fraud_share=0.0), Options(**RANGE))
    page = Page(report.html)
    assert math.isnan(page.values()["average_precision"])
    assert "No event of the range is known as fraud" in page.text
    assert "Importance: –" in page.text
    assert "nan" not in re.sub(r'value="nan"', "", report.html.lower()).replace("finance", "")
    assert "deletion" in [str(a["aria-label"]) for tag, a in page.elements if tag == "svg"]


def test_a_segment_without_frauds_is_a_dash(full: tuple[History, Scorer]) -> None:
    """Frauds are of four shops only: the others have counts and no average precision."""
    page = Page(make_report(*full, Options(**RANGE, segments=("shop",))).html)
    assert re.search(r"s1?\d\d\d0––", re.sub(r"\s+", "", page.text))  # shop, events, no fraud, two dashes


@pytest.mark.parametrize(
    ("options", "message"),
    [({"segments": ("id",)}, "segment 'id': expected one of"), ({"amount": "kind"}, "expected a number field: amount"),
     ({"start_ms": 0, "end_ms": 5}, "no event of the history lies in the reported range")],
)  # fmt: skip
def test_what_cannot_be_reported_on_is_named(
    full: tuple[History, Scorer], options: dict[str, object], message: str
) -> None:
    """One line that says what to change."""
    with pytest.raises(TrainingError, match=message):
        make_report(*full, replace(Options(**RANGE), **options))  # type: ignore[arg-type]


def test_a_range_that_was_trained_on_is_called_so(full: tuple[History, Scorer], make: Make) -> None:
    """And a bundle that does not say what it was trained on, too; drift then compares with all days before."""
    early = make_report(*full, Options(start_ms=START + 5 * DAY_MS, end_ms=START + 9 * DAY_MS))
    assert "the figures flatter it" in Page(early.html).text
    unknown = Page(make_report(*make(training={}), Options(**RANGE)).html).text
    assert "does not say which days it was trained on" in unknown
    assert "all days before the range" in unknown


def test_gathering_scores_as_evaluation_does_and_samples_what_it_says(full: tuple[History, Scorer]) -> None:
    """The same events, scores and order as `offline_scores`; each window stands in the row it says."""
    history, scorer = full
    expected = offline_scores(history, scorer, RANGE["start_ms"], RANGE["end_ms"])
    data = gather(history, scorer, RANGE["start_ms"], RANGE["end_ms"], (START, START + 8 * DAY_MS))
    for name in Scored.__slots__:
        np.testing.assert_array_equal(getattr(data.scored, name), getattr(expected, name))
    assert data.frauds is not None
    assert data.highest is not None
    assert data.reference is not None
    assert sorted(data.frauds.row_B.tolist()) == np.flatnonzero(expected.fraud_N).tolist()
    np.testing.assert_array_equal(scorer.score(data.highest.encoded).score_B, expected.score_N[data.highest.row_B])
    assert expected.score_N[data.highest.row_B].min() >= np.sort(expected.score_N)[-len(data.highest)]
    inside = history.event_time_M < START + 8 * DAY_MS
    assert len(data.reference) == int(inside.sum())


def test_samples_are_bounded_and_uniform(full: tuple[History, Scorer], monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer range takes no more memory, and the sample leans to no part of it."""
    monkeypatch.setattr("training.report_data.DRIFT", 100)
    history, scorer = full
    rows = []
    for seed in range(20):
        data = gather(history, scorer, RANGE["start_ms"], RANGE["end_ms"], (START, START + DAY_MS), seed=seed)
        assert data.now is not None
        assert len(data.now) == 100
        rows.append(data.now.row_B / len(data.scored))
    assert 0.45 < float(np.mean(rows)) < 0.55
    assert len({tuple(r) for r in map(tuple, rows)}) == 20


def test_the_command_writes_the_page(
    full: tuple[History, Scorer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options reach the page; a bundle is named by its folder."""
    from training.cli import app

    history, scorer = full
    pipeline = tmp_path / "small.toml"
    pipeline.write_text(FULL)
    monkeypatch.setattr("training.report.load_history", lambda _: history)
    out = tmp_path / "pages" / "report.html"
    app(["report", "--out", str(out), "--bundle", str(scorer.bundle.folder), "--pipeline", str(pipeline), "--start",
         "2026-01-13", "--end", "2026-01-21", "--segment", "kind", "--segment", "shop", "--json"],
        result_action="return_value")  # fmt: skip
    page = Page(out.read_text(encoding="utf-8"))
    figures = [str(a["aria-label"]) for tag, a in page.elements if tag == "svg"]
    assert [name for name in figures if name.startswith("segment")] == ["segment kind", "segment shop"]
    assert '"version"' in capsys.readouterr().out
