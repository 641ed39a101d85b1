"""tfps beside other ways to train on CPUs, over networks of a chosen bandwidth.

In the order in which one reads them:

  systems.py      what is compared: a table
  hosts.py        hosts with a limited link each, out of Linux network namespaces
  lines.py        how the main process speaks with the programs on the hosts
  fleet.py        the processes of each family of systems, and one turn of a system
  turns.py        turns of all systems on one link
  tfps_chief.py, alone_worker.py, stock_chief.py, stock_server.py, mwms_worker.py, ddp_worker.py
                  those programs
  sizes.py, data.py, model_keras.py, model_torch.py
                  the same batches and the same model for all of them
  report.py       tables, bars, JSON, plot
  __main__.py     `python -m benchmarks.wire`
"""
