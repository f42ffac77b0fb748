"""The ring: what it takes in, what it keeps, and what it gives to whom."""

from unittest.mock import create_autospec

from events.channel import Channel
from events.stream import Stream
from events.subscriber import Subscriber


def _channel(ring_bytes: int = 1_000, head: int = 0) -> Channel:
    channel = Channel("default", "c", ring_bytes, 10 * ring_bytes)
    channel.begin(0, head)
    return channel


def _hear(channel: Channel, seq: int, kind: str = "message.created", size: int = 10) -> bool:
    return channel.hear(seq, kind, b"%09d\n" % seq + b"." * (size - 10))


def _join(channel: Channel, position: int, limit: int, until: int | None = None) -> tuple[bytes, int]:
    frames = channel.frames(position, limit, until)
    return b"".join(frames), position + len(frames)


def test_frames_are_taken_in_one_after_the_other() -> None:
    channel = _channel(head=4)
    assert _hear(channel, 5)
    assert _hear(channel, 6)
    assert _join(channel, 4, 1_000) == (b"000000005\n000000006\n", 6)
    assert _join(channel, 5, 1_000) == (b"000000006\n", 6)


def test_what_is_known_is_dropped() -> None:
    channel = _channel(head=4)
    assert not _hear(channel, 4)
    _hear(channel, 5)
    assert not _hear(channel, 5)
    assert channel.last_seq == 5


def test_an_early_frame_waits_for_the_one_before_it() -> None:
    channel = _channel()
    assert not _hear(channel, 3)
    assert not _hear(channel, 2)
    assert channel.last_seq == 0
    assert _hear(channel, 1)
    assert channel.last_seq == 3
    assert not channel.early


def test_before_the_head_is_known_everything_is_early() -> None:
    channel = Channel("default", "c", 1_000, 10_000)
    assert not _hear(channel, 5)
    assert channel.early.keys() == {5}


def test_a_slice_is_bounded_in_bytes_but_is_one_frame_at_least() -> None:
    channel = _channel()
    for seq in range(1, 5):
        _hear(channel, seq, size=40)
    assert _join(channel, 0, 100)[1] == 2
    assert _join(channel, 0, 1)[1] == 1
    assert _join(channel, 0, 1_000, until=3)[1] == 3
    assert _join(channel, 0, 1_000, until=0) == (b"", 0)


def test_the_ring_is_bounded_in_bytes_and_keeps_the_newest() -> None:
    channel = _channel(ring_bytes=400)
    for seq in range(1, 101):
        _hear(channel, seq, size=40)
        held = _join(channel, channel.base - 1, 10_000)[0]
        assert len(held) <= 400
        assert channel.holds(seq)
    assert not channel.holds(channel.base - 2)
    assert channel.holds(channel.base - 1)
    assert _join(channel, channel.base - 1, 10_000)[1] == 100


def test_a_frame_larger_than_the_ring_is_held_until_the_next_one() -> None:
    channel = _channel(ring_bytes=100)
    _hear(channel, 1, size=500)
    assert _join(channel, 0, 64)[1] == 1


def test_a_deletion_drops_the_frames_that_may_show_the_text() -> None:
    channel = _channel()
    _hear(channel, 1)
    _hear(channel, 2)
    _hear(channel, 3, kind="message.deleted")
    assert not channel.holds(1)  # whoever lacks 2 reads the log
    assert channel.holds(2)
    assert _join(channel, 2, 1_000) == (b"000000003\n", 3)


def test_what_live_readers_are_still_to_be_given_stays_within_its_own_bound() -> None:
    channel = _channel(ring_bytes=400)
    channel.settle(Subscriber(create_autospec(Stream), channel, 0))
    for seq in range(1, 101):  # 4,000 bytes that the pump has had no time for
        _hear(channel, seq, size=40)
    assert channel.holds(channel.flushed)
    for seq in range(101, 201):
        _hear(channel, seq, size=40)
    for seq in range(201, 300):
        _hear(channel, seq, size=40)
    assert not channel.holds(channel.flushed)
    assert len(_join(channel, channel.base - 1, 100_000)[0]) <= 4_000 + 40


def test_a_channel_that_forgets_knows_nothing_and_keeps_its_readers() -> None:
    channel = _channel(head=4)
    reader = Subscriber(create_autospec(Stream), channel, 4)
    channel.settle(reader)
    _hear(channel, 5)
    channel.forget()
    assert not channel.known
    assert not _hear(channel, 6)  # of the new timeline: it waits until it is known where that stands
    assert list(channel.behind) == [reader]
    channel.begin(0, 5)
    assert not channel.holds(4)
    assert reader.beginning != channel.beginning


def test_a_reader_that_parts_stands_where_the_others_stood() -> None:
    channel = _channel(head=4)
    reader = Subscriber(create_autospec(Stream), channel, 0)
    channel.settle(reader)
    channel.part(reader)
    assert reader.position == 4
    assert (list(channel.live), list(channel.behind)) == ([], [reader])


def test_early_frames_wait_no_longer_for_what_the_log_has_lost() -> None:
    channel = _channel(head=3)
    for seq in (7, 11, 12, 14):
        _hear(channel, seq)
    channel.skip(10)
    assert channel.last_seq == 12
    assert _join(channel, 10, 1_000) == (b"000000011\n000000012\n", 12)
    assert channel.early.keys() == {14}


def test_frames_that_wait_for_another_are_bounded() -> None:
    channel = Channel("default", "c", 100_000, 100_000)
    channel.begin(0, 0)
    for seq in range(2, 2_000):
        assert not channel.hear(seq, "message.created", b"%d " % seq)
    assert len(channel.early) == 500
    assert channel.hear(1, "message.created", b"1 ")
    assert channel.last_seq == 501  # what was kept is the beginning: the rest is read from the log
    assert not channel.early
