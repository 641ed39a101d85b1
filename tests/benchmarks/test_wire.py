"""What the network benchmark computes; it needs neither root nor processes."""

import json
import os

import pytest

from benchmarks.wire import hosts, processor, report, starts, systems, turns
from benchmarks.wire.systems import System


def turn(step, up=None, down=None, **more):
    return {"step": step, "up": up, "down": down, **more}


def results(link_steps):
    """Results from system name -> step time in seconds; None is a failure."""
    return [
        report.result(s, [turn(link_steps[s.name])] if link_steps[s.name] else [], "lost")
        for s in systems.SYSTEMS
        if s.name in link_steps
    ]


def test_names_are_unique_and_bars_name_what_exists():
    names = [s.name for s in systems.SYSTEMS]
    assert len(set(names)) == len(names)
    families = {s.family for s in systems.SYSTEMS}
    assert families == set(systems.NEEDS) == set(report.COLOURS) == set(starts.STARTS)
    for bar in systems.BARS:
        assert bar.against in families | set(names)


def test_select_by_name_or_family():
    assert len(systems.select([])) == len(systems.SYSTEMS)
    assert {s.family for s in systems.select(["ddp", "mwms"])} == {"ddp", "mwms"}
    assert [s.name for s in systems.select(["tf_keras fit"])] == ["stock PSS, tf_keras fit"]
    assert systems.select(["no such thing"]) == []


def test_only_identity_is_lossless():
    for s in systems.select(["tfps"]):
        assert s.lossless == (s.settings["push"] == s.settings["pull"] == "identity")


def test_bandwidth():
    assert hosts.bits_per_second("100mbit") == 1e8
    assert hosts.burst_bytes("1gbit") == 125_000
    # A smaller one would cut the kernel's large segments into packets.
    assert hosts.burst_bytes("100mbit") == hosts.LARGE_SEGMENT > 64 * 1024
    for bad in ("100", "none", "0gbit", "1 gbit"):
        with pytest.raises(ValueError, match="is not a number with"):
            hosts.bits_per_second(bad)


def test_headers_are_no_payload():
    stats = {"bytes": 2 * 1514 + 66, "packets": 3, "errors": 0}
    assert hosts.payload(**stats) == 2 * 1448


def test_steps_of_a_turn():
    assert turns.steps_for(0.5, seconds=4.0, at_least=3) == 8
    assert turns.steps_for(5.0, seconds=4.0, at_least=3) == 3


def test_step_time_is_that_of_one_worker():
    # 20 steps in 5 s, by 2 workers at once: each takes 10, so one takes half a second.
    assert turns.step_time({"seconds": 5.0, "steps": 20}) == 0.5


def test_medians_and_spread():
    found = report.result(
        systems.SYSTEMS[0],
        [turn(0.2, 2e6, 3e6, predicted_up=1e6), turn(0.1, 2e6, 3e6), turn(0.4, 2e6, 3e6)],
    )
    assert (found["step_low"], found["step"], found["step_high"]) == (0.1, 0.2, 0.4)
    assert found["tokens_per_second"] == 2 * 4 * 64 / 0.2
    assert found["up"] == 2e6
    assert found["predicted_up"] == 1e6
    assert found["predicted_down"] is None


def test_table():
    tfps = systems.select(["overlap 0"])[0].name
    found = results({tfps: 0.25, systems.CUSTOM_LOOP: 0.5, "PyTorch DDP": None})
    lines = report.table(found).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| 250 (250 to 250) | 2,048 | — | — | 2.00 |" in lines[2]
    assert "| failed: lost |" in lines[4]


def test_measured_beside_predicted_bytes():
    found = report.result(
        systems.SYSTEMS[0], [turn(0.1, 2.2e6, 3e6, predicted_up=2e6, predicted_down=None)]
    )
    assert "| 2.20 (2.00, ×1.10) | 3.00 | — |" in report.table([found])


def test_bars_take_the_best_of_each_side():
    lossless, codec = "tfps identity / identity, overlap 2", "tfps int8 / int8, overlap 2"
    found = results(
        {
            lossless: 0.4,
            codec: 0.2,
            systems.CUSTOM_LOOP: 0.5,
            "PyTorch DDP": 0.3,
            "PyTorch DDP, fp16": 0.1,
        }
    )
    judged = report.verdicts({"1gbit": found})
    assert [(v["best"], v["against"], v["met"]) for v in judged] == [
        (lossless, systems.CUSTOM_LOOP, False),
        (codec, systems.CUSTOM_LOOP, True),
        (codec, "PyTorch DDP, fp16", False),
    ]
    assert [round(v["ratio"], 2) for v in judged] == [1.25, 2.5, 0.5]
    assert "MISSED" in report.bars_table(judged)


def test_a_bar_without_its_sides_is_not_judged():
    found = results({"tfps identity / identity, overlap 2": 0.4, systems.CUSTOM_LOOP: None})
    assert report.verdicts({"1gbit": found, "100mbit": found}) == []


def test_json(tmp_path):
    path = tmp_path / "wire.json"
    found = results({systems.CUSTOM_LOOP: 0.5})
    report.write(str(path), links={"none": found}, bars=[])
    read = json.loads(path.read_text())
    assert read["links"]["none"][0]["turns"][0]["step"] == 0.5
    assert read["about"]["versions"]["tensorflow"]


def test_processor_time_of_a_process(tmp_path):
    mine = processor.of([("chief", os.getpid()), ("ps0", 2**30)])
    assert set(mine) == {"chief"}
    times = os.times()
    assert mine["chief"].user == pytest.approx(times.user + times.children_user, abs=0.1)
    stat = "7 (a (b) c) S " + " ".join(str(n) for n in range(4, 30))
    assert processor.parse(stat) == ((14 + 16) / processor._TICK, (15 + 17) / processor._TICK)


def test_processor_time_by_role():
    def times(*seconds):
        hosts_ = ("worker0", "worker1", "ps0", "chief")
        return {h: processor.Time(s, s / 10) for h, s in zip(hosts_, seconds, strict=True)}

    found = processor.per_step(times(1, 2, 3, 4), times(3, 6, 4, 4.5), steps=10)
    assert found["worker"] == pytest.approx((0.6, 0.06))
    assert found["ps"] == pytest.approx((0.1, 0.01))
    assert found["chief"] == pytest.approx((0.05, 0.005))
    alone = System("alone", "alone", {}, True)
    rows = report.processor_table(
        [
            report.result(s, [turn(0.1, processor=one)])
            for s, one in [(alone, {"worker": (0.2, 0.0)}), (systems.SYSTEMS[0], found)]
        ]
    ).splitlines()
    assert rows[2].endswith("| 200 + 0 | — | — | 200 | 1.00 |")
    assert rows[3].endswith("| 600 + 60 | 100 + 10 | 50 + 5 | 825 | 4.12 |")
