"""`launch kubernetes`: every task is a pod; Kubernetes starts it again.

The manifests are printed. With --apply they are created by `kubectl`, and the job is followed to
its end; it goes on if this process ends. `launch kubernetes --name=NAME stop` ends it.
"""

import sys
from collections.abc import Sequence

from absl import flags

from launch import errors, flags as common, kubernetes_job, manifests, pods, topology, yaml_text
from launch.kubectl import Kubectl
from launch.output import Output

FLAGS = flags.FlagValues()  # Those of the launcher, and then those of all launchers.

flags.DEFINE_string(
    "name", "tfps", "The job's name: small letters, digits and dashes.", flag_values=FLAGS
)
flags.DEFINE_string(
    "image", None, "The container image, in which the program is.", flag_values=FLAGS
)
flags.DEFINE_string(
    "namespace", "", "The namespace. Default: that of kubectl's context.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "apply",
    False,
    "Create the job by kubectl and follow it, instead of printing.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "jobset", False, "Use JobSet (jobset.x-k8s.io/v1alpha2) instead of Jobs.", flag_values=FLAGS
)
flags.DEFINE_string(
    "volume",
    "",
    "Name of a PersistentVolumeClaim for what the job writes, the working folder of all tasks. It "
    "has to be ReadWriteMany if they run on several nodes. Default: a folder that ends with its "
    "pod.",
    flag_values=FLAGS,
)
flags.DEFINE_string("folder", "/job", "Where the volume is in the container.", flag_values=FLAGS)
flags.DEFINE_multi_string(
    "secret", [], "Name of a Secret whose entries all tasks get as variables.", flag_values=FLAGS
)
flags.DEFINE_multi_string(
    "pull_secret", [], "Name of a Secret with which the image is pulled.", flag_values=FLAGS
)
flags.DEFINE_multi_string(
    "node_selector",
    [],
    "ROLE:LABEL=VALUE: on which nodes a role's pods may run.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "port", 2222, "The port of each task, in its pod.", 1024, 65535, flag_values=FLAGS
)
flags.DEFINE_integer(
    "keep", 3600, "Seconds for which a job is kept after its end.", 0, flag_values=FLAGS
)
flags.DEFINE_string(
    "kubectl", "kubectl", "The command that reaches the cluster.", flag_values=FLAGS
)
FLAGS.append_flag_values(common.FLAGS)


def run(program: Sequence[str]) -> int:
    """Prints the manifests, or creates the job and follows it; returns the exit code.

    Args:
      program: the program and its arguments.

    Raises:
      LaunchError: a flag is wrong, or the cluster does not take the job.
    """
    job = described(program)
    if FLAGS.dry_run or not FLAGS.apply:
        print(yaml_text.documents(manifests.of_job(job)), end="")
        return 0
    output = common.output()
    try:
        return _followed(job, output)
    finally:
        output.close()


def stop() -> int:
    """Ends the job --name; returns the exit code.

    Raises:
      HostError: the cluster does not answer.
    """
    print("the chief ends first, if there is one", file=sys.stderr)
    for name in kubernetes_job.stop(FLAGS.jobset, _kubectl()):
        print(f"deleted {name}", file=sys.stderr)
    return 0


def described(program: Sequence[str]) -> pods.Job:
    """Returns the job that the flags describe.

    Raises:
      FlagError: a flag's value is wrong.
    """
    if not FLAGS.image:
        raise errors.FlagError(
            "--image is not set; name an image that has the program (launch/Dockerfile builds one)"
        )
    policy = common.policy()
    job = pods.Job(
        name=FLAGS.name,
        roles=common.roles(),
        image=FLAGS.image,
        command=tuple(program),
        namespace=FLAGS.namespace,
        port=FLAGS.port,
        grace=round(policy.grace),
        volume=FLAGS.volume,
        folder=FLAGS.folder,
        environ=common.environ(),
        secrets=tuple(FLAGS.secret),
        pull_secrets=tuple(FLAGS.pull_secret),
        node_selectors=_node_selectors(FLAGS.node_selector),
        restarts=policy.budgets,
        job_restarts=policy.job_restarts,
        keep=FLAGS.keep,
        settle=policy.settle,
        jobset=FLAGS.jobset,
    )
    manifests.require_names(job)
    return job


def _followed(job: pods.Job, output: Output) -> int:
    """Creates a job and follows it to its end."""
    kubernetes_job.create(job, _kubectl())
    end = f"python -m launch kubernetes --name={job.name} stop"
    if job.namespace:
        end = end.replace(" stop", f" --namespace={job.namespace} stop")
    if job.jobset:
        end = end.replace(" stop", " --jobset stop")
    output.say(f"the job {job.name} is created; end it with: {end}")
    if not job.volume:
        output.say("what the job writes ends with its pods; --volume=CLAIM keeps it")
    try:
        code = kubernetes_job.Watch(job, _kubectl(), output).until_done()
    except KeyboardInterrupt:
        output.say(f"the job {job.name} goes on; end it with: {end}")
        return 130
    if code:
        kubernetes_job.stop(job.jobset, _kubectl())
    return code


def _kubectl() -> Kubectl:
    return Kubectl(FLAGS.name, FLAGS.namespace, FLAGS.kubectl)


def _node_selectors(items: Sequence[str]) -> dict[str, dict[str, str]]:
    """Role -> the labels of --node_selector."""
    found: dict[str, dict[str, str]] = {}
    for item in items:
        role, _, label = item.partition(":")
        key, given, value = label.partition("=")
        roles = topology.ROLES
        if role not in roles or not (key and given):
            raise errors.FlagError(
                f"--node_selector={item} is not ROLE:LABEL=VALUE with the role {', '.join(roles)}"
            )
        found.setdefault(role, {})[key] = value
    return found
