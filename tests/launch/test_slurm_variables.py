"""Slurm's variables: every form that sbatch(1) and scontrol(1) give them."""

import pytest

from launch import slurm_variables as variables


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3,7]", ["n1", "n2", "n3", "n7"]),
        ("n[08-10],gpu1-[1-2]", ["n08", "n09", "n10", "gpu1-1", "gpu1-2"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("r[1-2]c[0-1]", ["r1c0", "r1c1", "r2c0", "r2c1"]),
        ("a,b[1-2].x.org,c", ["a", "b1.x.org", "b2.x.org", "c"]),
        ("n[1,3],n2", ["n1", "n3", "n2"]),
    ],
)
def test_a_host_list(text, names):
    assert variables.expand_hosts(text) == names


@pytest.mark.parametrize("text", ["n[1-3", "n1]", "n[[1]]", "n[3-1]", "n[a-b]", "n[]"])
def test_no_host_list(text):
    with pytest.raises(variables.SlurmVariableError):
        variables.expand_hosts(text)


@pytest.mark.parametrize(
    ("text", "counts"), [("2(x3),1", [2, 2, 2, 1]), ("4", [4]), ("1,2(x2)", [1, 2, 2])]
)
def test_counts(text, counts):
    assert variables.expand_counts(text) == counts


@pytest.mark.parametrize("text", ["", "2(x3", "two", "2x3", "-1"])
def test_no_counts(text):
    with pytest.raises(variables.SlurmVariableError):
        variables.expand_counts(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4", 4),
        ("a100:4", 4),
        ("gpu:4", 4),
        ("gpu:a100:4", 4),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:2(IDX:0,3)", 2),
        ("a100:2,v100:1", 3),
        ("gpu:a100:2,gpu:v100:1,nvme:7", 3),
        ("gres/gpu:2", 2),
        ("gpu", 1),
        ("a100", 1),
    ],
)
def test_a_number_of_gpus(text, count):
    assert variables.gpu_count(text) == count


@pytest.mark.parametrize("text", ["gpu:a100:4:5", "gpu::4"])
def test_no_number_of_gpus(text):
    with pytest.raises(variables.SlurmVariableError):
        variables.gpu_count(text)


def test_indices():
    assert variables.gpu_indices("0,2-3") == [0, 2, 3]


def test_without_an_allocation():
    with pytest.raises(variables.SlurmVariableError, match="SLURM_JOB_NODELIST is not set"):
        variables.allocation({})


PLAIN = {
    "SLURM_JOB_NODELIST": "n[3-5]",
    "SLURM_TASKS_PER_NODE": "2(x2),1",
    "SLURM_JOB_CPUS_PER_NODE": "4(x2),2",
}


def test_gpus_for_each_node():
    nodes = variables.allocation(PLAIN | {"SLURM_GPUS_PER_NODE": "a100:4"})
    assert [n.gpus for n in nodes] == [4, 4, 4]


def test_gpus_for_each_task_are_counted_by_node():
    nodes = variables.allocation(PLAIN | {"SLURM_GPUS_PER_TASK": "1"})
    assert [(n.name, n.tasks, n.cpus, n.gpus) for n in nodes] == [
        ("n3", 2, 4, 2),
        ("n4", 2, 4, 2),
        ("n5", 1, 2, 1),
    ]


def test_gres_is_known_of_this_node_only():
    own = {"SLURM_JOB_GPUS": "0,2", "SLURMD_NODENAME": "n4"}
    assert [n.gpus for n in variables.allocation(PLAIN | own)] == [None, 2, None]


def test_within_a_step_the_numbers_of_the_step_are_not_taken():
    step = PLAIN | {"SLURM_TASKS_PER_NODE": "1", "SLURM_GPUS_PER_TASK": "1"}
    nodes = variables.allocation(step)
    assert [(n.tasks, n.cpus, n.gpus) for n in nodes] == [(None, 4, None)] * 2 + [(None, 2, None)]


def test_a_heterogeneous_job():
    nodes = variables.allocation(
        {
            "SLURM_HET_SIZE": "2",
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_TASKS_PER_NODE": "3",
            "SLURM_JOB_NODELIST_HET_GROUP_0": "n1",
            "SLURM_TASKS_PER_NODE_HET_GROUP_0": "3",
            "SLURM_JOB_CPUS_PER_NODE_HET_GROUP_0": "3",
            "SLURM_JOB_NODELIST_HET_GROUP_1": "n[3-4]",
            "SLURM_TASKS_PER_NODE_HET_GROUP_1": "2(x2)",
            "SLURM_JOB_CPUS_PER_NODE_HET_GROUP_1": "2(x2)",
            "SLURM_GPUS_PER_TASK_HET_GROUP_1": "1",
        }
    )
    assert nodes == [
        variables.Node("n1", 0, 3, 3, None),
        variables.Node("n3", 1, 2, 2, 2),
        variables.Node("n4", 1, 2, 2, 2),
    ]


def test_gpus_that_scontrol_lists():
    text = """JobId=7 JobName=x
   JOB_GRES=gpu:a100:5
     Nodes=n3 CPU_IDs=0-1 Mem=0 GRES=gpu:a100:1(IDX:3)
     Nodes=n[4-5] CPU_IDs=0-1 Mem=100 GRES=gpu:a100:2(IDX:0-1),nvme:1(CNT:1)
     Nodes=n6 CPU_IDs=0 Mem=0 GRES=
   MinCPUsNode=1
"""
    assert variables.gpus_by_node(text) == {"n3": 1, "n4": 2, "n5": 2, "n6": 0}


def test_addresses_that_scontrol_lists():
    text = """NodeName=n1 Arch=x86_64 CPUAlloc=0 NodeAddr=10.0.0.1 NodeHostName=h1 Version=22.05
NodeName=n2 CoresPerSocket=1 NodeAddr=n2.example.org NodeHostName=n2
"""
    assert variables.node_addresses(text) == {"n1": "10.0.0.1", "n2": "n2.example.org"}
