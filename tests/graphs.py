"""What waits for what in a traced function."""

import tensorflow as tf


def conditional_devices(function) -> set[str]:
    """The devices of what is done within the conditionals and loops of a concrete function."""
    library = {f.signature.name: f for f in function.graph.as_graph_def().library.function}
    names = ("then_branch", "else_branch", "cond", "body")
    top = [
        op.get_attr(name).name
        for op in function.graph.get_operations()
        if op.type in ("If", "StatelessIf", "While", "StatelessWhile")
        for name in names
        if name in op.node_def.attr
    ]
    return {node.device for name in top for node in library[name].node_def}


def sources(*ops) -> set[tf.Operation]:
    """Operations of a graph, and all that they wait for."""
    found, new = set(), set(ops)
    while new:
        found |= new
        new = {t.op for op in new for t in op.inputs} | {c for op in new for c in op.control_inputs}
        new -= found
    return found
