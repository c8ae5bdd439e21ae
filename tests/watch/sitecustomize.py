"""Write down every address outside this machine that Python connects to, or asks the name of; with CUT=1, refuse it.

Python reads this file by itself where PYTHONPATH names its folder; OUTSIDE names the file that is written.
"""

import os
import sys


def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0"):
        with open(os.environ["OUTSIDE"], "a") as record:
            record.write(f"{event} {host}\n")
        if os.environ.get("CUT") == "1":
            raise OSError(101, "Network is unreachable (tests/watch)")


sys.addaudithook(watch)
