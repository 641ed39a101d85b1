"""tfps beside all-reduce: TensorFlow's (mirrored and multi-worker) and PyTorch's.

In the order in which one reads them:

  networks.py     the models, their first weights and their batches, as numbers
  model_keras.py, model_torch.py
                  the same models in Keras and in PyTorch
  tfps_chief.py, mirrored.py, multiworker.py, ddp_worker.py, alone_worker.py
                  the programs that train them
  systems.py      what is compared: a table
  slowness.py     one worker ten times slower, by a limit of its processor time
  equality.py     whether the synchronous systems end with the same weights
  report.py       tables, JSON, plot
  __main__.py     `python -m benchmarks.allreduce`

Hosts, processes and turns are those of `benchmarks.wire`.
"""
