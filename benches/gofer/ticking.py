"""Runs the reference pod's program (tests/pod/count.py) so that it counts a hundred times a second, and says when.

Usage: ticking.py COUNT.py [MODEL.safetensors]
"""

import builtins
import runpy
import sys
import time

sleep, say = time.sleep, print
time.sleep = lambda _: sleep(0.01)
builtins.print = lambda *words, **how: say(f"{time.time():.6f}", *words, **how)
del sys.argv[0]
runpy.run_path(sys.argv[0])
