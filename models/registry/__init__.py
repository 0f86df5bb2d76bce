"""Where bundles are kept, and which one of a pipeline is the champion.

    <root>/<pipeline>/versions/<version>/…          bundles, immutable
    <root>/<pipeline>/changes/00000012.json         every promotion, roll back, challenge and withdrawal, immutable

The history is the pointer: the newest change says which version is the champion and which one challenges it. A change
is created under the next number or not at all, so of two writers one is told to look again, nothing is half written,
and no file is ever replaced. The root is a folder that the workers share, or the URL of an object store.
"""

from models.registry.changes import Challenger, Change, Pointers, Stage
from models.registry.registry import Registry

__all__ = ["Challenger", "Change", "Pointers", "Registry", "Stage"]
