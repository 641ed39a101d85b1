"""Manifests: they pass Kubernetes's published schemas, and say what they should."""

import dataclasses
import json
import pathlib
import re

import hypothesis
import kubernetes_validate
import pytest
import yaml
from hypothesis import strategies as st

from launch import errors, exit_codes, manifests, pods, topology, yaml_text
from tests.launch import kubelet

FULL = pods.Job(
    "gpt",
    topology.roles(
        4,
        2,
        cores={"worker": 4, "ps": 2},
        memory={"ps": 2**30},
        gpus_per_worker=2,
        evaluator=True,
    ),
    "registry.example.org/gpt:1",
    ("python", "-m", "models.gpt", "--data=$(HOME)/$x $$", "--note=a 'b' \"c\"\n…"),
    namespace="team",
    volume="claim",
    environ={"NOTE": "$(TASK_INDEX)"},
    secrets=("keys",),
    pull_secrets=("registry",),
    node_selectors={"worker": {"example.org/pool": "gpu"}},
    restarts={"worker": 10, "ps": 3, "chief": 3},
)
BARE = pods.Job("a", topology.roles(1, 1), "image", ("program",))
ALL_REDUCE = pods.Job("ring", topology.roles(3, 0), "image", ("program",), restarts={"worker": 1})
JOBS = {"full": FULL, "bare": BARE, "all-reduce": ALL_REDUCE}


def of_kind(job, kind):
    return [m for m in manifests.of_job(job) if m["kind"] == kind]


def template_of(job, role):
    return next(m for m in of_kind(job, "Job") if m["metadata"]["name"].endswith(role))["spec"]


def container_of(job, role):
    return template_of(job, role)["template"]["spec"]["containers"][0]


# The oldest version in which all fields are there, and the newest known.
@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_schemas(job, version):
    for manifest in manifests.of_job(job):
        kubernetes_validate.validate(manifest, version, strict=True)


def jobset_fields():
    """Fields of JobSet's v1alpha2 that are used here, with the types of their values."""
    return {
        "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
        "successPolicy": {"operator": str, "targetReplicatedJobs": list},
        "failurePolicy": {"maxRestarts": int, "rules": list},
        "ttlSecondsAfterFinished": int,
        "replicatedJobs": list,
    }


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_jobset(job):
    job = dataclasses.replace(job, jobset=True, job_restarts=2)
    *others, jobset = manifests.of_job(job)
    assert "Service" not in [m["kind"] for m in others]  # JobSet makes it.
    for manifest in others:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
    for name, kind in jobset_fields().items():
        value = jobset["spec"].pop(name)
        if isinstance(kind, dict):
            assert {k: type(v) for k, v in value.items()} == kind
        else:
            assert isinstance(value, kind)
        if name == "replicatedJobs":
            for replicated in value:
                assert set(replicated) == {"name", "replicas", "template"}
                inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
                kubernetes_validate.validate(inner | replicated["template"], "1.37", strict=True)
    assert not jobset["spec"]


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_yaml_is_what_it_was_made_of(job):
    found = manifests.of_job(job)
    assert list(yaml.safe_load_all(yaml_text.documents(found))) == found


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner),
    max_leaves=20,
)


@hypothesis.given(_DATA)
def test_yaml_of_anything(data):
    assert yaml.safe_load(yaml_text.text(data)) == data


def test_yaml_of_something_else():
    with pytest.raises(TypeError, match="float"):
        yaml_text.text({"x": [1.5]})


def test_only_the_jobs_own_pods_reach_its_ports():
    (policy,) = of_kind(FULL, "NetworkPolicy")
    labels = template_of(FULL, "worker")["template"]["metadata"]["labels"]
    selector = policy["spec"]["podSelector"]["matchLabels"]
    assert selector.items() <= labels.items()
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": selector}}]}]
    assert selector["app.kubernetes.io/instance"] == "gpt"


@pytest.mark.parametrize("role", ["chief", "worker", "ps"])
def test_a_pod_may_do_little(role):
    spec = template_of(FULL, role)["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_no_shell_and_no_secret_in_a_command():
    container = container_of(FULL, "worker")
    assert [w.replace("$$", "$") for w in container["command"]] == list(FULL.command)
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_gpus_are_for_workers():
    assert container_of(FULL, "worker")["resources"]["limits"]["nvidia.com/gpu"] == "2"
    hidden = {"name": "CUDA_VISIBLE_DEVICES", "value": ""}
    for role in ("chief", "ps"):
        assert hidden in container_of(FULL, role)["env"]
        assert "nvidia.com/gpu" not in str(container_of(FULL, role)["resources"])
    assert hidden not in container_of(FULL, "worker")["env"]


def test_every_task_is_in_tf_config():
    env = {e["name"]: e.get("value") for e in container_of(FULL, "ps")["env"]}
    config = json.loads(env["TF_CONFIG"].replace("$(TASK_INDEX)", "1"))
    assert config["task"] == {"type": "ps", "index": 1}
    assert config["cluster"]["ps"] == ["gpt-ps-0.gpt:2222", "gpt-ps-1.gpt:2222"]
    assert {k: len(v) for k, v in config["cluster"].items()} == {"chief": 1, "worker": 4, "ps": 2}


def test_a_chief_waits_for_pods_that_have_no_node_yet():
    env = {e["name"]: e.get("value") for e in container_of(FULL, "chief")["env"]}
    assert env["TFPS_STARTUP_TIMEOUT"] == "3600"


def test_a_pod_leaves_a_lost_node_soon():
    jobs = {m["metadata"]["name"]: m for m in manifests.of_job(FULL) if m["kind"] == "Job"}
    tolerations = jobs["gpt-worker"]["spec"]["template"]["spec"]["tolerations"]
    seconds = {t["key"]: t.get("tolerationSeconds") for t in tolerations}
    assert seconds == {
        "node.kubernetes.io/not-ready": 30,
        "node.kubernetes.io/unreachable": 30,
        "nvidia.com/gpu": None,
    }


def test_an_evaluator_serves_nobody():
    container = container_of(FULL, "evaluator")
    assert "readinessProbe" not in container and "readinessProbe" in container_of(FULL, "ps")
    config = next(e["value"] for e in container["env"] if e["name"] == "TF_CONFIG")
    assert json.loads(config.replace("$(TASK_INDEX)", "0"))["task"]["type"] == "evaluator"
    (*_, jobset) = manifests.of_job(dataclasses.replace(FULL, jobset=True))
    assert jobset["spec"]["successPolicy"]["targetReplicatedJobs"] == ["chief", "evaluator"]


def test_the_users_own_errors_are_not_retried():
    for role in ("chief", "worker", "ps"):
        rules = template_of(FULL, role)["podFailurePolicy"]["rules"]
        never = next(r for r in rules if r["action"] == "FailJob")
        failed = [code for code in range(1, 256) if kubelet.matches(code, never["onExitCodes"])]
        assert failed == [code for code in range(1, 256) if not exit_codes.may_be_retried(code)]


def test_without_restarts_any_death_ends_the_job():
    spec = template_of(BARE, "worker")
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (0, 0)
    assert "Ignore" not in [r["action"] for r in spec["podFailurePolicy"]["rules"]]


def test_a_job_begins_again_with_its_chief():
    assert template_of(FULL, "chief")["podFailurePolicy"]["rules"][-1]["action"] == "FailIndex"
    again = dataclasses.replace(FULL, job_restarts=2)
    assert template_of(again, "chief")["backoffLimitPerIndex"] == 5
    assert "FailIndex" not in str(template_of(again, "chief")["podFailurePolicy"])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Gpt", "no DNS label"),
        ("1x", "no DNS label"),
        ("a_b", "label"),
        ("x-", "label"),
        ("x" * 48, "pod names of 63|shorten it by"),
    ],
)
def test_names(name, why):
    if name == "x" * 48:
        manifests.require_names(
            dataclasses.replace(BARE, name=name)
        )  # 63 characters, which is allowed
        name += "x"
    with pytest.raises(errors.FlagError, match=why):
        manifests.require_names(dataclasses.replace(BARE, name=name))


def test_what_the_image_is_built_of_is_there():
    folder = pathlib.Path(manifests.__file__).parent
    text = (folder / "Dockerfile").read_text()
    copied = [
        name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()
    ]
    assert "tfps" in copied and all((folder.parent / name).exists() for name in copied)
    assert f"USER {pods.USER}:{pods.USER}" in text
    assert all(line.startswith("CMD [") for line in text.splitlines() if "CMD" in line)
