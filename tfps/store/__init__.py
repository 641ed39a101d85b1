"""What lives on the parameter servers: placement, buckets, tables, and how a push changes them.

May import: errors, _keras_creation, _keras_optimizers, _keras_variables, _tf, _tf_resources,
_tf_tracing, cluster, compression, embeddings, model.

On each server an update is atomic; what crosses the network is only what a plan says. Everything
that is kept there can be exported and restored, whatever the number of servers. Steps take resource
handles as arguments, so that a variable can be replaced without tracing anew.
"""
