"""What lives on the parameter servers: placement, buckets, tables, and how a push changes them.

May import: errors, _keras, _tf, cluster, compression, model.

On each server an update is atomic; what crosses the network is only what a plan says.
"""
