"""The search, the profile's file, and the command."""

import json
import subprocess
import sys

import pytest

import tfps
from tests.planning.profiles import profile
from tfps.planning import units
from tfps.planning.command import main
from tfps.planning.fleet import Fleet
from tfps.planning.prediction import simulate
from tfps.planning.profile import Profile
from tfps.planning.search import level, plan
from tfps.planning.setting import Setting


@pytest.fixture
def path(tmp_path):
    profile().write(tmp_path / "sub" / "profile.json")
    return str(tmp_path / "sub" / "profile.json")


def test_it_says_not_to_compress_where_it_does_not_pay():
    found = plan(profile(), workers=2, ps=4, bandwidth="100gbit", latency="20us")
    assert not found.compresses
    assert found.reason.startswith("do not compress")
    assert found.best.setting.push == found.best.setting.pull == "identity"
    assert "less than the 10%" in found.reason


def test_it_compresses_where_that_pays():
    found = plan(profile(), copies=False, codecs=["int8"], workers=2, ps=2, bandwidth="100mbit")
    assert found.compresses
    assert found.best.setting.overlap and found.best.setting.pull == "int8"
    assert found.best.setting.consistency == "async"
    assert "times as fast as plain training" in found.reason
    allowed = plan(
        profile(), codecs=["bfloat16"], copies=False, workers=2, ps=2, bandwidth="100mbit"
    )
    assert {allowed.best.setting.push, allowed.best.setting.pull} == {"bfloat16"}


def test_copies_are_for_slow_links_only():
    slow = plan(profile(), codecs=["int8"], workers=2, ps=2, bandwidth="20mbit")
    assert slow.best.setting.consistency.startswith("local:")
    fast = plan(profile(), codecs=["int8"], workers=2, ps=2, bandwidth="10gbit")
    assert fast.best.setting.consistency == "async"


def test_a_policy_is_kept():
    found = plan(
        profile(), consistency="sync", codecs=[], copies=False, workers=4, ps=2, bandwidth="1gbit"
    )
    assert found.best.setting.consistency == "sync"
    kinds = {p.setting.policy().kind for p in found.candidates}
    assert kinds == {"async", "bounded", "sync", "local"}


def test_candidates_come_in_order_and_cover_what_was_measured():
    found = plan(profile(), workers=4, ps=2, bandwidth="1gbit")
    speeds = [p.examples_per_second for p in found.candidates]
    assert speeds == sorted(speeds, reverse=True)
    settings = [p.setting for p in found.candidates]
    assert len(settings) == len(set(settings))
    assert {s.push for s in settings} == set(profile().push)
    assert {s.pull for s in settings} == set(profile().pull)
    assert {s.overlap for s in settings} == {0, 1, 2}
    assert {level(s) for s in settings} == {0, 1, 2, 3, 4, 5, 6}
    assert [p.ps for p in found.by_ps] == [1, 2, 4, 8]


def test_a_further_codec_is_only_another_entry():
    one = profile()
    pull = {**one.pull, "difference:onebit": one.push["topk:0.01"]}
    chosen = ["topk:0.01", "difference:onebit"]
    found = plan(
        one.replace(pull=pull), copies=False, codecs=chosen, workers=2, ps=2, bandwidth="50mbit"
    )
    assert found.best.setting.pull == "difference:onebit"


def test_many_workers_are_screened_with_fewer():
    fleet = Fleet(80, 16, bandwidth="1gbit")
    found = plan(profile(), fleet, copies=False, codecs=[])
    # What is recommended was simulated with all of them.
    assert found.best == simulate(profile(), fleet, found.best.setting)


def test_a_profile_is_read_as_it_was_written(path):
    assert Profile.read(path) == profile()
    with open(path) as file:
        assert json.load(file)["version"] == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 7}, "version 7, but this tfps reads version 1"),
        ({"compute": -1.0}, "compute=-1.0 is not at least 0"),
        ({"compute": None}, "is no whole profile"),
        ({"push": {}}, "there is no codec identity"),
        ({"more": 1}, "is no whole profile"),
        ({"transport": {"send": 1}}, "is no whole profile"),
    ],
)
def test_what_is_no_profile(tmp_path, change, says):
    found = {**profile().to_json(), **change}
    if change.get("compute", 0) is None:
        del found["compute"]
    (tmp_path / "p.json").write_text(json.dumps(found))
    with pytest.raises(tfps.ConfigError, match=says):
        Profile.read(tmp_path / "p.json")


def test_units():
    assert units.bandwidth("100mbit") == 12.5e6
    assert units.both_ways("50mbit/10mbit") == (6.25e6, 1.25e6)
    assert units.bandwidth("none") == float("inf")
    assert units.seconds("0.2ms") == pytest.approx(2e-4)
    assert units.slow("0.1@10x") == (0.1, 10.0)
    assert Fleet(10, slow="0.2@3x").slowness().count(3.0) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--profile is missing"),
        (["--profile=/none.json"], "cannot be read"),
        (["--bandwidth=fast"], "bandwidth='fast' is not a number above 0 with kbit"),
        (["--worker_bandwidth=1gbit/x"], "worker_bandwidth='x' is not"),
        (["--latency=3"], "latency='3' is not a number with us, ms or s"),
        (["--slow=2@10x"], "slow='2@10x' is not SHARE@FACTORx"),
        (["--workers=0"], "workers"),
        (["--leaving=-1"], "leaving=-1.0 must be a share"),
        (["--consistency=often"], "consistency='often' is not async"),
        (["--codecs=zip"], "codecs: 'zip' was not measured"),
        (["--nonsense=1"], "--help lists the flags"),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_wrong_flags_are_refused(path, capsys, arguments, says):
    given = [] if not arguments or "--profile" in arguments[0] else [f"--profile={path}"]
    assert main(["tfps.plan", *given, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and says in said and said.count("\n") == 1


def test_the_command_prints_a_table_and_writes_json(path, tmp_path, capsys):
    out = str(tmp_path / "plan.json")
    code = main(
        ["x", f"--profile={path}", "--workers=4", "--ps=2", "--bandwidth=1gbit", f"--json={out}"]
    )
    assert code == 0
    said = capsys.readouterr().out
    assert "recommended: --" in said and "examples/s" in said
    with open(out) as file:
        found = json.load(file)
    assert found["version"] == 1 and found["fleet"]["snapshots"] is None
    assert found["best"]["setting"] in [one["setting"] for one in found["candidates"]]


def test_a_setting_says_its_flags():
    assert Setting("int8", "identity", 1, "local:4").flags == (
        "--consistency=local:4 --push=int8 --overlap=1"
    )
    with pytest.raises(tfps.ConfigError, match="overlap=3 must be 0, 1 or 2"):
        Setting(overlap=3)
    with pytest.raises(tfps.ConfigError, match="'zip' was not measured; the profile has identity"):
        Setting(push="zip").costs(profile())


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_the_module_may_be_imported_and_called():
    program = (
        "import sys, types, tfps; assert not isinstance(tfps.plan, types.ModuleType)\n"
        "import tfps.plan; assert callable(tfps.plan) and tfps.plan.Profile is tfps.Profile"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
