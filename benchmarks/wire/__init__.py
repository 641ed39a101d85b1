"""tfps beside other ways to train on CPUs, over networks of a chosen bandwidth.

In the order in which one reads them:

  systems.py      what is compared: a table
  hosts.py        hosts with a limited link each, out of Linux network namespaces
  lines.py        how the main process speaks with the programs on the hosts
  program.py      a process on a host
  family.py       the processes that systems of one family share, and one turn of a system
  processor.py    the processor time that processes take, by role
  starts.py       what starts the processes of each family
  fleet.py        all families on one network
  turns.py        turns of all systems on one link
  tfps_chief.py, alone_worker.py, stock_chief.py, stock_server.py, mwms_worker.py, ddp_worker.py
                  those programs
  sizes.py, data.py, model_keras.py, model_torch.py
                  the same batches and the same model for all of them
  report.py       tables, bars, JSON, plot
  __main__.py     `python -m benchmarks.wire`

`benchmarks.allreduce` uses all of this too. What only the programs and commands of both share is
in `benchmarks/`: `command.py`, `timing.py`, `fit_clock.py`, `torch_worker.py`.
"""
