"""The checker of the ledger sees what is wrong, in ledgers that are written here."""

import json

import pytest

from tfps import ledger
from tfps.store import ledger_file, mailbox
from tfps.store.ledger_file import Line
from tfps.training.ledger import Ledger

BATCH = 5  # records


class Written:
    """A ledger of a run with two workers and two ps, in which each unit is a batch.

    Attributes:
      chief: writes the chief's part.
    """

    def __init__(self, folder, rounds=False, drops=()):
        self.folder = folder
        self.chief = Ledger(folder)
        self.chief.begin_fit()
        self.begin(rounds, drops)

    def begin(self, rounds=False, drops=()):
        self.key = self.chief.begin_run([0, 0], [0, 1], rounds, drops)

    def give(self, unit, batch=None, worker=0):
        batch = unit if batch is None else batch
        self.chief.gave(worker, unit, [(0, 0, batch, batch + 1)])

    def letter(self, p, kind, worker=0, life=0, unit=0, **others):
        plain = {"masked": 0, "live": 1, "finite": 1, "counts": 1, "updated": 1, "records": BATCH}
        line = Line(*self.key, kind, worker, life, unit, **{**plain, **others})
        self.append(p, " ".join(map(str, line)) + " .")

    def append(self, p, text):
        with open(ledger_file.path_of(self.folder, p), "a") as file:
            file.write(f"\n{text}")

    def push(self, unit, servers=(0, 1), **others):
        for p in servers:
            self.letter(p, mailbox.PUSH, unit=unit, **others)

    def fence(self, worker, life):
        for p in (0, 1):
            self.letter(p, mailbox.FENCE, worker, life, counts=0, records=-1)

    def end(self, stopped=False):
        self.chief.end_run(stopped)


@pytest.fixture
def written(tmp_path):
    one = Written(str(tmp_path / "ledger"))
    for unit in range(4):
        one.give(unit)
        one.push(unit)
    return one


def said(written, capsys):
    """(exit code, what the command prints)."""
    code = ledger.main(["check", str(written.folder)])
    return code, capsys.readouterr().out.strip()


def test_a_sound_ledger_is_one_line(written, capsys):
    written.end()
    assert said(written, capsys) == (0, "each of 20 records once on each of 2 ps")


def test_one_lost(written, capsys):
    written.give(4)
    written.push(4, servers=[0])
    written.end()
    code, text = said(written, capsys)
    assert code == 1
    assert "lost: unit 4 of run 1 (batch 4 of dataset 0, pass 0 of fit 1) on ps 1" in text


def test_one_that_no_ps_has(written, capsys):
    written.give(4)
    written.end()
    code, text = said(written, capsys)
    assert code == 1 and "on every ps" in text


def test_one_that_nobody_was_given(written, capsys):
    written.give(4, batch=5)
    written.push(4)
    written.end()
    code, text = said(written, capsys)
    assert code == 1
    assert "lost: batch 4 of dataset 0, pass 0 of fit 1, which nobody was given" in text


def test_one_doubled_on_a_ps(written, capsys):
    written.push(2, servers=[1])
    written.end()
    code, text = said(written, capsys)
    assert code == 1 and "doubled: unit 2 of run 1" in text and "2 times on ps 1" in text


def test_a_batch_of_two_units(written, capsys):
    written.give(4, batch=1)
    written.push(4)
    written.end()
    code, text = said(written, capsys)
    assert code == 1 and "doubled: batch 1 of dataset 0" in text


def test_a_batch_that_was_applied_before_a_cut_and_after_it(written, capsys):
    written.end()
    written.chief.cut("a")
    written.begin()
    written.give(4, batch=3)
    written.push(4)
    written.end()
    assert "doubled: batch 3" in said(written, capsys)[1]


def test_one_applied_after_its_fence(written, capsys):
    written.fence(1, life=1)
    written.give(4, worker=1)
    written.push(4, worker=1)
    written.end()
    code, text = said(written, capsys)
    assert code == 1
    assert "applied after its worker was fenced off: unit 4" in text and "on ps 1" in text


def test_a_repeat_with_a_mask(written, capsys):
    written.give(4, worker=1)
    written.push(4, servers=[0], worker=1)
    written.fence(1, life=1)
    written.push(4, servers=[1], worker=1, counts=0)
    written.letter(0, mailbox.REPEAT, unit=4, masked=1)
    written.letter(1, mailbox.REPEAT, unit=4)
    written.end()
    expected = "each of 25 records once on each of 2 ps; 1 unit repeated; 1 late push refused"
    assert said(written, capsys) == (0, expected)


def test_a_repeat_of_other_records(written, capsys):
    written.give(4)
    written.push(4, servers=[0])
    written.letter(1, mailbox.REPEAT, unit=4, records=BATCH - 1)
    written.end()
    assert "with other records when repeated" in said(written, capsys)[1]


def test_a_batch_that_was_given_back(written, capsys):
    written.give(4)
    written.give(5, batch=4)
    written.push(5)
    written.end()
    assert said(written, capsys)[0] == 0


def test_batches_that_a_dataset_did_not_have(written, capsys):
    written.chief.gave(0, 4, [(0, 0, 4, 9)], count=5)
    written.push(4)
    written.chief.ends([(0, 0, 4, 5)])
    written.end()
    assert said(written, capsys) == (0, "each of 25 records once on each of 2 ps")


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("why", ["late", "overflow"])
def test_a_unit_that_a_policy_drops(tmp_path, capsys, why, allowed):
    written = Written(str(tmp_path), rounds=why == "late", drops=[why] if allowed else [])
    written.give(0)
    written.push(0)
    written.give(1)
    if why == "late":
        written.chief.dropped(1, why)
    else:
        written.push(1, finite=0, updated=0)
    written.end()
    code, text = said(written, capsys)
    assert code == (0 if allowed else 1)
    if allowed:
        assert text.endswith(f"1 batch dropped by policy ({why})")
    else:
        assert "dropped where the policy drops nothing: unit 1" in text


def test_a_round_that_is_never_applied(tmp_path, capsys):
    written = Written(str(tmp_path), rounds=True)
    for unit in range(3):
        written.give(unit)
        written.chief.pushes(10 + unit, unit)
        written.push(10 + unit, updated=int(unit == 1))
    written.end()
    code, text = said(written, capsys)
    assert code == 1 and "added up on a ps that then applied nothing" in text


def test_training_that_went_back(written, capsys):
    written.end()
    written.chief.cut("snapshot-1")
    written.begin()
    written.give(4)
    written.push(4, servers=[0])
    written.append(1, "1 2 0 0 0")  # Ps 1 is killed amid a line.
    written.chief.break_run(ValueError())
    written.chief.back("snapshot-1", [1])
    written.begin()
    written.give(4)
    written.push(4)
    written.end()
    assert said(written, capsys) == (
        0,
        "each of 25 records once on each of 2 ps; 1 unit lost with ps 1 since snapshot-1, and "
        "done again",
    )


def test_another_chief_goes_on(written, capsys):
    written.end()
    written.chief.cut("snapshot-1")
    written.begin()
    written.give(4)
    code, text = said(written, capsys)
    assert code == 75 and "1 unit under way" in text
    with open(f"{written.folder}/chief-1.jsonl", "a") as file:
        file.write('{"event": "ga')  # It is killed amid a line.
    other = Written(written.folder)
    other.chief.resumed("snapshot-1")
    other.begin()
    other.give(4)
    other.push(4)
    other.end()
    assert said(other, capsys)[0] == 0


def test_a_cut_whose_snapshot_was_never_written_is_not_gone_back_to(written, capsys):
    written.end()
    written.chief.cut("snapshot-1")
    for unit in 4, 5:
        written.begin()
        written.give(unit)
        written.push(unit)
        written.end()
        written.chief.cut(f"snapshot-{unit}")  # The disk is full.
    other = Written(written.folder)
    other.chief.resumed("snapshot-1")
    for unit in 4, 5:
        other.begin()
        other.give(unit)
        other.push(unit)
        other.end()
    code, text = said(other, capsys)
    assert code == 0 and "2 units lost with a chief since snapshot-1, and done again" in text


def test_a_run_that_ends_with_an_error(written, capsys):
    written.give(4)
    written.chief.break_run(ValueError())
    code, text = said(written, capsys)
    assert code == 1 and "given up with ValueError: unit 4" in text


def test_what_is_dropped_because_training_is_stopped(written, capsys):
    written.give(4)
    written.end(stopped=True)
    code, text = said(written, capsys)
    assert code == 0 and text.endswith("1 batch dropped by policy (stopped)")


@pytest.mark.parametrize("missing", ["everything", "a ps"])
def test_nothing_to_read(tmp_path, capsys, missing):
    if missing == "a ps":
        written = Written(str(tmp_path))
        written.letter(0, mailbox.PUSH)
    assert ledger.main(["check", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_damaged_file(written, capsys):
    with open(f"{written.folder}/chief-1.jsonl", "a") as file:
        file.write("{\n" + json.dumps({"event": "fit"}) + "\n")
    assert ledger.main(["check", written.folder]) == 1
    assert "is damaged in line" in capsys.readouterr().err
