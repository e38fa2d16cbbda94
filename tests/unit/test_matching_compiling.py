"""Compiled code that is kept on disk: used again as long as no source has changed, and never after."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import matchflow_matching
from matchflow_matching import kernels, vectors
from matchflow_matching.compiling import SOURCES, compiled, digest_of_sources

PACKAGE = Path(matchflow_matching.__file__).parent
PROBE = """
from matchflow_matching import kernels
import numpy as np
values = np.zeros(16, np.float32)
kernels._exponentials(values)
stats = kernels._exponentials.stats
print(float(values[0]), sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "matchflow_matching", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def probe(folder: Path) -> list[str]:
    """Return the exponential of 0, and how often numba found its code in the cache or did not.

    The copy is not measured: its lines would count as uncovered ones of the package.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment |= {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "cache")}
    ran = subprocess.run(
        [sys.executable, "-c", PROBE], check=True, capture_output=True, text=True, env=environment, cwd=folder
    )
    return ran.stdout.split()


def test_a_kernel_is_compiled_anew_when_a_file_that_it_uses_has_changed(copy: Path) -> None:
    assert probe(copy) == ["1.0", "0", "1"]
    assert probe(copy) == ["1.0", "1", "0"]
    helper = copy / "matchflow_matching" / "vectors.py"
    changed = helper.read_text().replace("0.5, 1.0, 1.0)", "0.5, 1.0, 2.0)")
    assert changed != helper.read_text()
    helper.write_text(changed)
    assert probe(copy) == ["2.0", "0", "1"]


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one")
    first = digest_of_sources(tmp_path)
    (tmp_path / "notes.txt").write_text("no source")
    assert digest_of_sources(tmp_path) == first
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    second = digest_of_sources(tmp_path)
    (tmp_path / "b.py").write_text("two")
    assert len({first, second, digest_of_sources(tmp_path)}) == 3


def test_every_kernel_carries_the_digest_of_the_package() -> None:
    assert digest_of_sources(PACKAGE) == SOURCES
    for kernel in (kernels.transport, kernels.weigh, compiled()(vectors.padded)):
        assert kernel._cache._cache_file._source_stamp == SOURCES
