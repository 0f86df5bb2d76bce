"""Attribution: the reasons named are those that moved the score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attribution import EARLIER_EVENTS, Reason, explain, input_groups
from models.detectors import Detector
from models.detectors.base import tensors
from models.engines.base import scores_of
from models.engines.torch_engine import TorchEngine
from models.features.encoded import Encoded, InputSpec
from models.features.layout import Layout
from models.pipeline.load import load_pipeline
from models.weights import Scaling

INPUTS = InputSpec(
    x=("amount", "amount.missing", "hour_sin", "hour_cos", "gap"),
    codes=(("kind", 7),),
    context=("count.1h", "count.1d", "shop.fraud_rate.1d", "shop.frauds.1d", "shop.fraud_rate.7d", "device.run"),
    length=4,
    verdicts=("till", "device"),
    verdict_length=3,
)


class Linear(Detector):
    """A detector whose effects can be computed by hand: a weighted sum of a few inputs."""

    def forward(
        self, x_BLF: Tensor, codes_BLK: Tensor, mask_BL: Tensor, context_BC: Tensor, verdicts_BJSG: Tensor
    ) -> Tensor:
        return (
            2.0 * x_BLF[:, -1, 0] + 0.5 * x_BLF[:, -1, 4] + 0.3 * codes_BLK[:, -1, 0] + 0.25 * mask_BL[:, :-1].sum(1)
            + context_BC[:, 1] - 1.5 * context_BC[:, 4] + 0.35 * verdicts_BJSG[:, 1, :, 1].sum(1)
            + 0.4 * context_BC[:, 5]
        )  # fmt: skip


@pytest.fixture
def linear() -> Detector:
    """Training means: 0.5 for the amount, 9 for the run of frauds, 0 elsewhere; deviation 1."""
    detector = Linear("gru", INPUTS, hidden=4, embedding=2)
    detector.x_mean_F[0], detector.context_mean_C[5] = 0.5, 9.0
    return detector.eval()


def window(rows: int = 1) -> Encoded:
    """The current event and two before it; the first of the four positions is padding."""
    x_BLF = np.zeros((rows, 4, 5), np.float32)
    x_BLF[:, -1] = [1.0, 0.0, 1.0, 0.0, -1.0]
    codes_BLK = np.zeros((rows, 4, 1), np.int32)
    codes_BLK[:, -1] = 2
    mask_BL = np.ones((rows, 4), bool)
    mask_BL[:, 0] = False
    context_BC = np.tile(np.array([0.1, 0.8, 0.2, 0.0, -0.6, 0.125], np.float32), (rows, 1))
    verdicts_BJSG = np.zeros((rows, 2, 3, 7), np.float32)
    verdicts_BJSG[:, 1, 1:, :2] = 1.0
    return Encoded(x_BLF, codes_BLK, mask_BL, context_BC, verdicts_BJSG)


def reasons_of(detector: Detector, encoded: Encoded, n: int) -> list[list[Reason]]:
    return explain(TorchEngine(detector).logits_after, detector.inputs, Scaling.of(detector.weights()), encoded, n)


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def test_effects_by_hand(linear):
    """Each effect is the score minus the score with the group at its training mean; greatest first.

    Without verdicts there is nothing that is derived of them either.
    """
    logit = 2.0 - 0.5 + 0.6 + 0.5 + 0.8 + 0.9 + 0.7 + 0.05
    expected = [
        ("amount", 1.0), ("shop.fraud_rate.7d", 0.9), ("count.1d", 0.8), ("device.verdicts", 0.75), ("kind", 0.6),
        (EARLIER_EVENTS, 0.5),
    ]  # fmt: skip
    reasons = reasons_of(linear, window(), 6)[0]
    assert [r.feature for r in reasons] == [name for name, _ in expected]
    for reason, (_, drop) in zip(reasons, expected, strict=True):
        assert reason.effect == pytest.approx(sigmoid(logit) - sigmoid(logit - drop), abs=1e-6)


def test_values_are_what_the_detector_read(linear):
    """A reason shows the input; a category its row, the past its length, a cycle its hour, verdicts their frauds."""
    values = {r.feature: r.value for r in reasons_of(linear, window(), 99)[0]}
    assert values["amount"] == 1.0
    assert values["kind"] == 2
    assert values[EARLIER_EVENTS] == 2
    assert (values["till.verdicts"], values["device.verdicts"]) == (0, 2)
    assert values["hour"] == 6.0  # sine 1, cosine 0
    assert values["shop.fraud_rate.7d"] == pytest.approx(-0.6)


def test_what_lowers_the_score_has_a_negative_effect_and_comes_last(linear):
    """The gap pulled the score down."""
    last = reasons_of(linear, window(), 99)[0][-1]
    assert last.feature == "gap"
    assert last.effect < 0


def test_reasons_are_ordered_even_where_the_score_is_saturated(linear):
    """At a score of 1 every effect rounds to nothing, yet the order is that of the logits."""
    far = window()
    far.context_BC[:, 1] = 60.0
    names = [r.feature for r in reasons_of(linear, far, 4)[0]]
    assert names == ["count.1d", "amount", "shop.fraud_rate.7d", "device.verdicts"]


@pytest.mark.parametrize("inputs", [INPUTS, Layout(load_pipeline("payments")).inputs], ids=["made-up", "payments"])
def test_every_input_is_in_exactly_one_group(inputs):
    """Nothing that the detector reads escapes attribution, or counts twice."""
    groups = input_groups(inputs)
    every = (("x", inputs.x), ("code", inputs.codes), ("context", inputs.context), ("verdicts", inputs.verdicts))
    for kind, names in every:
        members = [c for g in groups if g.kind == kind for c in g.columns]
        if kind == "context":
            members += [c for g in groups for c in g.derived]
        assert sorted(members) == list(range(len(names)))
    assert [g.name for g in groups if g.kind == "history"] == [EARLIER_EVENTS]
    assert len({g.name for g in groups}) == len(groups)


def test_groups_join_what_would_hide_each_other():
    """Horizons of one aggregate, halves of a cycle, views of the same verdicts."""
    names = {g.name: g.columns for g in input_groups(INPUTS) if g.kind in ("x", "context")}
    assert names == {"amount": (0, 1), "hour": (2, 3), "gap": (4,), "count": (0, 1), "shop.fraud_rate": (2, 3, 4)}


def test_the_views_of_a_habit_are_one_group():
    """What is usual is taken away with what is said of it; the surprise of the event is a group of its own."""
    groups = input_groups(Layout(load_pipeline("payments")).inputs)
    names = Layout(load_pipeline("payments")).inputs.context
    members = {g.name: tuple(names[c] for c in g.columns) for g in groups if g.kind == "context"}
    assert members["amount.score"] == ("amount.usual", "amount.spread", "amount.score")
    assert members["gap.score"] == ("gap.usual", "gap.spread", "gap.score")
    assert members["device_id.novelty"] == ("device_id.novel", "device_id.novelty")
    assert members["location.away"] == ("location.away", "location.away_score")
    alone = [g.name for g in groups if g.kind == "x" and len(g.columns) == 1]
    assert {"amount.surprise", "gap.surprise", "amount", "gap"} <= set(alone)


def test_many_alerts_get_the_reasons_they_get_alone(detector, make_windows):
    """Explaining is batched; company changes nothing, and the input is left as it was."""
    encoded = make_windows(150, seed=6)
    before = scores_of(TorchEngine(detector).logits(encoded))
    together = reasons_of(detector, encoded, 4)
    for i in (0, 77, 149):
        assert reasons_of(detector, encoded.take(slice(i, i + 1)), 4)[0] == together[i]
    assert {len(r) for r in together} == {4}
    assert all(r[k].effect >= r[k + 1].effect for r in together for k in range(3))
    np.testing.assert_array_equal(scores_of(TorchEngine(detector).logits(encoded)), before)


def test_of_verdicts_those_that_are_there_are_counted(linear):
    """What is left of an absent one does not matter, and the windows are not changed by explaining them."""
    dirty = window()
    dirty.verdicts_BJSG[:, :, 0, 1] = np.nan
    values = {r.feature: r.value for r in reasons_of(linear, dirty, 99)[0]}
    assert (values["till.verdicts"], values["device.verdicts"]) == (0, 2)
    assert np.isnan(dirty.verdicts_BJSG[:, :, 0, 1]).all()
    np.testing.assert_array_equal(dirty.verdicts_BJSG[:, 1, 1:, :2], 1.0)


def test_a_trained_detector_is_explained_by_what_it_was_trained_on(detector, inputs, make_windows):
    """Where only one feature decided the label, that feature is the first reason of high scores."""
    encoded = make_windows(400, seed=2)
    wanted = torch.from_numpy((encoded.context_BC[:, 2] > 2.0).astype(np.float32))
    optimiser = torch.optim.Adam(detector.train().parameters(), lr=0.02)
    for _ in range(80):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(detector(*tensors(encoded)), wanted).backward()
        optimiser.step()
    detector.eval()
    alerts = encoded.take(TorchEngine(detector).logits(encoded) > 2)
    group = next(g for g in input_groups(inputs) if g.kind == "context" and 2 in g.columns)
    members = {inputs.context[c] for c in group.columns}
    first = [reasons[0].feature in members for reasons in reasons_of(detector, alerts, 1)]
    assert len(first) > 20
    assert np.mean(first) > 0.9
