"""The layer: an embedding of ids of any value, whose table grows with the ids that it meets."""

import warnings
import zlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras_creation, _keras_optimizers, _keras_variables, errors
from tfps.embeddings import bags
from tfps.embeddings.initial_rows import InitialRows
from tfps.embeddings.keyed_rows import carry_keys
from tfps.embeddings.keys import keys_of, require_ids
from tfps.embeddings.local_table import NOTHING, Held, Keys, LocalTable, dealt, rows_here
from tfps.embeddings.settings import TableSettings

_MARK = "_tfps_hash_layer"


class _NoRows(keras.initializers.Initializer):
    """Zeros: rows are made when their keys are let in."""

    stays_on_chief = True

    def __call__(self, shape: Any, dtype: Any = None) -> tf.Tensor:
        return tf.zeros(shape, dtype)


@keras.saving.register_keras_serializable("tfps")
class HashEmbedding(keras.layers.Layer):
    """Looks up a trained row for each id, where ids are any integers or strings.

    A row comes into being when a step of training names its id. Under `tfps.Trainer` the rows are
    on the parameter servers, each id on the server that its hash says, and only their number is
    limited by the servers' memory. In plain Keras they are in this process. An id without a row has
    its initial row, which depends on the seed and the id alone: evaluation and prediction change
    nothing.

    Attributes:
      embeddings: float32 [rows, output_dim], the rows that this process has. After training on
        servers it has those that fit, the rows named most often first.
      optimizer: updates the rows on servers; None for the one that the model is compiled with.
      settings: what the arguments say.
    """

    def __init__(
        self,
        output_dim: int,
        expected: int,
        capacity: int | None = None,
        admit_after: int = 1,
        expire_after: int | None = None,
        evict: str = "lfu",
        row_dtype: str = "float32",
        optimizer: Any = None,
        initializer: Any = "uniform",
        combiner: str | None = None,
        mask_zero: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ):
        """Makes a layer; rows come later.

        Args:
          output_dim: elements of a row.
          expected: number of ids for which room is reserved, on all servers together. More ids are
            no error: the table grows to 17 times that.
          capacity: rows of a server, at most; None for no limit but the one above.
          admit_after: how many updates must have named an id before it has a row.
          expire_after: a row that was named by none of so many updates is as if it had never been;
            None for never.
          evict: which row goes when there is no room for a new one: that of the id that the fewest
            updates named ("lfu"), or that was not named for longest ("lru"). With "none" the new
            id is refused: it goes on without a row.
          row_dtype: how servers keep rows: "float32", "bfloat16" or "int8", with stochastic
            rounding. The optimizer's state is float32.
          optimizer: what updates the rows on servers, a Keras optimizer that is elementwise, its
            name or its configuration; None for the one that the model is compiled with. Its
            learning rate may be set at any time. Plain Keras, whose `fit` has one optimizer, does
            not use it; `keras.optimizers.MultiOptimizer` does the same there.
          initializer: of a row: RandomUniform, RandomNormal, TruncatedNormal, Zeros, Ones or
            Constant of Keras.
          combiner: "sum", "mean" or "sqrtn" to return one row for the ids of the last axis; None to
            return a row for each id.
          mask_zero: whether the id 0 stands for no id; layers after this one are told so, and a
            combiner leaves it out.
          seed: of the initial rows; by default the initializer's, or one made of the layer's name.
          **kwargs: of `keras.layers.Layer`.

        Raises:
          ConfigError: an argument is out of its range.
        """
        super().__init__(**kwargs)
        self.supports_jit = False  # XLA has no hash tables.
        self.autocast = False  # Ids stay what they are.
        self.supports_masking = mask_zero
        self.output_dim, self.mask_zero = output_dim, mask_zero
        self.combiner = bags.checked(combiner)
        self.initializer = keras.initializers.get(initializer)
        given = self.initializer.get_config().get("seed")
        own = zlib.crc32(self.name.encode())
        self.optimizer = None if optimizer is None else keras.optimizers.get(optimizer)
        self.seed = seed if seed is not None else given if isinstance(given, int) else own
        self.settings = TableSettings(
            output_dim,
            InitialRows.of(self.initializer, self.seed),
            expected,
            capacity,
            admit_after,
            expire_after,
            evict,
            row_dtype,
        ).checked()
        self._local: LocalTable | None = None

    def build(self, input_shape: Any = None) -> None:
        """Makes the variable of the rows of this process."""
        del input_shape
        shape = (rows_here(self.settings), self.output_dim)
        self.embeddings = self.add_weight(
            shape=shape, initializer=_NoRows(), dtype="float32", autocast=False, name="embeddings"
        )
        setattr(self.embeddings, _MARK, self)
        carry_keys(self.embeddings, self)

    @property
    def local(self) -> LocalTable:
        """The keys of the rows of this process."""
        if self._local is None:
            self._local = LocalTable(self.settings, self.embeddings)
        return self._local

    def given(self) -> Held:
        """The keys of now, for somebody who is given the rows."""
        # A table that is made before the process connects would have to be made anew.
        return NOTHING if self._local is None else self._local.given()

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [n], the keys of this process, in no order; float32 [n, output_dim], rows).

        What has expired is left out. For all that servers have see `tfps.Trainer.table`.
        """
        keys, rows = self._held()
        expiry = self.settings.expire_after
        lives = slice(None) if expiry is None else self.local.clock - keys.lasts <= expiry
        return keys.keys[lives], rows[lives]

    def _held(self) -> tuple[Keys, np.ndarray]:
        """The keys of this process and their rows, of one moment."""
        # While `fit` runs, to look at the variable brings rows from the servers, and their keys.
        every = np.asarray(self.embeddings)
        keys = self.local.keys()
        return keys, every[keys.slots]

    def call(
        self, inputs: Any, weights: Any = None, mask: Any = None, training: bool | None = None
    ) -> tf.Tensor:
        """Looks up rows.

        Args:
          inputs: integers or strings of any shape; a `tf.RaggedTensor` with a combiner.
          weights: of the ids of a bag, of their shape; None for 1.
          mask: bool of the shape of `inputs`: which ids a combiner takes; None for all.
          training: whether ids without a row get one, unless the layer is frozen.

        Returns:
          [*shape, output_dim]; with a combiner without the last axis of the shape.
        """
        valid = bags.valid(inputs, mask, self.mask_zero)
        bag = bags.Bag.of(inputs, weights, valid, self.combiner)
        rows = tf.cast(self._rows(keys_of(bag.ids), training), self.compute_dtype)
        return bag.combined(rows)

    def _rows(self, keys: tf.Tensor, training: bool | None) -> tf.Tensor:
        # Where the rows are on servers, a step replaces the lookup; see `model/lookups.py`.
        find = getattr(self.embeddings, "sparse_read", None)
        if find is not None:
            return find(keys)
        flat = tf.reshape(keys, [-1])
        # In a stateless scope somebody asks what a step would do.
        if training and self.trainable and not _keras_creation.in_stateless_scope():
            self._warn()
            rows = self.local.trained(self.embeddings.value, flat)
        elif self._local is None and _keras_variables.content(self.embeddings) is None:
            # Keras builds a model of classes, and asks for shapes before there are variables.
            rows = tf.zeros([tf.size(keys), self.output_dim])
        else:
            rows = self.local.read(flat)
        rows = tf.reshape(rows, tf.concat([tf.shape(keys), [self.output_dim]], 0))
        rows.set_shape([*keys.shape, self.output_dim])
        return rows

    def _warn(self) -> None:
        if self.optimizer is not None:
            warnings.warn(
                f"{self.name} has optimizer={type(self.optimizer).__name__}, which is for training "
                "on servers; here the optimizer that the model was compiled with updates the rows. "
                "Compile with keras.optimizers.MultiOptimizer to have both in plain Keras",
                stacklevel=2,
            )

    def compute_mask(self, inputs: Any, previous: Any = None) -> Any:
        """Which ids stand for one; None without `mask_zero`, or with a combiner."""
        del previous
        if not self.mask_zero or self.combiner:
            return None
        if keras.backend.standardize_dtype(inputs.dtype) == "string":
            raise errors.ConfigError(
                f"{self.name} has mask_zero=True, but its ids are strings, of which none is 0; set "
                "mask_zero=False, and give a mask to the layers after it, or integers"
            )
        return keras.ops.not_equal(inputs, 0)

    def compute_output_spec(self, inputs: Any, *others: Any, **named: Any) -> Any:
        """The shape and dtype of the rows; see `call`."""
        require_ids(inputs.dtype)
        return super().compute_output_spec(inputs, *others, **named)

    def compute_output_shape(self, input_shape: Any, *others: Any, **named: Any) -> tuple:
        """The shape of the rows; see `call`."""
        del others, named
        shape = tuple(input_shape[:-1] if self.combiner else input_shape)
        return (*shape, self.output_dim)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        settings = self.settings
        return {
            **super().get_config(),
            "output_dim": self.output_dim,
            "expected": settings.expected,
            "capacity": settings.capacity,
            "admit_after": settings.admit_after,
            "expire_after": settings.expire_after,
            "evict": settings.evict,
            "row_dtype": settings.row_dtype,
            "optimizer": self.optimizer and keras.optimizers.serialize(self.optimizer),
            "initializer": keras.initializers.serialize(self.initializer),
            "combiner": self.combiner,
            "mask_zero": self.mask_zero,
            "seed": self.seed,
        }

    def get_build_config(self) -> dict[str, Any] | None:
        """As Keras, and whether there are slots of an optimizer of this layer's own."""
        config = super().get_build_config() or {}
        return {**config, "with_slots": bool(self.optimizer and self.optimizer.built)}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """As Keras; slots that were saved have a place to be loaded into."""
        config = dict(config)
        with_slots = config.pop("with_slots", False)
        super().build_from_config(config)
        if with_slots and self.built and self.optimizer and not self.optimizer.built:
            self.optimizer.build([self.embeddings])

    def save_own_variables(self, store: Any) -> None:
        """Writes the keys and their rows to a file of Keras."""
        keys, rows = self._held()
        for name, array in keys._asdict().items():
            store[name] = array
        store["rows"] = rows
        store["clock"] = self.local.clock

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` has written.

        Keys that the layer has already keep their rows, so the optimizer's state stays theirs;
        unless the file has such a state, which is in the order of the file's rows.
        """
        keys = Keys(*(store[name][...] for name in Keys._fields))
        numbered = _keras_optimizers.is_saved_in(store) or bool(
            self.optimizer and self.optimizer.built
        )
        taken = self.local.take(keys, int(store["clock"][...]), numbered)
        rows = dealt(keys.keys, store["rows"][...], taken, self.embeddings.shape[0])
        self.embeddings.assign(tf.constant(rows))
        self.local.replaced += 1


def layer_of(variable: keras.Variable) -> HashEmbedding | None:
    """The layer whose rows a variable has; None for every other variable."""
    return vars(variable).get(_MARK)
