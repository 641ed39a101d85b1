"""What runs on each host of a job: it starts tasks, passes on what they write, ends all of it.

The launcher sends the sources of this package over the standard input of a Python on the host
(`launch/machine.py`), so nothing has to be installed there, and then speaks with it in lines of
JSON (`launch/host.py`).

May import: the standard library; what is written here must run on other versions of Python too
(3.7 and later), because a wrong version has to be told.

    agent ─┬─ keeper ── task ── whatever the task starts
           └─ keeper ── task

A task's keeper is a fork of the agent. Agent and keepers are subreapers: a process whose parent has
ended becomes the child of the nearest subreaper above it, whatever session or group it has moved
to. So all that a task has ever started is found below its keeper, which kills it when the task has
ended or the agent is gone, and below the agent, if a keeper is killed.
"""
