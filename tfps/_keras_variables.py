"""Keras variables whose values are elsewhere: private names of Keras's `Variable`, as of 3.15.

A Keras variable keeps a `tf.Variable` in its attribute `_value`, and everything that Keras does
with the variable begins by reading this attribute. So a variable can be made to follow something:
its class becomes a subclass in which `_value` is a property that asks first. The `tf.Variable`
stays the same object throughout, because functions that were traced before have captured it.
"""

import contextlib
import gc
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfps import _keras_creation, _keras_models, _keras_optimizers

_FOLLOWED = "_tfps_followed"


class Followed(Protocol):
    """What a Keras variable follows."""

    def look(self) -> None:
        """Somebody is about to use the variable's `tf.Variable`, which must be filled now."""

    def written(self, value: tf.Tensor) -> None:
        """Somebody assigns a value outside of graphs, which must be `fill`ed in."""


def follow(variable: keras.Variable, followed: Followed) -> None:
    """Makes a variable ask before each use, until `unfollow`.

    Args:
      variable: any Keras variable, with or without a value.
      followed: whom it asks.
    """
    if not is_following(variable):
        variable.__class__ = _following(type(variable))
    vars(variable)[_FOLLOWED] = followed


def unfollow(variable: keras.Variable) -> None:
    """Gives a variable its own class again."""
    if is_following(variable):
        variable.__class__ = type(variable).__bases__[0]
        del vars(variable)[_FOLLOWED]


def is_following(variable: keras.Variable) -> bool:
    """Whether the variable asks before it is used."""
    return _FOLLOWED in vars(variable)


def follows_another(variable: keras.Variable) -> bool:
    """Whether the variable follows something that has a value for it, and no initializer."""
    return is_following(variable) and not is_unset(variable)


def bring(variable: keras.Variable) -> None:
    """Lets what a variable follows fill it now; a variable that follows nothing stays as it is."""
    if follows_another(variable):
        vars(variable)[_FOLLOWED].look()


_classes: dict[type, type] = {}


def _following(cls: type) -> type:
    if cls not in _classes:
        # Under the same name, because Keras and users print and save the names of classes.
        members = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, **_MEMBERS}
        _classes[cls] = type(cls.__name__, (cls,), members)
    return _classes[cls]


def _read_value(self):
    vars(self)[_FOLLOWED].look()
    return vars(self)["_value"]


def _write_value(self, value):
    vars(self)["_value"] = value


def _direct_assign(self, value):
    if tf.executing_eagerly():
        vars(self)[_FOLLOWED].written(tf.cast(value, self._dtype))
    else:
        super(type(self), self)._direct_assign(value)


def _reduce(self, protocol):
    del protocol
    # What is pickled or copied is an ordinary variable with the value of now.
    attributes = {**vars(self), "_value": self._value}
    del attributes[_FOLLOWED]
    return _made, (type(self).__bases__[0], attributes)


def _made(cls: type, attributes: dict[str, Any]) -> Any:
    """Makes an object with these attributes."""
    one: Any = object.__new__(cls)
    vars(one).update(attributes)
    return one


_MEMBERS = {
    "_value": property(_read_value, _write_value),
    "_direct_assign": _direct_assign,
    "__reduce_ex__": _reduce,
}


def content(variable: keras.Variable) -> Any:
    """The `tf.Variable` (or what stands for it) as it is, without asking; None if there is none."""
    return vars(variable).get("_value")


def put(variable: keras.Variable, held: Any) -> None:
    """Lets a variable hold something else in place of its `tf.Variable`."""
    unfollow(variable)
    vars(variable).update(_value=held, _initializer=None)


def fill(variable: keras.Variable, value: Any) -> None:
    """Puts a value into a variable without asking, whatever memory the variable has.

    Args:
      variable: any Keras variable.
      value: array or tensor of its shape and dtype.
    """
    with tf.init_scope():
        held = content(variable)
        if held is None:
            if is_unset(variable):
                unfollow(variable)
            vars(variable)["_initializer"] = None
            variable._initialize(tf.convert_to_tensor(value, variable._dtype))
        else:
            value = tf.cast(tf.convert_to_tensor(value), held.dtype)
            # Not `assign`, which would compare shapes with what `drop` has left.
            tf.raw_ops.AssignVariableOp(resource=held.handle, value=value)


def drop(variable: keras.Variable) -> None:
    """Frees the memory of a variable's value; `fill` must come before the next use."""
    held = content(variable)
    if isinstance(held, tf.Variable):
        with tf.init_scope():
            tf.raw_ops.AssignVariableOp(resource=held.handle, value=tf.zeros([0], held.dtype))


def tensor(variable: keras.Variable) -> tf.Tensor:
    """A variable's value without asking; it shares the variable's memory until that is written."""
    with tf.init_scope():
        return tf.convert_to_tensor(content(variable))


class _Unset:
    """What a variable without a value follows: its own initializer, once it is needed."""

    def __init__(self, variable: keras.Variable):
        self._variable = variable

    def look(self) -> None:
        initialize(self._variable)

    def written(self, value: tf.Tensor) -> None:
        unfollow(self._variable)
        fill(self._variable, value)


def build_without_memory(optimizer: keras.optimizers.Optimizer, variables: list) -> None:
    """Builds an optimizer whose slots take no memory until somebody looks at them.

    Args:
      optimizer: not built.
      variables: Keras variables, of whatever size.
    """
    with contextlib.ExitStack() as stack:
        for one in _keras_optimizers.nested(optimizer):
            stack.enter_context(_adding_unset(one))
            stack.enter_context(_anywhere(one))
            if isinstance(one, keras.optimizers.MultiOptimizer):
                stack.enter_context(_choosing(one, stack))
        optimizer.build(variables)


@contextlib.contextmanager
def _anywhere(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """A context in which an optimizer can be built, in whatever strategy's scope that is.

    On TensorFlow, Keras wants each slot beside its variable, which a strategy's scope allows for
    the strategy's own variables only.
    """
    name, attributes = "add_variable_from_reference", vars(optimizer)
    general = getattr(keras.optimizers.Optimizer, name)
    if name in attributes or getattr(type(optimizer), name) is not general:
        yield  # It has a way of its own, or is so already.
        return
    attributes[name] = getattr(_keras_optimizers.BaseOptimizer, name).__get__(optimizer)
    try:
        yield
    finally:
        del attributes[name]


@contextlib.contextmanager
def _adding_unset(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """A context in which what an optimizer adds has no value yet."""
    attributes = vars(optimizer)
    if "add_variable" in attributes:
        yield  # It is so already.
        return
    add = optimizer.add_variable

    def add_unset(*args, **kwargs):
        with _keras_creation.uninitialized():
            variable = add(*args, **kwargs)
        follow(variable, _Unset(variable))
        return variable

    attributes["add_variable"] = add_unset
    try:
        yield
    finally:
        del attributes["add_variable"]


@contextlib.contextmanager
def _choosing(
    several: keras.optimizers.MultiOptimizer, stack: contextlib.ExitStack
) -> Iterator[None]:
    """A context in which the optimizers that are chosen for variables enter `_adding_unset`."""
    attributes = vars(several)
    choose = several._optimizer_map

    def chosen(variable):
        one = choose(variable)
        if isinstance(one, keras.optimizers.Optimizer):
            stack.enter_context(_adding_unset(one))
            stack.enter_context(_anywhere(one))
        return one

    attributes["_optimizer_map"] = chosen
    try:
        yield
    finally:
        attributes["_optimizer_map"] = choose


def initialize(variable: keras.Variable) -> None:
    """Gives a variable that `is_unset` the value of its own initializer."""
    if content(variable) is None:
        unfollow(variable)
        variable._deferred_initialize()


def is_unset(variable: keras.Variable) -> bool:
    """Whether `build_without_memory` made the variable, and nobody has looked at it."""
    return isinstance(vars(variable).get(_FOLLOWED), _Unset)


def captured(variables: Iterable[keras.Variable]) -> list[keras.Variable]:
    """Those of the variables that traced functions read without asking.

    The step functions of Keras's own `fit`, `evaluate` and `predict` do not count; see
    `keras_functions_aside`.
    """
    handles = {}
    for variable in variables:
        if isinstance(held := content(variable), tf.Variable):
            handles[id(held.handle)] = variable
    found, kind = {}, tf.__internal__.FuncGraph
    for graph in [one for one in gc.get_objects() if type(one) is kind]:
        if graph.name not in _STEPS:
            for handle in graph.external_captures:
                if id(handle) in handles:
                    found[id(handle)] = handles[id(handle)]
    return list(found.values())


def captured_by(
    graph: tf.types.experimental.ConcreteFunction, variables: Iterable[keras.Variable]
) -> list[keras.Variable]:
    """Those of the variables that a graph reads without asking."""
    handles = {id(handle) for handle in graph.graph.external_captures}
    holding = [(v, content(v)) for v in variables]
    return [v for v, t in holding if isinstance(t, tf.Variable) and id(t.handle) in handles]


def held(variables: Iterable[keras.Variable]) -> list[keras.Variable]:
    """Those of the variables whose `tf.Variable` somebody else holds, who reads it without asking.

    Nothing in Keras or TensorFlow holds it beside its Keras variable: traced functions, tapes and
    checkpoints hold the Keras variable, the handle, or weak references.
    """
    found = []
    for variable in variables:
        attributes = vars(variable)
        is_made = isinstance(attributes.get("_value"), tf.Variable)
        if is_made and _references(attributes) > _ALONE:
            found.append(variable)
    return found


def _references(attributes: dict[str, Any]) -> int:
    return sys.getrefcount(attributes["_value"])


# How many references there are to what nobody else holds.
_ALONE = _references({"_value": object()})

_STEPS = {
    "one_step_on_data",
    "one_step_on_data_distributed",
    "multi_step_on_iterator",
    "multi_step_on_data",
}
_FUNCTIONS = ("train_function", "test_function", "predict_function")


@contextlib.contextmanager
def keras_functions_aside(model: keras.Model) -> Iterator[None]:
    """A context in which a model has none of the step functions that Keras traced before.

    Whoever calls Keras's own `predict` within gets a new one, whose tracing is noticed.
    """
    attributes = vars(model)
    kept, compilation = {f: attributes.get(f) for f in _FUNCTIONS}, _keras_models.compilation(model)
    attributes.update(dict.fromkeys(_FUNCTIONS))
    try:
        yield
    finally:
        if compilation == _keras_models.compilation(model):
            attributes.update({name: f for name, f in kept.items() if f is not None})
