"""A profile whose figures are round, so that tests can compute what is to come out."""

from tfps.planning.profile import Bucket, CodecCost, Dispatch, Profile, Transport

MB = 1_000_000
COMPUTE = 0.050
ENCODE, DECODE = 1e-9, 0.5e-9  # s per byte, of the codec "int8"
UPDATE = 2e-9
BUCKETS = (*(Bucket(4 * MB, False, True) for _ in range(4)), Bucket(8 * MB, True, True))
ROWS = 200_000  # bytes that a step's rows have


def cost(share: float, encode: float = 0.0, decode: float = 0.0, state: float = 0.0) -> CodecCost:
    sizes = tuple(int(b.bytes * share) for b in BUCKETS)
    return CodecCost(sizes, encode, decode, state, ROWS * share)


def profile(**changes) -> Profile:
    """A model of 24 MB, of which steps move 16 MB and rows of a table."""
    one = Profile(
        model="round",
        cores=2,
        examples=10,
        steps_per_call=1,
        compute=COMPUTE,
        threads=1.0,
        spread=0.0,
        first_gradient=1 / 3,
        update=UPDATE,
        add=0.5e-9,
        slots=2.0,
        buckets=BUCKETS,
        push={
            "identity": cost(1),
            "bfloat16": cost(0.5, ENCODE / 4, DECODE / 4),
            "int8": cost(0.25, ENCODE, DECODE, 1.0),
            "topk:0.01": cost(0.02, 2 * ENCODE, DECODE, 1.0),
        },
        pull={
            "identity": cost(1),
            "bfloat16": cost(0.5, ENCODE / 4, DECODE / 4),
            "int8": cost(0.25, ENCODE, DECODE),
        },
        transport=Transport(0.0, 0.0, 0.0, 0.0),
        dispatch=Dispatch(0.0, 0.0, 0.0),
    )
    return one.replace(**changes)
