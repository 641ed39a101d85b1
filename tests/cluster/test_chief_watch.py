"""What a server concludes from what it sees of its chief."""

from tfps.cluster.chief_watch import ChiefWatch
from tfps.cluster.greeting import Answer

YES, SILENT, GONE = Answer.ANSWERS, Answer.SILENT, Answer.GONE


def conclusion(looks, lease=15.0):
    """The first conclusion from (time, answer) in order, with its time; None if there is none."""
    watch = ChiefWatch(lease, 0.0)
    for now, answer in looks:
        if why := watch.note(answer, now):
            return now, why
    return None


def every(seconds, begin, end, answer):
    return [(now, answer) for now in range(begin, end, seconds)]


def test_a_chief_that_has_not_come_is_waited_for():
    assert conclusion(every(2, 0, 1000, GONE)) is None
    assert conclusion(every(4, 0, 1000, SILENT)) is None


def test_a_chief_that_answers_now_and_then():
    looks = [(now, YES if now % 12 == 0 else SILENT) for now in range(0, 1000, 4)]
    assert conclusion(looks) is None


def test_a_chief_that_died():
    now, why = conclusion([*every(2, 0, 10, YES), *every(2, 10, 100, GONE)])
    assert now == 14
    assert "died" in why


def test_a_chief_that_listens_again_at_once():
    """As when it makes its strategy anew."""
    assert conclusion([(0, YES), (2, GONE), (4, YES), (6, GONE), (8, YES)]) is None


def test_a_chief_that_is_silent_for_the_lease():
    looks = [*every(2, 0, 10, YES), *every(4, 12, 100, SILENT)]
    assert conclusion(looks) == (24, "has not answered for 16 s")
    assert conclusion(looks, lease=60.0) == (72, "has not answered for 64 s")


def test_a_server_that_was_frozen():
    looks = [*every(2, 0, 10, YES), (50, YES)]
    assert conclusion(looks) == (
        50,
        "has gone on without this server, which was frozen for 42 s",
    )
    assert conclusion(looks, lease=60.0) is None


def test_a_server_that_was_frozen_before_the_chief_came():
    assert conclusion([(0, GONE), (100, YES), (102, YES)]) is None
