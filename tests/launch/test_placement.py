"""Which task runs where, and what it is told."""

import json

import pytest
from hypothesis import given, strategies as st

from launch import errors, flags, placement, topology
from launch.placement import Room


def places(placed, role):
    return [p.host for p in placed if p.role == role]


def room(host, slots=None, gpus=0, cores=4, **more):
    return Room(host, slots, tuple(map(str, range(gpus))), nodes=(tuple(range(cores)),), **more)


def test_servers_are_spread_and_workers_fill_slots():
    placed = placement.place(
        topology.roles(5, 3), [room("a", slots=3), room("b", slots=1), room("c", slots=2)]
    )
    assert places(placed, "chief") == ["a"]
    assert places(placed, "ps") == ["a", "b", "c"]
    assert places(placed, "worker") == ["a", "a", "b", "c", "c"]


def test_roles_of_hosts():
    placed = placement.place(
        topology.roles(2, 2), [room("gpu", roles=("worker",)), room("cpu", roles=("ps", "chief"))]
    )
    assert set(places(placed, "worker")) == {"gpu"}
    assert places(placed, "ps") == ["cpu", "cpu"]
    with pytest.raises(errors.SpecificationError, match="no host takes any; add chief to roles="):
        placement.place(topology.roles(1, 1), [room("a", roles=("worker", "ps"))])


def test_gpus_go_to_workers():
    placed = placement.place(topology.roles(4, 1), [room("a", gpus=4), room("b", gpus=2)])
    seen = {(p.role, p.index): p.gpus for p in placed}
    assert seen["chief", 0] == seen["ps", 0] == ()
    assert [seen["worker", i] for i in range(4)] == [("0", "1"), ("2", "3"), ("0",), ("1",)]
    placed = placement.place(topology.roles(3, 1, gpus_per_worker=2), [room("a", gpus=7)])
    assert [p.gpus for p in placed if p.role == "worker"] == [("0", "1"), ("2", "3"), ("4", "5")]
    placed = placement.place(topology.roles(1, 1, gpus_per_worker=0), [room("a", gpus=7)])
    assert [p.gpus for p in placed] == [(), (), ()]


@pytest.mark.parametrize(
    ("roles", "rooms", "said"),
    [
        (topology.roles(3, 1), [room("a", 1), room("b", 1)], "a takes 1, b takes 1; lower"),
        (topology.roles(3, 1, gpus_per_worker=2), [room("a", gpus=5)], "2 GPU(s) each do not fit"),
        (topology.roles(3, 1), [room("a", gpus=2)], "has 2 GPU(s) for 3 workers"),
    ],
)
def test_what_does_not_fit(roles, rooms, said):
    with pytest.raises(errors.SpecificationError) as caught:
        placement.place(roles, rooms)
    assert said in str(caught.value)


def test_fewer_gpus_than_a_host_should_have():
    class Machine:
        name, slots, gpus, roles = "a", None, 8, ()

    with pytest.raises(errors.SpecificationError, match=r"a should have 8 GPUs, .* shows 1"):
        Room.of(Machine(), {"gpus": ["0"], "nodes": [[0]]})


@given(
    workers=st.integers(1, 12),
    ps=st.integers(0, 6),
    hosts=st.lists(st.tuples(st.none() | st.integers(0, 5), st.integers(0, 8)), min_size=1),
    each=st.none() | st.integers(0, 3),
)
def test_no_slot_or_gpu_is_given_twice(workers, ps, hosts, each):
    rooms = [room(f"h{i}", slots, gpus) for i, (slots, gpus) in enumerate(hosts)]
    try:
        placed = placement.place(topology.roles(workers, ps, gpus_per_worker=each), rooms)
    except errors.SpecificationError:
        return
    assert [(p.role, p.index) for p in placed] == [
        (role.name, i) for role in topology.roles(workers, ps) for i in range(role.count)
    ]
    for r in rooms:
        here = [p for p in placed if p.host == r.host and p.role == "worker"]
        assert r.slots is None or len(here) <= r.slots
        given_out = [gpu for p in here for gpu in p.gpus or ()]
        assert len(given_out) == len(set(given_out))
        assert set(given_out) <= set(r.gpus)
        assert each is None or all(len(p.gpus or ()) == each for p in here)


def test_pinning():
    roles = topology.roles(2, 1, cores={"chief": 1})
    placed = placement.place(roles, [room("a", cores=8)], pin="cores")
    cores = {(p.role, p.index): p.cores for p in placed}
    assert sorted(c for held in cores.values() for c in held) == list(range(8))
    assert len(cores["chief", 0]) == 1
    assert sorted(map(len, cores.values())) == [1, 2, 2, 3]
    with pytest.raises(errors.SpecificationError, match="has 2 cores for 4 tasks that need 4"):
        placement.place(roles, [room("a", cores=2)], pin="cores")
    two = Room("a", nodes=((0, 1), (2, 3)))
    placed = placement.place(topology.roles(2, 1), [two], pin="numa")
    assert {p.cores for p in placed} == {(0, 1), (2, 3)}


def task(role, index, address="10.0.0.1", port=1, **more):
    return topology.Task(role, index, "h", address, port, **more)


def test_what_a_task_is_told():
    worker = task("worker", 0, "fe80::1", 2, gpus=("3", "4"))
    job = topology.Topology((task("ps", 0), worker, task("chief", 0, port=3, gpus=())))
    environ = job.environ(worker)
    assert json.loads(environ["TF_CONFIG"]) == {
        "cluster": {
            "chief": ["10.0.0.1:3"],
            "worker": ["[fe80::1]:2"],
            "ps": ["10.0.0.1:1"],
        },
        "task": {"type": "worker", "index": 0},
    }
    assert environ["CUDA_VISIBLE_DEVICES"] == "3,4"
    assert job.environ(job.task("chief 0"))["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in job.environ(job.task("ps 0"))
    assert job.leaders == ("chief 0",)


def test_roles():
    assert [r.name for r in topology.roles(2, 2)] == ["ps", "worker", "chief"]
    assert [r.name for r in topology.roles(2, 0)] == ["worker"]
    assert [r.name for r in topology.roles(2, 0, chief=True)] == ["worker", "chief"]
    assert topology.ranges([3, 0, 1, 7]) == "0-1,3,7"


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("8G", 8 << 30), ("512m", 512 << 20), ("1GiB", 1 << 30), ("7", 7)]
)
def test_sizes(text, size):
    assert flags.memory("memory_per_ps", text) == size


def test_an_evaluator_is_no_member_of_the_cluster():
    """It runs on the last host, sees no GPU, and the others are told nothing of it."""
    roles = topology.roles(2, 1, evaluator=True)
    rooms = [placement.Room("a", gpus=("0",)), placement.Room("b", gpus=("0",))]
    placed = placement.place(roles, rooms)
    (evaluator,) = [p for p in placed if p.role == "evaluator"]
    assert (evaluator.host, evaluator.gpus) == ("b", ())
    tasks = [topology.Task(p.role, p.index, p.host, p.host, n + 1) for n, p in enumerate(placed)]
    made = topology.Topology(tuple(tasks))
    config = json.loads(made.tf_config(made.task("evaluator 0")))
    assert set(config["cluster"]) == {"chief", "worker", "ps"}
    assert config["task"] == {"type": "evaluator", "index": 0}
    assert made.leaders == ("chief 0",) and made.evaluators == ("evaluator 0",)


def test_spare_servers_have_what_a_ps_has_on_the_hosts_after_theirs():
    roles = topology.roles(1, 2, spares=2, cores={"ps": 2}, memory={"ps": 7})
    (spare,) = [role for role in roles if role.name == "spare"]
    assert (spare.cores, spare.memory, spare.gpus) == (2, 7, 0)
    rooms = [placement.Room(name, roles=("chief", "worker", "ps")) for name in "abc"]
    placed = placement.place(roles, rooms)
    hosts = {(p.role, p.index): p.host for p in placed}
    assert [hosts["ps", i] for i in (0, 1)] == ["a", "b"]
    assert [hosts["spare", i] for i in (0, 1)] == ["c", "a"]
    tasks = [topology.Task(p.role, p.index, p.host, p.host, n + 1) for n, p in enumerate(placed)]
    made = topology.Topology(tuple(tasks))
    assert made.leaders == ("chief 0",)
    for name in ("spare 1", "ps 0"):
        config = json.loads(made.tf_config(made.task(name)))
        assert set(config["cluster"]) == {"chief", "worker", "ps", "spare"}
