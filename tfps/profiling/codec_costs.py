"""What codecs cost for the buckets of a plan."""

import math
from collections.abc import Mapping, Sequence

import tensorflow as tf

from tfps.compression import Codec, parse, with_feedback
from tfps.compression.base import Identity
from tfps.planning.profile import CodecCost
from tfps.profiling.clock import timed
from tfps.store.channel import Channel
from tfps.store.plan import Plan

# Bytes of values on which codecs are timed, at most; more costs in proportion.
_TIMED = 4 << 20


def cost(
    plan: Plan, text: str, weights: bool, rows: Mapping[int, int], seconds: float
) -> CodecCost:
    """Times a codec on the largest bucket, and counts its bytes for all of them.

    Args:
      plan: of the model, on one ps.
      text: of the codec.
      weights: whether parameters pass through it, and not gradients.
      rows: table -> how many of its rows a batch looks up.
      seconds: to spend on each of encoding and decoding.
    """
    codec = parse(text) if weights else with_feedback(parse(text))
    channels = [_channels(plan, bucket, codec) for bucket in range(len(plan.buckets))]
    size = tuple(sum(c.payload_bytes for c in parts) for parts in channels)
    if codec.is_identity:
        return CodecCost(size, 0.0, 0.0, 0.0, _row_bytes(plan, codec, weights, rows))
    coded = [c for parts in channels for c in parts if not c.codec.is_identity]
    if not coded:  # All variables are smaller than what the codec takes.
        return CodecCost(size, 0.0, 0.0, 0.0, _row_bytes(plan, codec, weights, rows))
    largest = _timed_part(max(coded, key=lambda c: math.prod(c.shape)))
    encode, decode, state = _time(largest, seconds)
    values = sum(b.nbytes for b in plan.buckets)
    share = sum(4 * math.prod(c.shape) for c in coded) / values
    return CodecCost(
        bytes=size,
        encode=share * encode,
        decode=share * decode,
        state=share * state,
        row_bytes=_row_bytes(plan, codec, weights, rows),
    )


def _channels(plan: Plan, i: int, codec: Codec) -> list[Channel]:
    """How a bucket would travel: large variables through the codec, small ones as they are."""
    bucket = plan.buckets[i]
    if not tf.as_dtype(bucket.dtype).is_floating or bucket.kind.treatment.state:
        return [plan.exact(i)]
    small, shapes = 0, []
    for shard in bucket.shards:
        spec = plan.specs[shard.variable]
        if spec.size * spec.itemsize < codec.min_bytes or codec.is_identity:
            small += shard.size
            continue
        row = spec.size // spec.shape[0] if spec.shape else 1
        shapes.append((shard.size // row, *spec.shape[1:]))
    found = []
    if small:
        found.append(Channel(Identity(), (small,), bucket.dtype, ((small,),)))
    if shapes:
        flat = (sum(math.prod(s) for s in shapes),)
        found.append(
            Channel(codec, flat, bucket.dtype, tuple(shapes) if codec.matrices else (flat,))
        )
    return found


def _timed_part(channel: Channel) -> Channel:
    """As many of the pieces of a channel as are enough to time."""
    if len(channel.pieces) == 1:
        if channel.codec.matrices or 4 * math.prod(channel.shape) <= _TIMED:
            return channel
        flat = (_TIMED // 4,)
        return Channel(channel.codec, flat, channel.dtype, (flat,))
    pieces: list[tuple[int, ...]] = []
    for piece in sorted(channel.pieces, key=math.prod, reverse=True):
        if pieces and 4 * sum(math.prod(p) for p in (*pieces, piece)) > _TIMED:
            break
        pieces.append(piece)
    flat = (sum(math.prod(p) for p in pieces),)
    return Channel(channel.codec, flat, channel.dtype, tuple(pieces))


def _time(channel: Channel, seconds: float) -> tuple[float, float, float]:
    """(encode, decode, state): seconds, and bytes of state, per byte of values."""
    size = 4 * math.prod(channel.shape)
    tensor = tf.random.stateless_normal(channel.shape, [1, 2]) * 1e-3
    tensor = tf.cast(tensor, channel.dtype)
    tracks = channel.codec.tracks_receiver
    copy = tf.zeros(channel.shape, channel.dtype)

    @tf.function(autograph=False)
    def encode(tensor, state, seed):
        if not tracks:
            return channel.encode(tensor, state, seed)
        # The sender of differences takes the payload into its copy, as the receiver does.
        payload, state = channel.encode(tensor - copy, state, seed)
        return (payload, copy + channel.decode(payload)), state

    @tf.function(autograph=False, jit_compile=channel.codec.jit or None)
    def decode(payload):
        return copy + channel.decode(payload[0]) if tracks else channel.decode(payload)

    seed = tf.constant([0, 0])
    state = channel.initial_state()
    payload, state = encode(tensor, state, seed)
    held = {"state": state}

    def one() -> Sequence[tf.Tensor]:
        sent, held["state"] = encode(tensor, held["state"], seed)
        return tf.nest.flatten(sent)

    encoding = timed(one, seconds)
    decoding = timed(lambda: decode(payload), seconds)
    kept = sum(int(tf.size(t)) * t.dtype.size for t in tf.nest.flatten(state)) + size * tracks
    return encoding.seconds / size, decoding.seconds / size, kept / size


def _row_bytes(plan: Plan, codec: Codec, weights: bool, rows: Mapping[int, int]) -> float:
    """Bytes of the rows that a step sends; a push has the ids twice, once to look them up."""
    total = 0.0
    for i, count in rows.items():
        spec = plan.specs[i]
        variable = plan.variables[i]
        small = 4 * math.prod(variable.shape) < codec.min_bytes  # Then rows go as they are.
        own = Identity() if small else codec
        one = own.for_rows(weights).payload_bytes((1, *spec.shape[1:]), spec.dtype)
        total += count * (one + (0 if weights else 16))
    return total
