"""What is remembered of a person, and for how long."""

from __future__ import annotations

from sdsedit.web.sessions import Sessions


def test_one_state_a_person_until_it_expires():
    now = [0.0]
    sessions: Sessions[list[int]] = Sessions(list, idle=10, most=3, clock=lambda: now[0])
    sessions.of("a").append(1)
    assert sessions.of("a") == [1] and sessions.of("b") == []
    now[0] = 9
    sessions.of("a")
    now[0] = 15
    assert sessions.of("a") == [1] and len(sessions) == 1  # b was silent for 15 s
    now[0] = 26
    assert sessions.of("a") == []


def test_the_one_silent_longest_makes_room():
    sessions: Sessions[list[int]] = Sessions(list, most=2)
    for person in ("a", "b", "a", "c"):
        sessions.of(person).append(1)
    assert len(sessions) == 2 and sessions.of("a") == [1, 1] and sessions.of("b") == []
    sessions.forget("a")
    sessions.forget("a")
    assert sessions.of("a") == []
