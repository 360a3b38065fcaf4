"""Breaks runs, files, environments and command lines at random, and checks that nothing is lost.

`python -m tests.faults --minutes 60` tries for an hour; `make test-all` tries a little of every area.
"""
