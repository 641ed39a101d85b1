"""The real kubectl, where there is one, with an API server that only keeps objects."""

import os
import shutil
import stat

import pytest

from launch import errors, kubernetes_job, pods, topology
from launch.kubectl import Kubectl
from tests.launch.api_server import ApiServer

pytestmark = pytest.mark.processes

JOB = pods.Job("gpt", topology.roles(2, 1), "image", ("python",))


@pytest.fixture
def server():
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here")
    server = ApiServer()
    yield server
    server.close()


@pytest.fixture
def kubectl(server, tmp_path):
    (tmp_path / "config").write_text(server.config)
    program = tmp_path / "kubectl"
    variables = f"KUBECONFIG={tmp_path}/config HOME={tmp_path}"
    program.write_text(f'#!/bin/sh\n{variables} exec {shutil.which("kubectl")} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return Kubectl("gpt", program=os.fspath(program))


@pytest.mark.parametrize("jobset", [False, True])
def test_a_jobs_objects_come_and_go(server, kubectl, jobset):
    job = pods.Job("gpt", JOB.roles, "image", ("python",), jobset=jobset)
    kubernetes_job.create(job, kubectl)
    owner = ("jobsets", "gpt") if jobset else ("jobs", "gpt-chief")
    assert server.objects[owner]["spec"]["suspend"] is False
    others = [o for key, o in server.objects.items() if key != owner]
    assert len(others) == (4 if jobset else 7)
    assert {o["metadata"]["ownerReferences"][0]["uid"] for o in others} == {
        f"uid-{owner[0]}-{owner[1]}"
    }
    with pytest.raises(errors.FlagError, match="exists already"):
        kubernetes_job.create(job, kubectl)
    stranger = {"metadata": {"name": "x", "labels": {"app.kubernetes.io/instance": "x"}}}
    server.objects["jobs", "x"] = {"apiVersion": "batch/v1", "kind": "Job", **stranger}
    if not jobset:
        assert kubectl.delete(["job.batch"], ["gpt-ps", "gpt-worker"]) == [
            "job.batch/gpt-ps",
            "job.batch/gpt-worker",
        ]
        others = [o for key, o in server.objects.items() if key not in (owner, ("jobs", "x"))]
        assert len(others) == 5
    assert len(kubernetes_job.stop(jobset, kubectl)) == len(others) + 1
    assert list(server.objects) == [("jobs", "x")]


def test_what_is_taken_back_is_no_other_jobs(server, kubectl):
    """A job without a chief has the same name, so that the owner could be created."""
    kubernetes_job.create(pods.Job("gpt", topology.roles(2, 0), "image", ("python",)), kubectl)
    before = {key: dict(item) for key, item in server.objects.items()}
    with pytest.raises(errors.FlagError, match="exists already"):
        kubernetes_job.create(JOB, kubectl)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "gpt-chief"}
    belongs = {**owner, "uid": "uid-jobs-gpt-chief"}  # To what is gone: Kubernetes deletes it.
    left = {
        key: item
        for key, item in server.objects.items()
        if belongs not in item["metadata"].get("ownerReferences", ())
    }
    assert left == before and ("jobs", "gpt-chief") not in server.objects
    assert ("jobs", "gpt-worker") in before and ("services", "gpt") in before


def test_pods_and_what_they_write(server, kubectl):
    labels = pods.labels(JOB, "worker")
    pod = {"metadata": {"name": "gpt-worker-0-x", "namespace": "team", "labels": labels}}
    pod |= {"spec": {"containers": [{"name": pods.CONTAINER}]}, "status": {"phase": "Running"}}
    server.objects["pods", "gpt-worker-0-x"] = {"apiVersion": "v1", "kind": "Pod", **pod}
    server.logs["gpt-worker-0-x"] = "one\ntwo\n"
    assert [p["metadata"]["name"] for p in kubectl.get("pods")] == ["gpt-worker-0-x"]
    assert kubectl.get("jobs") == []
    process = kubectl.logs("gpt-worker-0-x", pods.CONTAINER)
    assert process.communicate(timeout=20)[0] == b"one\ntwo\n"


def test_a_cluster_that_does_not_answer(server, kubectl):
    server.close()
    with pytest.raises(errors.HostError, match=r"kubectl get: .*refused"):
        kubectl.get("pods")
