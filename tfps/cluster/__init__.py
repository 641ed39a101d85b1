"""Tasks of a cluster: how they are described, start, end and fail; and calls on workers.

May import: errors, exit_codes, _tf, _tf_functions, _tf_members, _tf_resources,
_tf_busy, _tf_copies.

Every wait here has a limit and says what it waits for; a lost task becomes an error of tfps that
names the task and its address.
"""
