"""What every consistency policy promises, those of users included."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import Counting, mlp, regression, relative_error
from tfps.consistency import Clocks, ConsistencyPolicy, Exchange, Rounds, Schedule


@dataclasses.dataclass(frozen=True)
class OneAtATime(ConsistencyPolicy):
    """A user's policy: workers take turns, so no gradient is ever stale."""

    def schedule(self) -> Schedule:
        return Turns()


class Turns(Clocks):
    """Only one worker has steps to take at a time."""

    def __init__(self):
        super().__init__()
        self._busy = None

    def allowance(self, worker):
        return 1 if self._busy in (None, worker) else 0

    def started(self, worker):
        self._busy = worker

    def finished(self, worker, steps, weight):
        self._busy = None
        return super().finished(worker, steps, weight)


class Majority(ConsistencyPolicy):
    """A user's policy in rounds: a round waits for more than half of the workers."""

    in_rounds = True

    def __init__(self, workers):
        self.workers = workers

    def schedule(self):
        return Rounds(backups=(self.workers - 1) // 2)

    def require_workers(self, num_workers):
        if num_workers != self.workers:
            raise tfps.ConfigError(f"workers={self.workers} must be {num_workers}")


OUTER = keras.optimizers.SGD(1.0)

POLICIES = {
    "async": tfps.Async(),
    "scaled": tfps.Async(staleness_scaling=True),
    "bounded": tfps.BoundedStaleness(1),
    "sync": tfps.Sync(),
    "backup": tfps.Sync(backups=1),
    "local round": tfps.LocalSteps(4, OUTER),
    "local each": tfps.LocalSteps(4, OUTER, "each"),
    "one at a time": OneAtATime(),
    "majority": Majority(3),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_laws(policy):
    policy.require_workers(3)
    exchange = policy.exchange
    assert exchange.in_rounds == policy.in_rounds
    assert (exchange.outer is not None) == bool(policy.local_steps)
    assert exchange == policy.exchange and hash(exchange) == hash(policy.exchange)
    assert exchange.name == policy.exchange.name
    for steps in (1, 8):
        assert 1 <= policy.steps_per_call(steps) <= max(steps, policy.local_steps)
    schedules = [policy.schedule(), policy.schedule()]
    assert schedules[0] is not schedules[1]  # A schedule is for one run.
    for schedule in schedules:
        for worker in range(3):
            schedule.join(worker)
        starts = [w for w in range(3) if schedule.allowance(w)]
        assert starts  # Somebody may begin.
        schedule.started(starts[0])
        held = schedule.finished(starts[0], 1, 1.0)
        assert not held or policy.in_rounds
        for worker in range(3):
            schedule.leave(worker)
        if policy.in_rounds:
            assert schedule.due() == {}  # Who has left is not waited for, and has nothing held.


def test_exchanges_that_differ():
    named = {p.exchange.name for p in POLICIES.values()}
    assert len(named) == len({p.exchange for p in POLICIES.values()}) == 5
    assert Exchange(outer=tfps.ModelAverage(0.5)) == Exchange(outer=tfps.ModelAverage(0.5))
    assert Exchange(outer=OUTER).name == Exchange(outer=keras.optimizers.SGD(1.0)).name
    assert (
        Exchange(outer=OUTER).name != Exchange(outer=keras.optimizers.SGD(1.0, momentum=0.5)).name
    )


def test_a_users_policy_decides_who_steps(connect):
    """With turns, two workers do what plain Keras does on the same batches, to rounding."""
    x, y = regression()
    reference = mlp()
    reference.compile(keras.optimizers.SGD(0.1), "mse")
    reference.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0)
    model = mlp()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    trainer = tfps.Trainer(model, connect(workers=2), OneAtATime())
    trainer.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0)
    assert relative_error(model, reference) < 1e-4
    assert trainer.stats["staleness_max"] == [0, 0]


def test_a_users_policy_in_rounds(connect):
    model = Counting.compiled(keras.optimizers.SGD(1.0))
    trainer = tfps.Trainer(model, connect(workers=2), Majority(2))
    ones = np.ones([12, 1], np.float32)
    trainer.fit(ones, ones, batch_size=1, verbose=0)
    np.testing.assert_array_equal(model.w, -6.0)  # Six rounds of two workers, whose mean is 1.
    with pytest.raises(tfps.ConfigError, match="workers=3 must be 2"):
        trainer.consistency = Majority(3)


def test_a_users_schedule_is_told_the_weights(connect):
    """Also where no hook looks at batches, so that reports could stay on the workers."""
    weights = []

    class Weighing(Clocks):
        def finished(self, worker, steps, weight):
            weights.append(weight)
            return super().finished(worker, steps, weight)

    class Policy(ConsistencyPolicy):
        def schedule(self):
            return Weighing()

    model = Counting.compiled(keras.optimizers.SGD(1.0))
    ones = np.ones([10, 1], np.float32)
    tfps.Trainer(model, connect(), Policy()).fit(ones, ones, batch_size=4, verbose=0)
    assert weights == [4.0, 4.0, 2.0]


def test_an_outer_optimizer_whose_schedule_cannot_be_saved(connect):
    class Falling(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 1.0 / (1.0 + tf.cast(step, "float32"))

    policies = [tfps.LocalSteps(2, keras.optimizers.SGD(Falling())) for _ in range(2)]
    assert policies[0].exchange.name == policies[1].exchange.name
    model = Counting.compiled(keras.optimizers.SGD(1.0))
    ones = np.ones([8, 1], np.float32)
    trainer = tfps.Trainer(model, connect(), policies[0])
    trainer.fit(ones, ones, batch_size=1, verbose=0)
    # Four exchanges of two steps, at rates of 1, 1/2, 1/3 and 1/4.
    np.testing.assert_allclose(model.w, -2.0 * (1 + 1 / 2 + 1 / 3 + 1 / 4), rtol=1e-5)
    assert trainer.state.export().sides


class Stuck(Clocks):
    """Allows three steps, and then none."""

    def allowance(self, worker):
        return 1 if sum(self._done.values()) < 3 else 0


class Holds(Clocks):
    def finished(self, worker, steps, weight):
        return True


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Stuck, "Stuck allows no step to any of the workers"),
        (Holds, "Holds holds back what worker 0 computed"),
    ],
)
def test_a_schedule_that_cannot_work_says_so(connect, schedule, message):
    class Policy(ConsistencyPolicy):
        def schedule(self):
            return schedule()

    model = Counting.compiled(keras.optimizers.SGD(1.0))
    ones = np.ones([8, 1], np.float32)
    with pytest.raises(tfps.ConfigError, match=message):
        tfps.Trainer(model, connect(), Policy()).fit(ones, ones, batch_size=1, verbose=0)


def test_a_policy_and_its_exchange_agree(connect):
    class Halfway(OneAtATime):
        in_rounds = True

        @property
        def exchange(self):
            return Exchange()

    with pytest.raises(tfps.ConfigError, match="in_rounds must be the same in both"):
        tfps.Trainer(mlp(), connect(), consistency=Halfway())


def test_what_is_no_policy(connect):
    with pytest.raises(tfps.ConfigError, match=r"is no policy.*ConsistencyPolicy"):
        tfps.Trainer(mlp(), connect(), consistency=Turns())
    with pytest.raises(TypeError, match="schedule"):
        ConsistencyPolicy()
