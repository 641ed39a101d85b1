"""A job on Kubernetes followed from outside, with a stand-in for kubectl."""

import io
import json
import stat
import sys
import threading
import time

import pytest

from launch import errors, kubernetes_job, pods, topology
from launch.kubectl import Kubectl
from launch.output import Output
from tests.launch import fake_kubectl

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

JOB = pods.Job("gpt", topology.roles(1, 1), "image", ("python",))


class Cluster:
    """The folder behind the stand-in."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "logs").mkdir()
        self.program = folder / "kubectl"
        self.program.write_text(
            f'#!/bin/sh\nFAKE_CLUSTER={folder} exec {sys.executable} {fake_kubectl.__file__} "$@"\n'
        )
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)
        self.kubectl = Kubectl("gpt", "team", str(self.program))
        self._pods = {}

    @property
    def calls(self):
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    @property
    def objects(self):
        return json.loads((self.folder / "objects.json").read_text())

    def pod(self, role, index, state, log="", attempt="a", **status):
        name = f"gpt-{role}-{index}-{attempt}"
        (self.folder / "logs" / name).write_text(log)
        self._pods[name] = {
            "metadata": {
                "name": name,
                "labels": pods.labels(JOB, role),
                "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
            },
            "spec": {"nodeName": "n1"},
            "status": {"containerStatuses": [{"state": state}], **status},
        }
        self._write("pods.json", list(self._pods.values()))

    def finish(self, kind, name, condition):
        objects = self.objects
        for item in objects:
            if (item["kind"], item["metadata"]["name"]) == (kind, name):
                item["status"] = {"conditions": [{"type": condition, "status": "True"}]}
        self._write("objects.json", objects)

    def _write(self, name, items):
        new = self.folder / f"{name}.new"
        new.write_text(json.dumps(items))
        new.rename(self.folder / name)


@pytest.fixture
def kube(tmp_path):
    return Cluster(tmp_path)


def ended(code, at="2026-01-01T00:00:00Z"):
    return {"terminated": {"exitCode": code, "finishedAt": at}}


class Screen:
    """Follows a job, and has what a user sees."""

    def __init__(self, cluster, job=JOB):
        out, err = io.BytesIO(), io.BytesIO()
        output = Output(out=out, err=err, colour=(False, False))
        self.code = kubernetes_job.Watch(job, cluster.kubectl, output).until_done(every=0.1)
        output.close()
        self.out, self.err = (s.getvalue().decode().splitlines() for s in (out, err))


def test_the_leader_owns_what_is_created_and_begins_last(kube):
    kubernetes_job.create(JOB, kube.kubectl)
    owner, *others = kube.objects
    assert (owner["kind"], owner["metadata"]["name"]) == ("Job", "gpt-chief")
    assert owner["spec"]["suspend"]
    assert {o["metadata"]["ownerReferences"][0]["uid"] for o in others} == {"uid-Job-gpt-chief"}
    assert sorted({o["kind"] for o in others}) == [
        "Job",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
    ]
    verbs = [next(a for a in call if not a.startswith("-")) for call in kube.calls]
    assert verbs == ["create", "create", "patch"]
    assert '--patch={"spec": {"suspend": false}}' in kube.calls[-1]
    assert all("--namespace=team" in call for call in kube.calls)


def test_a_name_that_is_taken(kube):
    kubernetes_job.create(JOB, kube.kubectl)
    with pytest.raises(errors.FlagError, match=r"--name=gpt exists already.*stop"):
        kubernetes_job.create(JOB, kube.kubectl)
    assert kube.objects  # The other job's were left alone.


def test_what_is_refused_is_taken_back(kube):
    kube._write("objects.json", [{"kind": "Service", "metadata": {"name": "gpt", "labels": {}}}])
    with pytest.raises(errors.FlagError):
        kubernetes_job.create(JOB, kube.kubectl)
    words = [word for word in kube.calls[-1] if not word.startswith("-")]
    assert words == ["delete", "job.batch", "gpt-chief"]


def test_without_kubectl():
    with pytest.raises(errors.ProgramError, match="no 'no-such-kubectl'; install it"):
        Kubectl("gpt", program="no-such-kubectl").get("pods")


def test_success_is_the_chiefs(kube):
    kubernetes_job.create(JOB, kube.kubectl)
    kube.pod("chief", 0, ended(0), "loss 1\nloss 0\n")
    kube.pod("worker", 0, {"running": {}}, "serves\n")
    threading.Timer(0.4, kube.pod, ("worker", 0, ended(0), "serves\ndone\n")).start()
    threading.Timer(0.6, kube.finish, ("Job", "gpt-chief", "Complete")).start()
    for role in ("worker", "ps"):
        kube.finish("Job", f"gpt-{role}", "Complete")
    screen = Screen(kube)
    assert screen.code == 0 and not screen.err
    assert not any("delete" in call for call in kube.calls)
    assert [x for x in screen.out if "chief" in x] == ["[chief 0] loss 1", "[chief 0] loss 0"]
    assert [x for x in screen.out if "worker" in x] == ["[worker 0] serves", "[worker 0] done"]


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_an_evaluator_is_waited_for_and_may_fail(kube, end):
    job = pods.Job("gpt", topology.roles(1, 1, evaluator=True), "image", ("python",))
    kubernetes_job.create(job, kube.kubectl)
    for role in ("chief", "worker", "ps"):
        kube.finish("Job", f"gpt-{role}", "Complete")
    began = time.monotonic()
    threading.Timer(0.5, kube.finish, ("Job", "gpt-evaluator", end)).start()
    assert Screen(kube, job).code == 0
    assert time.monotonic() - began > 0.4


def jobs_of(kube):
    return {o["metadata"]["name"] for o in kube.objects if o["kind"] == "Job"}


@pytest.mark.parametrize("evaluator", [False, True])
def test_servers_that_do_not_end_with_the_chief_are_deleted(kube, evaluator):
    """A pod that was lost while the chief ended is made again, and waits for a chief."""
    roles = topology.roles(1, 1, evaluator=evaluator)
    job = pods.Job("gpt", roles, "image", ("python",), settle=1.0)
    kubernetes_job.create(job, kube.kubectl)
    kube.pod("worker", 0, {"running": {}})
    kube.finish("Job", "gpt-ps", "Complete")
    kube.finish("Job", "gpt-chief", "Complete")
    seen = []
    if evaluator:  # The servers are not kept until it ends.
        threading.Timer(4.0, lambda: seen.append(jobs_of(kube))).start()
        threading.Timer(4.5, kube.finish, ("Job", "gpt-evaluator", "Complete")).start()
    began = time.monotonic()
    screen = Screen(kube, job)
    assert screen.code == 0
    assert time.monotonic() - began > 1.0  # They had the time to end by themselves.
    rest = {"gpt-evaluator"} if evaluator else set()
    assert jobs_of(kube) == {"gpt-chief", "gpt-ps"} | rest  # The logs of these are kept.
    assert seen == ([jobs_of(kube)] if evaluator else [])
    (line,) = screen.err
    assert line.startswith("[launch] gpt-worker: deleted")


def test_servers_that_may_not_be_deleted_do_not_fail_the_job(kube):
    job = pods.Job("gpt", JOB.roles, "image", ("python",), settle=0.0)
    kubernetes_job.create(job, kube.kubectl)
    kube.finish("Job", "gpt-chief", "Complete")
    (kube.folder / "refuses").touch()
    screen = Screen(kube, job)
    assert screen.code == 0
    (line,) = screen.err
    assert "forbidden" in line and "gpt-ps and gpt-worker may go on" in line


def test_a_server_that_fails_after_the_chief_has_succeeded_is_missed_by_nobody(kube):
    job = pods.Job("gpt", topology.roles(1, 1, evaluator=True), "image", ("python",))
    kubernetes_job.create(job, kube.kubectl)
    kube.finish("Job", "gpt-chief", "Complete")
    kube.finish("Job", "gpt-ps", "Complete")
    kube.finish("Job", "gpt-worker", "Failed")
    threading.Timer(0.5, kube.finish, ("Job", "gpt-evaluator", "Complete")).start()
    assert Screen(kube, job).code == 0


def test_who_failed_first_comes_last(kube):
    kubernetes_job.create(JOB, kube.kubectl)
    kube.pod("chief", 0, ended(75, "2026-01-01T00:00:00Z"), "lost worker 0\n")
    kube.pod("worker", 0, ended(1, "2026-01-01T00:00:01Z"), "error: no data\n")
    kube.finish("Job", "gpt-worker", "Failed")
    screen = Screen(kube)
    assert screen.code == 1
    assert screen.err[-2:] == [
        "[launch] worker 0 (gpt-worker-0-a on n1) ended with exit code 1; "
        "the job ends with exit code 1; its last lines:",
        "[worker 0] error: no data",
    ]


def test_what_a_pod_waits_for_is_told_once(kube):
    kubernetes_job.create(JOB, kube.kubectl)
    kube.pod("chief", 0, {"waiting": {"reason": "ErrImagePull", "message": "no such image"}})
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    unschedulable = {"type": "PodScheduled", "status": "False", "message": message}
    kube.pod("worker", 0, {}, conditions=[unschedulable])
    threading.Timer(0.8, kube.finish, ("Job", "gpt-chief", "Failed")).start()
    assert [line for line in Screen(kube).err if "waits" in line] == [
        "[launch] chief 0 waits for Kubernetes: ErrImagePull no such image",
        f"[launch] worker 0 waits for Kubernetes: {message}",
    ]


def test_a_job_that_somebody_deletes_has_failed(kube):
    kubernetes_job.create(JOB, kube.kubectl)
    kubernetes_job.stop(False, kube.kubectl)
    assert Screen(kube).code == 1


def test_a_cluster_that_is_away_for_a_while(kube):
    kubernetes_job.create(JOB, kube.kubectl)
    for role in ("chief", "worker", "ps"):
        kube.finish("Job", f"gpt-{role}", "Complete")
    (kube.folder / "unreachable").touch()
    threading.Timer(0.5, (kube.folder / "unreachable").unlink).start()
    began = time.monotonic()
    assert Screen(kube).code == 0
    assert time.monotonic() - began > 0.4


def test_an_odd_answer_does_not_end_the_watch(kube):
    kubernetes_job.create(JOB, kube.kubectl)
    said = "Error from server (InternalError): etcdserver: leader changed"
    asked = len(kube.calls)

    def odd_for_a_while():
        for count, what in ((2, (kube.folder / "unreachable").write_text), (4, None)):
            while len(kube.calls) < asked + count:
                time.sleep(0.02)
            if what:
                what(said)
        for role in ("chief", "worker", "ps"):
            kube.finish("Job", f"gpt-{role}", "Complete")
        (kube.folder / "unreachable").unlink()

    threading.Thread(target=odd_for_a_while).start()
    assert Screen(kube).code == 0


def test_an_odd_first_answer_is_told(kube):
    kubernetes_job.create(JOB, kube.kubectl)
    (kube.folder / "unreachable").write_text("Error from server (Forbidden): no")
    with pytest.raises(errors.SpecificationError, match="Forbidden"):
        Screen(kube)


def test_a_chief_ends_before_its_servers(kube):
    kubernetes_job.create(JOB, kube.kubectl)
    kube.pod("chief", 0, {"running": {}})
    kube.pod("ps", 0, {"running": {}})
    begun = time.monotonic()
    threading.Timer(1.0, kube.pod, ("chief", 0, ended(143))).start()
    kubernetes_job.stop(False, kube.kubectl)
    assert 1.0 <= time.monotonic() - begun < 10
    verbs = [call[1] for call in kube.calls]
    assert verbs[3:5] == ["get", "patch"] and "get" in verbs[5:] and verbs[-1] == "delete"
    patch = kube.calls[4]
    assert "gpt-chief" in patch and '--patch={"spec": {"suspend": true}}' in patch


def test_a_chief_that_does_not_end_is_not_waited_for_long(kube):
    kubernetes_job.create(pods.Job("gpt", JOB.roles, "image", ("python",), grace=0), kube.kubectl)
    kube.pod("chief", 0, {"running": {}})
    begun = time.monotonic()
    assert kubernetes_job.stop(False, kube.kubectl)
    assert 5.0 <= time.monotonic() - begun < 15


def test_a_jobset_is_one_object(kube):
    job = pods.Job("gpt", topology.roles(1, 1), "image", ("python",), jobset=True)
    kubernetes_job.create(job, kube.kubectl)
    assert [o["kind"] for o in kube.objects if "Job" in o["kind"]] == ["JobSet"]
    kube.finish("JobSet", "gpt", "Completed")
    assert Screen(kube, job).code == 0
