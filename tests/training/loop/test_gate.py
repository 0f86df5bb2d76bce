"""Bad models are refused, each for its own reason, and a better one is let in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from models.bundle import Bundle
from models.pipeline.learning import Gate
from models.pipeline.spec import Pipeline
from training.dataset import Part
from training.loop.cycle import Turn, gate_bundle, train_challenger
from training.loop.gate import Decision
from training.loop.material import Material
from training.source import Source


def silent(*_: object) -> None:
    """No progress."""


class Bench:
    """Trains challengers on altered material and puts them before the gate."""

    def __init__(self, pipeline: Pipeline, world: Source, material: Material, end_ms: int, folder: Path) -> None:
        self.pipeline, self.world, self.material, self.end_ms, self.folder = pipeline, world, material, end_ms, folder

    def train(self, name: str, material: Material, *, start: Path | None = None, hidden: int | None = None) -> Bundle:
        pipeline = self.pipeline
        if hidden is not None:
            pipeline = msgspec.structs.replace(
                pipeline, detector=msgspec.structs.replace(pipeline.detector, hidden=hidden)
            )
        return train_challenger(
            Turn(pipeline, start, self.end_ms, self.folder / name, threads=1, engine="native"), material, silent
        )

    def judge(self, champion: Path | None, challenger: Path) -> Decision:
        turn = Turn(self.pipeline, champion, self.end_ms, self.folder, threads=1, engine="native")
        return gate_bundle(turn, challenger, self.world)


@pytest.fixture
def bench(loop_pipeline: Pipeline, world: Source, material: Material, end_ms: int, tmp_path: Path) -> Bench:
    return Bench(loop_pipeline, world, material, end_ms, tmp_path)


def both(material: Material, change) -> Material:
    """The material with what is learnt from, and what is held back, altered."""
    return replace(material, train=change(material.train), held=replace(material.held, part=change(material.held.part)))


def shuffled(part: Part) -> Part:
    return replace(part, fraud_N=np.random.default_rng(0).permutation(part.fraud_N))


def stale(part: Part) -> Part:
    """What profiles and sums said of the event before, as a cache that is one event behind would have it."""
    return replace(part, encoded=replace(part.encoded, context_BC=np.roll(part.encoded.context_BC, 1, axis=0)))


def leaking(part: Part) -> Part:
    context_BC = part.encoded.context_BC.copy()
    context_BC[:, 0] = part.fraud_N
    return replace(part, encoded=replace(part.encoded, context_BC=context_BC))


def test_a_better_model_is_let_in(bench, champion, material):
    """Against a champion that learnt from shuffled labels a decent model wins; the figures say by how much."""
    weak = bench.train("weak", replace(material, train=shuffled(material.train)))
    decision = bench.judge(weak.folder, champion)
    assert decision.reason is None, decision.detail
    figures = decision.figures["average_precision"]
    assert figures["challenger"] > 1.5 * figures["champion"]
    assert figures["low"] > 0
    assert decision.figures["features"]["compared"] > 0


def test_a_model_of_shuffled_labels_is_refused_for_its_average_precision(bench, champion, material):
    """It ranks as chance does."""
    bad = bench.train("shuffled", replace(material, train=shuffled(material.train)))
    decision = bench.judge(champion, bad.folder)
    assert decision.reason == "average_precision"
    assert "expected 90%" in decision.detail


def test_a_model_made_with_stale_features_is_refused_for_its_features(bench, champion, material):
    """Its golden windows are not what the feature path gives for the same events."""
    bad = bench.train("stale", both(material, stale))
    decision = bench.judge(champion, bad.folder)
    assert decision.reason == "features"
    assert "context." in decision.detail


def test_a_model_that_has_seen_the_verdict_is_refused_for_a_leak(bench, champion, material):
    """The input that tells is named."""
    bad = bench.train("leaking", both(material, leaking))
    decision = bench.judge(champion, bad.folder)
    first = bad.info.inputs.context[0]
    assert decision.reason == "leak"
    assert f"context.{first}" in decision.detail


def test_weights_that_are_not_numbers_are_refused_before_anything_is_scored(bench, champion):
    """Also where the checksums were made to hold."""
    bad = bench.folder / "nan"
    bad.mkdir()
    for file in champion.iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    weights = safetensors.numpy.load((bad / "weights.safetensors").read_bytes())
    name = sorted(weights)[0]
    weights[name] = np.full_like(weights[name], np.nan)
    data = safetensors.numpy.save(weights)
    (bad / "weights.safetensors").write_bytes(data)
    manifest = json.loads((bad / "MANIFEST.json").read_bytes())
    manifest["sha256"]["weights.safetensors"] = hashlib.sha256(data).hexdigest()
    (bad / "MANIFEST.json").write_text(json.dumps(manifest))
    decision = bench.judge(champion, bad)
    assert decision.reason == "weights"
    assert "finite" in decision.detail


def test_a_model_ten_times_slower_is_refused_for_its_latency(bench, champion, material):
    """However good it is."""
    weak = bench.train("weak", replace(material, train=shuffled(material.train)))
    slow = bench.train("slow", material, hidden=160)
    decision = bench.judge(weak.folder, slow.folder)
    assert decision.reason == "latency", decision.detail
    figures = decision.figures["latency"]
    assert figures["challenger_us"] > 5 * figures["champion_us"]


def test_a_model_that_has_learnt_from_what_it_would_be_judged_by_is_refused_for_overlap(bench, champion, material):
    """One that held nobody back, and went on into the holdout."""
    plan = replace(material.plan, share=0.25)
    bad = bench.train("overlap", replace(material, plan=plan, held=replace(material.held, plan=plan)))
    assert bench.judge(champion, bad.folder).reason == "overlap"


def test_with_too_few_held_back_frauds_nothing_is_decided(bench, champion, loop_pipeline):
    """Whatever chance makes of the other figures."""
    strict = msgspec.structs.replace(loop_pipeline.learning, gate=Gate(frauds=100_000))
    bench.pipeline = msgspec.structs.replace(loop_pipeline, learning=strict)
    decision = bench.judge(champion, champion)
    assert decision.reason == "frauds"
    assert "expected at least 100000" in decision.detail
