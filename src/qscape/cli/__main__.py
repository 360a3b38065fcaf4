from qscape.cli import entry

entry()
