import json

import pytest

import tfps

GOOD = {"chief": ["h:1"], "worker": ["h:2", "h:3"], "ps": ["h:4"]}


def from_env(cluster=GOOD, task=("worker", 1), text=None):
    config = {"cluster": cluster, "task": {"type": task[0], "index": task[1]}}
    return tfps.Cluster.from_env({"TF_CONFIG": json.dumps(config) if text is None else text})


def test_reads_tf_config():
    cluster = from_env()
    assert (cluster.num_workers, cluster.num_ps) == (2, 1)
    assert cluster.address == "h:3"
    assert cluster.servers == {"worker 0": "h:2", "worker 1": "h:3", "ps 0": "h:4"}
    assert cluster.resolver().cluster_spec().as_dict() == GOOD


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": ""}, "TF_CONFIG is not set"),
        ({"text": "{worker"}, "TF_CONFIG is not JSON"),
        ({"text": "[]"}, "no object under 'cluster'"),
        ({"text": json.dumps({"cluster": GOOD})}, "no 'task'"),
        ({"cluster": {k: v for k, v in GOOD.items() if k != "ps"}}, "names no 'ps'"),
        ({"cluster": {**GOOD, "ps": []}}, "names no 'ps'"),
        ({"cluster": {k: v for k, v in GOOD.items() if k != "chief"}}, "names no 'chief'"),
        ({"cluster": {**GOOD, "chief": ["h:8", "h:9"]}}, "names 2 chiefs"),
        ({"cluster": {**GOOD, "ps": ["h:2"]}}, "repeats the address 'h:2' (worker 0 and ps 0)"),
        ({"cluster": {**GOOD, "ps": ["h"]}}, "'h' is not host:port"),
        ({"cluster": {**GOOD, "ps": ["h:70000"]}}, "from 1 to 65535"),
        ({"cluster": {**GOOD, "ps": "h:4"}}, "expected a list"),
        ({"cluster": {**GOOD, "master": ["h:9"]}}, "unknown job 'master'"),
        ({"task": ("worker", 2)}, "this task is worker 2, but the cluster has 2 worker"),
        ({"task": ("worker", "x")}, "task index is 'x'"),
        ({"task": ("boss", 0)}, "task type is 'boss'"),
    ],
)
def test_errors_name_what_is_wrong(change, said):
    with pytest.raises(tfps.ClusterConfigError) as caught:
        from_env(**change)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_from_resolver():
    assert tfps.Cluster.from_resolver(from_env().resolver()).spec == GOOD


@pytest.mark.parametrize("counts", [{"workers": 0}, {"ps": 0}])
def test_local_cluster_needs_tasks(counts):
    with pytest.raises(tfps.ClusterConfigError, match="at least 1"):
        tfps.LocalCluster(**counts)
