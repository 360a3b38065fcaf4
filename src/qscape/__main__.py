import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, whose files no command imports

from qscape.cli import entry

entry()
