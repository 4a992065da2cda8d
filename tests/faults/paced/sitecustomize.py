"""Has each run of a graph take longer in a server, by LUTHIER_PACE_S, without taking a processor for it.

Python imports this by itself where the folder is on its path.
"""

import os
import sys
import time

PACE_S = float(os.environ["LUTHIER_PACE_S"])

if "luthier.worker" not in sys.orig_argv and "luthier.worker.trainer" not in sys.orig_argv:
    from onnxruntime import InferenceSession

    run = InferenceSession.run

    def paced(self, *arguments):  # type: ignore[no-untyped-def]
        time.sleep(PACE_S)
        return run(self, *arguments)

    InferenceSession.run = paced
