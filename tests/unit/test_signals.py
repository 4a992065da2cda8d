"""A process that is told to end at any step of its wait ends."""

import subprocess
import sys

WAITS = """
import signal, sys
from luthier.signals import ending

def told(after):
    steps = 0
    def trace(frame, event, argument):
        nonlocal steps
        steps += 1
        if steps == after:
            signal.raise_signal(signal.SIGTERM)
        return trace
    return trace

ended = ending()
for after in range(1, 60):
    sys.settrace(told(after))
    signal.alarm(5)
    try:
        number = ended.get(timeout=0.01)
    except Exception:
        number = None
    sys.settrace(None)
    signal.raise_signal(signal.SIGINT)
    assert ended.get() in (signal.SIGINT, signal.SIGTERM)
    while not ended.empty():
        ended.get()
print("ended")
"""


def test_a_signal_at_any_step_of_the_wait_ends_it() -> None:
    waits = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, timeout=60, check=False)
    assert (waits.returncode, waits.stdout) == (0, "ended\n"), waits.stderr
