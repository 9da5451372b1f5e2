from broker_pipeline.scheduling.policies.liveness import Liveness


def test_silence_is_death_after_the_timeout() -> None:
    liveness = Liveness(2.5)
    assert not liveness.is_alive("a", 0.0)
    liveness.heard("a", 0.0)
    assert liveness.is_alive("a", 2.4)
    assert not liveness.is_alive("a", 2.5)
    liveness.heard("a", 3.0)
    assert liveness.is_alive("a", 5.0)


def test_nobody_dies_while_we_cannot_hear() -> None:
    liveness = Liveness(2.5)
    liveness.heard("a", 0.0)
    liveness.set_connected(False, 1.0)
    assert liveness.is_alive("a", 60.0)
    liveness.set_connected(True, 60.0)
    assert liveness.is_alive("a", 62.4)
    assert not liveness.is_alive("a", 62.5)


def test_a_short_interruption_gives_the_full_time_again() -> None:
    liveness = Liveness(2.5)
    liveness.heard("a", 0.0)
    liveness.set_connected(False, 2.0)
    liveness.set_connected(False, 2.1)
    liveness.set_connected(True, 2.2)
    assert liveness.is_alive("a", 4.6)


def test_the_forgotten_are_not_alive() -> None:
    liveness = Liveness(2.5)
    liveness.heard("a", 0.0)
    liveness.forget("a")
    assert not liveness.is_alive("a", 0.0)
