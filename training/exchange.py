"""Events that might have been: a real event whose numbers, or whose codes and keys, are those of another entity's.

Telling them from the real ones needs no label, and needs what fraud is told by, too: what is usual for this entity
(replaced tokens: Clark et al., ELECTRA, arXiv:2003.10555; noise-contrastive estimation: Gutmann and Hyvärinen, AISTATS
2010). Their windows are made by the feature path, from the state that the real event met, so that habits, surprises
and profiles are those the exchanged values would have had.

M events of a chunk, P of them exchanged, V values, K codes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.events import EventBatch
from models.features.encoded import Encoded
from models.pipeline.spec import Pipeline
from training.replay import Chunk

__all__ = ["exchanged", "windows_of_exchanged"]

NUMBERS, CODES, BOTH = 0, 1, 2


def windows_of_exchanged(chunk: Chunk, share: float, random: np.random.Generator) -> Encoded | None:
    """Windows of about this share of a chunk's events, exchanged; None when it is none. The store stays as it is."""
    batch, place_P = exchanged(chunk.store.layout.pipeline, chunk.batch, share, random)
    if len(place_P) == 0:
        return None
    step = chunk.store.what_if(batch, chunk.clock_M)
    return step.encoded.take(np.isin(step.applied_A, place_P))  # a repeated event is not applied


def exchanged(
    pipeline: Pipeline, batch: EventBatch, share: float, random: np.random.Generator
) -> tuple[EventBatch, NDArray[np.int64]]:
    """The batch with some events exchanged, and which. Of each entity only the last event is, so that an exchanged one
    is in nobody's past; what it gets is of another entity."""
    last_N = np.array(sorted({entity: m for m, entity in enumerate(batch.entity)}.values()), dtype=np.int64)
    place_P = last_N[random.random(len(last_N)) < share * len(batch) / len(last_N)]
    donor_P = random.integers(len(batch), size=len(place_P))
    other_P = np.array([batch.entity[p] != batch.entity[d] for p, d in zip(place_P, donor_P, strict=True)], dtype=bool)
    place_P, donor_P = place_P[other_P], donor_P[other_P]
    kind_P = _kinds(batch, random.integers(3, size=len(place_P)))
    values_MV, hashes_MK = batch.values_MV.copy(), batch.hashes_MK.copy()
    numbers_P, codes_P = kind_P != CODES, kind_P != NUMBERS
    values_MV[place_P[numbers_P]] = batch.values_MV[donor_P[numbers_P]]
    hashes_MK[place_P[codes_P]] = batch.hashes_MK[donor_P[codes_P]]
    keys = dict(batch.profile_keys)
    for name, profile in pipeline.profiles.items():
        if profile.key != pipeline.entity:
            keys[name] = list(keys[name])
            for place, donor in zip(place_P[codes_P].tolist(), donor_P[codes_P].tolist(), strict=True):
                keys[name][place] = batch.profile_keys[name][donor]
    return replace(batch, values_MV=values_MV, hashes_MK=hashes_MK, profile_keys=keys), place_P


def _kinds(batch: EventBatch, kind_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """What there is to be exchanged: a pipeline may have no numbers, or no codes."""
    if batch.hashes_MK.shape[1] == 0:
        return np.full_like(kind_P, NUMBERS)
    if batch.values_MV.shape[1] == 0:
        return np.full_like(kind_P, CODES)
    return kind_P
