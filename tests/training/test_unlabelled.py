"""Bundles without labels: the threshold keeps the budget, the score is what the worker gives, faults are found."""

from __future__ import annotations

from dataclasses import replace as changed
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import Bundle
from models.episodes import OPEN, advance_episodes, empty_episodes
from models.pipeline import load_pipeline
from models.pipeline.spec import Pipeline
from models.samples import write_file
from models.scorer import load_scorer
from models.simulate_machines import Machines, simulate_machines
from tests.support import encode_columns
from tests.training.parts import part
from training.errors import TrainingError
from training.finetune import Start, finetune, new_detector
from training.fit import Recipe
from training.history import import_file
from training.metrics import average_precision
from training.pretrain import pretrain
from training.tables import Mapped, read_file
from training.unlabelled import Past, episode_threshold

LEARN = 400


def shorter(pipeline: Pipeline, budget: float = 5.0, architecture: str = "surprise") -> Pipeline:
    """The shipped pipeline for machines of a few days."""
    return msgspec.structs.replace(
        pipeline, surprise=msgspec.structs.replace(pipeline.surprise, learn=LEARN),
        detector=msgspec.structs.replace(pipeline.detector, architecture=architecture),
        policy=msgspec.structs.replace(pipeline.policy, alerts_per_day=budget),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return shorter(load_pipeline("sensors"))


@pytest.fixture(scope="module")
def machines() -> Machines:
    return simulate_machines(2, machines=20, days=6.0, faults=2, faults_from_day=3.0)


@pytest.fixture(scope="module")
def history(pipeline: Pipeline, machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machines")
    write_file(machines, folder / "machines.parquet")
    mapped = Mapped(read_file(folder / "machines.parquet"), pipeline)
    import_file(pipeline, folder / "history", mapped)
    return folder / "history"


@pytest.fixture(scope="module")
def bundle(pipeline: Pipeline, history: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return finetune(pipeline, history, tmp_path_factory.mktemp("bundle") / "one")


def test_a_history_without_labels_makes_a_bundle(bundle: Bundle, machines: Machines) -> None:
    assert bundle.info.architecture == "surprise"
    assert bundle.info.training["labels"] == "none"
    assert bundle.info.metrics["events"] == len(machines)
    assert 0.0 < bundle.info.metrics["alerts_per_day"] <= 5.0
    assert bundle.info.metrics["share_at_threshold"] <= 0.051
    assert "without labels" in (bundle.folder / "card.md").read_text(encoding="utf-8")


def test_labels_if_there_are_some_say_how_it_ranks(pipeline: Pipeline, machines: Machines, tmp_path: Path) -> None:
    """Nothing of them is learnt: the threshold stays."""
    write_file(machines, tmp_path / "machines.parquet")
    labelled = read_file(tmp_path / "machines.parquet").assign(is_fault=(machines.fault_N > 0).astype(int))
    import_file(pipeline, tmp_path / "history", Mapped(labelled, pipeline, labels="is_fault", label_delay_ms=0))
    metrics = finetune(pipeline, tmp_path / "history", tmp_path / "bundle").info.metrics
    known_share = metrics["frauds"] / metrics["events"]
    assert metrics["frauds"] == int((machines.fault_N > 0).sum())
    assert metrics["average_precision"] > 10 * known_share
    assert metrics["roc_auc"] > 0.8  # .87 to .97 from simulation to simulation


def test_a_short_history_is_refused_by_name(pipeline: Pipeline, history: Path, tmp_path: Path) -> None:
    more = msgspec.structs.replace(pipeline, surprise=msgspec.structs.replace(pipeline.surprise, learn=5000))
    with pytest.raises(TrainingError, match=r"no entity with as many as surprise.learn = 5000"):
        finetune(more, history, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def past(seed: int, events: int = 20_000, entities: int = 10) -> Past:
    """Scores that wander, each entity's by itself, over ten days."""
    random = np.random.default_rng(seed)
    level_N = np.abs(np.cumsum(random.normal(0, 1, (events // entities, entities)), axis=0)).ravel()
    return Past(
        np.tile(np.arange(entities), events // entities), np.arange(events) * (864_000_000 // events),
        (level_N / (level_N + 20)).astype(np.float32), np.ones(events, np.bool_), np.zeros(events, np.bool_),
    )  # fmt: skip


@pytest.mark.parametrize("budget", [0.5, 2.0])
def test_the_threshold_keeps_the_budget_of_episodes(pipeline: Pipeline, budget: float) -> None:
    found, wanted = past(1), shorter(pipeline, budget)
    threshold = episode_threshold(wanted, found)
    turns = advance_episodes(
        wanted.episodes, empty_episodes(10), found.owner_N, found.time_N, found.score_N, threshold,
        np.zeros((len(found), 2), np.uint64),
    )  # fmt: skip
    assert 0 < (turns.kind_A == OPEN).sum() <= budget * found.days


def test_a_budget_nobody_needs_is_not_used_up(pipeline: Pipeline) -> None:
    found = past(2)
    threshold = episode_threshold(shorter(pipeline, 1e6), found)
    assert (found.score_N >= np.float32(threshold)).mean() <= 0.0501


def test_what_is_not_known_yet_has_no_say(pipeline: Pipeline) -> None:
    """Scores of the first events, were they ever so high, leave the threshold where it is."""
    found = past(3)
    later_N = np.arange(len(found)) >= 5000
    wild = changed(found, known_N=later_N)
    quiet = changed(wild, score_N=np.where(later_N, found.score_N, np.float32(0.0)))
    assert episode_threshold(pipeline, quiet) == episode_threshold(pipeline, wild)


def test_what_a_fleet_teaches_is_better_than_each_ones_own_past(
    pipeline: Pipeline, history: Path, bundle: Bundle, tmp_path: Path
) -> None:
    """Forecasts beside surprise rank the faults of other machines better, and those of machines never seen before."""
    taught_by = shorter(pipeline, architecture="surprise-gru")
    taught = finetune(taught_by, history, tmp_path / "taught", recipe=Recipe(epochs=3, threads=1))
    losses = taught.info.training["checked_loss"]
    assert losses[-1] < losses[0]
    later = simulate_machines(8, machines=20, days=5.0, faults=3, faults_from_day=2.5)
    fault_N, known_N, own_N = ranked(pipeline, bundle, later)
    _, _, taught_N = ranked(taught_by, taught, later)
    own, better = (average_precision(fault_N[known_N], score_N[known_N]) for score_N in (own_N, taught_N))
    assert better > own + 0.02
    early = simulate_machines(9, machines=30, days=LEARN / 288, faults=1, faults_from_day=0.4)
    fault_N, known_N, score_N = ranked(taught_by, taught, early)
    assert not known_N.any()
    assert average_precision(fault_N, score_N) > 4 * fault_N.mean()


def test_a_trunk_is_learnt_on_from_a_bundle(pipeline: Pipeline, history: Path, tmp_path: Path) -> None:
    """One epoch from a taught trunk leaves less unlikely than one from nothing."""
    taught_by, recipe = shorter(pipeline, architecture="surprise-gru"), Recipe(epochs=1, threads=1)
    first = finetune(taught_by, history, tmp_path / "first", recipe=recipe)
    second = finetune(taught_by, history, tmp_path / "second", recipe=recipe, start=Start(bundle=first.folder))
    assert second.info.training["started_from"] == first.version
    assert second.info.training["checked_loss"][0] < first.info.training["checked_loss"][0]


@pytest.mark.parametrize(("trunk", "first"), [("surprise-cnn", "surprise-gru"), ("surprise-gru", "surprise")])
def test_a_bundle_of_another_architecture_is_no_start(
    trunk: str, first: str, pipeline: Pipeline, history: Path, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=1, threads=1, max_legit=500)
    bundle = finetune(shorter(pipeline, architecture=first), history, tmp_path / "first", recipe=recipe)
    with pytest.raises(TrainingError, match=rf"has architecture {first}: expected {trunk}, as in the pipeline"):
        finetune(
            shorter(pipeline, architecture=trunk), history, tmp_path / "second", recipe=recipe,
            start=Start(bundle=bundle.folder),
        )  # fmt: skip


def test_labels_cannot_be_learnt_from_a_start_without(
    pipeline: Pipeline, history: Path, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="architecture surprise: expected one that learns from labels"):
        new_detector(shorter(pipeline, architecture="gru"), part(10), 0, Start(bundle=bundle.folder))
    with pytest.raises(TrainingError, match="architecture = 'surprise': expected one that learns from labels"):
        pretrain(pipeline, history, tmp_path / "pretrained")


def ranked(
    pipeline: Pipeline, bundle: Bundle, machines: Machines
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float32]]:
    """Whether each reading is of a fault, whether surprise knows its machine, and the score."""
    encoded = encode_columns(pipeline, machines.events)
    known_N = encoded.context_BC[:, bundle.info.inputs.context.index("surprise.known")] >= 1.0
    return machines.fault_N > 0, known_N, load_scorer(bundle.folder, pipeline).score(encoded).score_B
