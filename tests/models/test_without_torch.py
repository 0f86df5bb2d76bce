"""A small installation: everything a worker does works where torch is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# an import of a module that stands as None in sys.modules fails as one that is not installed does
BLOCKED = "import sys\nsys.modules['torch'] = None\n"
SCORE = """
from pathlib import Path
import numpy as np
from models.pipeline.load import parse_pipeline
from models.scorer import load_scorer
scorer = load_scorer(Path(sys.argv[1]), parse_pipeline(sys.stdin.read(), "small.toml"), sys.argv[2])
golden = scorer.bundle.golden
off = float(np.abs(scorer.score(golden.encoded).score_B - golden.score_B).max())
reasons = scorer.explain(golden.encoded, 2)
print(scorer.engine, len(golden.encoded), off < 1e-5, {len(each) for each in reasons})
"""


def run(code: str, *arguments: str, text: str = "") -> str:
    done = subprocess.run([sys.executable, "-c", BLOCKED + code, *arguments], input=text, capture_output=True,
                          text=True, check=False, cwd=ROOT, timeout=180)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module",
    ["models.scorer", "models.bundle", "models.attribution", "models.registry", "models.cli", "stream.app",
     "stream.worker", "stream.cli"],
)  # fmt: skip
def test_what_a_worker_imports_needs_no_torch(module):
    """Only training, writing bundles and the torch engine import it."""
    assert run(f"import {module}\nprint('done')") == "done"


@pytest.mark.parametrize("engine", ["native", "onnxruntime"])
def test_the_golden_case_is_scored_and_explained(make_bundle, engine):
    """A bundle that torch wrote scores as it did, on the engines of a small installation."""
    text = Path(__file__).with_name("conftest.py").read_text().split('SMALL = """')[1].split('"""')[0]
    assert run(SCORE, str(make_bundle().folder), engine, text=text) == f"{engine} 7 True {{2}}"
