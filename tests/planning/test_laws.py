"""What must hold of every simulation, whatever the figures."""

import itertools
import math

import pytest

from tests.planning.profiles import (
    BUCKETS,
    COMPUTE,
    DECODE,
    ENCODE,
    ROWS,
    UPDATE,
    profile,
)
from tfps.planning.fleet import GOODPUT, Fleet
from tfps.planning.prediction import simulate
from tfps.planning.profile import Dispatch, Transport
from tfps.planning.setting import Setting

MOVED = sum(b.bytes for b in BUCKETS if not b.table)
WHOLE = sum(b.bytes for b in BUCKETS)
FREE = {"bandwidth": "none", "latency": "0"}
SETTINGS = [
    Setting(),
    Setting(overlap=1),
    Setting("int8", "int8", 2),
    Setting("topk:0.01", "int8", 1, "bounded:2"),
    Setting("int8", "bfloat16", 0, "sync"),
    Setting("topk:0.01", "int8", 0, "local:4,merge=each,delay=2"),
    Setting("int8", "int8", 0, "local:4"),
]
ids = pytest.mark.parametrize("setting", SETTINGS, ids=str)


def test_one_worker_without_a_network_takes_the_sum_of_its_parts():
    found = simulate(profile(), Fleet(1, 1, **FREE), Setting())
    assert found.step == pytest.approx(COMPUTE + WHOLE * UPDATE, rel=1e-6)
    found = simulate(profile(first_gradient=1.0), Fleet(1, 1, **FREE), Setting("int8", "int8"))
    # Eight messages are decoded and encoded by the two cores of a host.
    codecs = MOVED * (ENCODE + DECODE) / 2 + MOVED * (ENCODE / 2 + DECODE)
    assert found.step == pytest.approx(COMPUTE + WHOLE * UPDATE + codecs, rel=0.15)


def test_a_link_takes_what_the_bytes_take():
    found = simulate(profile(), Fleet(1, 4, bandwidth="100mbit", latency="0"), Setting())
    one_way = (MOVED + ROWS) / (1e8 / 8 * GOODPUT)
    # The first gradients leave while others are computed.
    assert 2 * one_way <= found.step <= 2 * one_way + COMPUTE + WHOLE * UPDATE
    overlapped = simulate(
        profile(), Fleet(1, 4, bandwidth="100mbit", latency="0"), Setting(overlap=2)
    )
    assert overlapped.step == pytest.approx(one_way, rel=0.1)
    assert overlapped.limit.startswith("the link (worker")


@ids
def test_bytes_are_what_the_codecs_say(setting):
    found = simulate(profile(), Fleet(2, 2, bandwidth="1gbit"), setting)
    push, pull = setting.costs(profile())
    steps = setting.policy().steps
    up, down = (
        sum(cost.bytes[i] for i, b in enumerate(BUCKETS) if steps or not b.table)
        + (0 if steps else cost.row_bytes)
        for cost in (push, pull)
    )
    # An exchange may be under way when the counting begins or ends.
    assert found.up == pytest.approx(up / max(1, steps), rel=0.06)
    assert found.down == pytest.approx(down / max(1, steps), rel=0.06)


@ids
def test_a_better_link_never_slows(setting):
    for workers in (1, 3):
        steps = [
            simulate(profile(), Fleet(workers, 2, bandwidth=f"{mbit}mbit"), setting).step
            for mbit in (50, 100, 200, 400, 800, 1600)
        ]
        for slow, fast in itertools.pairwise(steps):
            assert fast <= 1.02 * slow  # Workers may meet in another order.


@ids
def test_the_same_seed_gives_the_same_figures(setting):
    fleet = Fleet(3, 2, bandwidth="1gbit", slow="0.4@3x", leaving=0.5)
    one = profile(spread=0.2)
    assert simulate(one, fleet, setting) == simulate(one, fleet, setting)
    assert simulate(one, fleet, setting) != simulate(one, fleet, setting, seed=1)


def test_many_workers_queue_at_one_ps():
    n, apply = 16, WHOLE * UPDATE
    found = simulate(profile(), Fleet(n, 1, **FREE), Setting())
    assert found.step == pytest.approx(n * apply, rel=0.02)
    assert found.ps_loop > 0.98 and found.limit == "the loop of the ps"
    assert found.staleness == pytest.approx(n - 1, abs=0.5)
    # Twice as many ps do the same in half the time.
    assert simulate(profile(), Fleet(n, 2, **FREE), Setting()).step == pytest.approx(
        n * apply / 2, rel=0.05
    )


def test_many_workers_queue_at_the_chief():
    one = profile(update=0.0, dispatch=Dispatch(call=0.002, report=0.001, batch_bytes=0))
    found = simulate(one, Fleet(100, 4, **FREE), Setting())
    assert found.step == pytest.approx(0.2, rel=0.03)
    assert found.chief > 0.98 and found.limit == "the chief"
    # Callbacks with hooks for batches make the chief look at every call.
    hooks = simulate(one, Fleet(100, 4, **FREE), Setting(), hooks=True)
    assert hooks.step == pytest.approx(0.3, rel=0.03)
    # Eight steps a call cost the chief an eighth.
    eight = simulate(one.replace(steps_per_call=8), Fleet(100, 4, **FREE), Setting())
    assert eight.step == pytest.approx(COMPUTE, rel=0.1)


def test_rounds_are_as_slow_as_the_slowest():
    fleet = Fleet(10, 4, slow="0.1@10x", **FREE)
    one = profile(update=0.0, add=0.0)
    assert simulate(one, fleet, Setting(consistency="sync")).step == pytest.approx(
        10 * COMPUTE, rel=0.02
    )
    # A backup worker is not waited for, and nine gradients make a round.
    backed = simulate(one, fleet, Setting(consistency="sync:1"))
    assert backed.step == pytest.approx(COMPUTE * 10 / 9, rel=0.02)
    # Asynchronous workers lose no more than the share of the slow one.
    alone = simulate(one, fleet, Setting())
    assert alone.step == pytest.approx(COMPUTE * 10 / 9.1, rel=0.08)
    # Bounded staleness is held back by the slowest, too.
    bounded = simulate(one, fleet, Setting(consistency="bounded:2"))
    assert bounded.step == pytest.approx(10 * COMPUTE, rel=0.1)


def test_rounds_have_no_staleness_and_overlap_adds_some():
    fleet = Fleet(4, 2, **FREE)
    assert simulate(profile(), fleet, Setting(consistency="sync")).staleness_max == 0
    plain = simulate(profile(), fleet, Setting()).staleness
    assert plain == pytest.approx(3, abs=0.6)
    ahead = [simulate(profile(), fleet, Setting(overlap=o)).staleness for o in (1, 2)]
    assert plain + 2 < ahead[0]


def test_local_steps_hide_a_pull_behind_a_delay():
    fleet = Fleet(1, 4, bandwidth="100mbit", latency="0")
    without, delayed = (
        simulate(profile(), fleet, Setting("topk:0.01", "int8", 0, f"local:32,merge=each{more}"))
        for more in ("", ",delay=16")
    )
    pull = sum(profile().pull["int8"].bytes) / (1e8 / 8 * GOODPUT)
    assert without.step - delayed.step == pytest.approx(pull / 32, rel=0.1)


def test_processor_time_of_transport_counts_where_tasks_share_cores():
    busy = profile(transport=Transport(1e-9, 1e-9, 0.0, 0.0))
    for shared, least in ((True, 1.2), (False, 1.0)):
        fleet = Fleet(4, 2, shared=shared, cores=2, **FREE)
        ratio = simulate(busy, fleet, Setting()).step / simulate(profile(), fleet, Setting()).step
        assert ratio >= least
    shared = simulate(busy, Fleet(4, 2, shared=True, cores=2, **FREE), Setting())
    assert shared.ps_cores > 0.95


def test_latency_is_paid_once_for_a_pull_and_twice_for_a_push():
    here, there = (
        simulate(profile(), Fleet(1, 1, bandwidth="none", latency=text), Setting()).step
        for text in ("0", "50ms")
    )
    # The call, the request, the parameters, the push, its answer, and the end of the call.
    assert there - here == pytest.approx(6 * 0.05, rel=0.01)


def test_lost_workers_and_snapshots_cost_what_they_take():
    calm = simulate(profile(), Fleet(50, 64, **FREE), Setting())
    # Each worker is lost once in two seconds or so, and is away for as long.
    stormy = simulate(profile(), Fleet(50, 64, leaving=1800.0, returning=2.0, **FREE), Setting())
    assert 1.5 < stormy.step / calm.step < 2.6
    saved = simulate(profile(), Fleet(4, 4, snapshots=1.0, **FREE), Setting())
    assert 0 < saved.lost < 0.2
    assert saved.step == pytest.approx(
        simulate(profile(), Fleet(4, 4, **FREE), Setting()).step / (1 - saved.lost)
    )


def test_a_coarse_simulation_agrees_with_a_fine_one(monkeypatch):
    from tfps.planning import world

    fleet = Fleet(8, 8, bandwidth="1gbit")
    for setting in (Setting(), Setting("int8", "int8", 1), Setting(consistency="sync")):
        monkeypatch.setattr(world, "_FINE", 10**9)
        fine = simulate(profile(), fleet, setting)
        monkeypatch.setattr(world, "_FINE", 0)
        coarse = simulate(profile(), fleet, setting)
        assert coarse.step == pytest.approx(fine.step, rel=0.15)
        assert coarse.up == pytest.approx(fine.up, rel=0.05)


def test_memory():
    found = simulate(profile(), Fleet(2, 4, **FREE), Setting())
    assert found.ps_memory == pytest.approx(WHOLE * 3 / 4, rel=0.5)
    rounds = simulate(profile(), Fleet(2, 4, **FREE), Setting(consistency="sync"))
    assert rounds.ps_memory > WHOLE * 3.9 / 4
    plain, coded = (
        simulate(profile(), Fleet(2, 4, **FREE), Setting(push=push)).worker_memory
        for push in ("identity", "int8")
    )
    assert coded - plain == pytest.approx(WHOLE)


def test_figures_are_finite():
    found = simulate(profile(), Fleet(1, 1, **FREE), Setting())
    assert all(math.isfinite(v) for v in found.links.values())
