"""Answer pickled work from stdin on stdout, the Triton kernel in Triton's interpreter; see matchers_under_test.

A process of its own, because Triton decides at its import whether functions are compiled or interpreted.
"""

from __future__ import annotations

import os
import pickle
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
from matchers_under_test import Answer, OnDevice, Work

from matchflow_matching import MatchingError


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    matcher = OnDevice(device="cpu", engine="triton")
    while True:
        try:
            work: Work = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: Answer | Exception
        try:
            # The interpreter computes in NumPy, and on a GPU underflow and 1 / 0 are no errors.
            with np.errstate(all="ignore"):
                answer = matcher.match(work)
        except MatchingError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
