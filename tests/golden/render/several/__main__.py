"""Starts this bundle: `python3 THIS serve|predict|verify|detect|unpack`."""
# Has to parse under CPython 2.7 as well, to say what is wrong there.

import os
import sys

MINIMUM = (3, 8)

keeps_code = not sys.dont_write_bytecode
sys.dont_write_bytecode = True
if sys.version_info[:2] < MINIMUM:
    sys.stderr.write(
        "error: this bundle needs CPython %d.%d or later, and this is " % MINIMUM
        + "%d.%d\n\nhint: look for another one with `ls /usr/bin/python3*`\n" % sys.version_info[:2]
    )
    sys.exit(3)

root = os.path.dirname(os.path.abspath(__file__))
if keeps_code and sys.argv[1:2] in (["serve"], ["predict"]):
    from runtime import codecache

    codecache.install(root, globals()["__loader__"])

from runtime.main import main  # noqa: E402 - only a new enough interpreter can read it

sys.exit(main(sys.argv[1:], root))
