"""The batch script as text, and what starts an agent."""

import re

from launch import slurm_script, topology
from launch.slurm_variables import Node

ROLES = topology.roles(4, 2)
GPU_ROLES = topology.roles(4, 2, cores={"worker": 4}, memory={"ps": 3 * 2**30}, gpus_per_worker=2)


def components(request):
    """The options of each component."""
    text = slurm_script.script(request, ["launch", "a b"])
    assert text.endswith("\nexec launch 'a b'\n")
    parts = text.split("#SBATCH hetjob\n")
    return [re.findall(r"^#SBATCH (.*)$", part, re.MULTILINE) for part in parts]


def test_tasks_that_need_the_same_are_one_component():
    (options,) = components(slurm_script.Request("gpt", ROLES, partition="cpu", time="10"))
    assert options == [
        *("--job-name=gpt", "--no-requeue", "--no-kill", "--time=10"),
        *("--ntasks=7", "--cpus-per-task=1", "--partition=cpu"),
    ]


def test_servers_and_workers_apart():
    request = slurm_script.Request(
        "gpt",
        GPU_ROLES,
        partition="gpu",
        ps_partition="cpu",
        time="1:00:00",
        workers_per_node=2,
        signal="TERM@120",
        requeue=True,
        options=("--comment=a b",),
    )
    every = ["--time=1:00:00", "'--comment=a b'"]
    assert components(request) == [
        [
            *("--job-name=gpt", "--requeue", "--signal=B:TERM@120", *every),
            *("--ntasks=3", "--cpus-per-task=1", "--partition=cpu", "--mem-per-cpu=3072M"),
        ],
        [
            *(*every, "--ntasks=4", "--cpus-per-task=4", "--partition=gpu"),
            *("--gpus-per-task=2", "--ntasks-per-node=2"),
        ],
    ]


def test_workers_alone_are_one_component():
    request = slurm_script.Request("ring", topology.roles(4, 0, gpus_per_worker=1))
    assert len(components(request)) == 1


def test_an_agents_step_has_all_that_the_job_has_on_its_node():
    command = slurm_script.srun(Node("n3", 1, 2, 8, 2))
    assert command[0] == "env" and "SLURM_GPUS_PER_TASK" in command
    options = command[command.index("srun") :]
    assert {"--het-group=1", "--nodelist=n3", "--gres=gpu:2", "--cpus-per-task=8"} <= {*options}


def test_a_step_without_gpus():
    command = slurm_script.srun(Node("n1", None, None, None, 0))
    assert not [w for w in command if w.startswith(("--gres", "--het-group", "--cpus"))]
