"""How the states that several workers have of one metric variable make one state.

A metric variable that is a sum over batches is a sum over workers, a maximum over batches is a
maximum over workers. Which it is shows in the graph that updates it.
"""

import enum
from collections.abc import Callable, Sequence

import tensorflow as tf


class Combination(enum.Enum):
    """What is done with the states of several workers."""

    SUM = "sum"
    MAXIMUM = "maximum"
    MINIMUM = "minimum"
    MEAN = "mean"
    FIRST = "first"
    UNKNOWN = "unknown"


# Forms that a tensor may have, each for the index of a variable: "the variable plus something",
# "the largest of the variable and something". The variable itself has all three.
_Form = tuple[int, frozenset[Combination]]
_ITSELF = frozenset({Combination.SUM, Combination.MAXIMUM, Combination.MINIMUM})
_NONE: _Form = (-1, frozenset())

_PASSED_ON = frozenset(
    {
        *("Identity", "StopGradient", "PreventGradient", "Snapshot", "CheckNumerics"),
        *("EnsureShape", "Reshape", "Squeeze", "ExpandDims", "Cast"),
    }
)
# Operations on the variable (in whatever place) and on things that no metric variable is part of.
_EITHER = {
    "Add": Combination.SUM,
    "AddV2": Combination.SUM,
    "AddN": Combination.SUM,
    "Maximum": Combination.MAXIMUM,
    "LogicalOr": Combination.MAXIMUM,
    "Minimum": Combination.MINIMUM,
    "LogicalAnd": Combination.MINIMUM,
}
# Operations whose first input is the variable.
_FIRST_INPUT = {
    "Sub": Combination.SUM,
    "TensorScatterAdd": Combination.SUM,
    "TensorScatterSub": Combination.SUM,
    "TensorScatterMax": Combination.MAXIMUM,
    "TensorScatterMin": Combination.MINIMUM,
}
_SELECTIONS = ("Select", "SelectV2")
_GREATER = ("Greater", "GreaterEqual")
_LESS = ("Less", "LessEqual")


def combinations(before: Sequence[tf.Tensor], after: Sequence[tf.Tensor]) -> list[Combination]:
    """Finds in a graph how the states of variables combine.

    Args:
      before: the variables' values before a batch, placeholders of a graph.
      after: per variable, its value after the batch, a tensor of the same graph.

    Returns:
      Per variable, `SUM`, `MAXIMUM`, `MINIMUM` or `UNKNOWN`. A variable that is left as it is
      counts as a sum.
    """
    form_of = _analysis(before)
    forms = [form_of(tensor) for tensor in after]
    found = []
    for i, (index, kinds) in enumerate(forms):
        kinds = kinds if index == i else frozenset()
        # In the order of the enumeration, so that a variable that is left alone is a sum.
        found.append(next((k for k in Combination if k in kinds), Combination.UNKNOWN))
    return found


def _analysis(before: Sequence[tf.Tensor]) -> Callable[[tf.Tensor], _Form]:
    """Returns a function that gives the form of a tensor."""
    forms: dict[int, _Form] = {id(t): (i, _ITSELF) for i, t in enumerate(before)}
    reached = operations_after(before)

    def form_of(tensor: tf.Tensor) -> _Form:
        if id(tensor) not in forms:
            forms[id(tensor)] = _NONE if len(tensor.op.outputs) > 1 else of_op(tensor.op)
        return forms[id(tensor)]

    def depends(tensor: tf.Tensor) -> bool:
        return id(tensor) in forms or tensor.op in reached

    def of_op(op: tf.Operation) -> _Form:
        inputs = list(op.inputs)
        variable = [t for t in inputs if depends(t)]
        if op.type in _PASSED_ON and variable == inputs[:1] and _keeps_values(op):
            return form_of(inputs[0])
        if op.type in _EITHER and len(variable) == 1:
            return _narrowed(form_of(variable[0]), _EITHER[op.type])
        if op.type in _FIRST_INPUT and len(variable) == 1 and variable[0] is inputs[0]:
            return _narrowed(form_of(inputs[0]), _FIRST_INPUT[op.type])
        if op.type in _SELECTIONS:
            return of_selection(*inputs)
        return _NONE

    def of_selection(condition: tf.Tensor, chosen: tf.Tensor, other: tf.Tensor) -> _Form:
        if not depends(condition):
            if not (depends(chosen) and depends(other)):
                return _NONE
            (i, kinds), (k, more) = form_of(chosen), form_of(other)
            return (i, kinds & more) if i == k else _NONE
        # The larger of two: `where(x > largest, x, largest)`.
        compared = list(condition.op.inputs)
        variable = [t for t in (chosen, other) if depends(t)]
        if len(variable) != 1 or condition.op.type not in _GREATER + _LESS:
            return _NONE
        in_order = _alike(compared, [chosen, other])
        if not in_order and not _alike(compared, [other, chosen]):
            return _NONE
        larger = (condition.op.type in _GREATER) == in_order
        kind = Combination.MAXIMUM if larger else Combination.MINIMUM
        return _narrowed(form_of(variable[0]), kind)

    return form_of


def operations_after(tensors: Sequence[tf.Tensor]) -> set[tf.Operation]:
    """The operations of a graph that compute with tensors, or with what is computed of them."""
    todo = [op for t in tensors for op in t.consumers()]
    reached = set()
    while todo:
        op = todo.pop()
        if op not in reached:
            reached.add(op)
            todo += [consumer for t in op.outputs for consumer in t.consumers()]
    return reached


def _alike(some: Sequence[tf.Tensor], others: Sequence[tf.Tensor]) -> bool:
    """Whether tensors are computed in the same way of the same tensors."""
    return len(some) == len(others) and all(
        a is b
        or (
            not a.op.op_def.is_stateful
            and (a.op.type, a.value_index) == (b.op.type, b.value_index)
            and a.op.type != "Placeholder"
            and a.op.node_def.attr == b.op.node_def.attr
            and _alike(a.op.inputs, b.op.inputs)
        )
        for a, b in zip(some, others, strict=True)
    )


def _keeps_values(op: tf.Operation) -> bool:
    """Whether values go through the operation but for rounding: a cast may cut off fractions."""
    before, after = op.inputs[0].dtype, op.outputs[0].dtype
    return before == after or (before.is_floating and after.is_floating)


def _narrowed(form: _Form, kind: Combination) -> _Form:
    index, kinds = form
    return index, kinds & {kind}
