"""A Python environment for the peers, beside the project's own and on top of it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.harness import ROOT, progress
from models.errors import LeptonError

__all__ = ["peer_python"]

FOLDER = ROOT / "artifacts" / "peers" / "env"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def peer_python() -> Path:
    """The interpreter of the peers' environment, which is made when it is not there or its requirements changed.

    Raises LeptonError when it cannot be made, for want of a package index for instance.
    """
    python, stamp, wanted = FOLDER / "bin" / "python", FOLDER / "made-of.txt", REQUIREMENTS.read_text(encoding="utf-8")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    progress(f"installing Quix Streams and Bytewax into {FOLDER} …")
    _run(sys.executable, "-m", "venv", "--clear", str(FOLDER))
    _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS))
    # searched after the environment's own packages: the peers' versions win, and ours are found
    own = FOLDER / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (own / "lepton.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n", encoding="utf-8")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeptonError(f"{' '.join(command[:4])} ended with code {done.returncode}: {done.stderr[-300:].strip()}")
