"""A proxy between a reader and its stream that cuts where it hurts, by a plan that a seed repeats.

It passes what the server sends byte for byte, whole chunks at a time, until a cut falls into one. On the way it looks
at how the server wrote: every chunk must be made of whole frames.
"""

import itertools
import re
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from random import Random

from tests.response_pieces import Kind, Piece, ResponsePieces
from tests.tcp_proxy import Cut, Hook, TcpProxy

_FRAME = re.compile(
    rb"(?:event: (?P<event>[a-z.]+)\ndata: \{[^\r\n]*\}(?:\nid: (?P<seq>\d+)@[0-9a-z]+)?|retry: \d+|: ping)\n\n"
)
_WITHOUT_ID = {"reset", "drain"}


class Place(Enum):
    """Where a connection is cut."""

    HEAD = "in the head of the response"
    ANYWHERE = "at any byte of a chunk, its framing among them"
    INSIDE = "inside a frame"
    BEFORE_BLANK_LINE = "between the id line and the blank line"
    AFTER = "after a frame"


class Ending(Enum):
    """How a connection is cut, as the reader sees it."""

    RESET = "reset"
    BREAK = "closed without the last chunk"
    END = "ended as HTTP says, with the last chunk"


@dataclass(frozen=True)
class PlannedCut:
    """A cut at the first frame that has this seq or a later one; in a head: of the next response."""

    seq: int
    place: Place
    ending: Ending
    depth: float
    """How far into the place, where it is longer than a byte: from 0 up to 1."""


@dataclass(frozen=True)
class Frame:
    """A frame in a chunk: `body[start:end]`. Control frames have no seq; `ready` has."""

    event: str
    seq: int | None
    start: int
    end: int


Way = tuple[Place, Ending]
"""Where a connection is cut, and how."""

# There is no last chunk before the first one.
WAYS: frozenset[Way] = frozenset(itertools.product(Place, Ending)) - {(Place.HEAD, Ending.END)}
"""All ways there are."""


def plan(random: Random, cuts: int, events: int, *, spare: Collection[Way] = ()) -> list[PlannedCut]:
    """As many cuts, anywhere among as many events, at each place equally often, in all ways but those to spare."""
    endings = {place: [ending for ending in Ending if (place, ending) in WAYS.difference(spare)] for place in Place}
    places = [place for place in Place if endings[place]]
    drawn: list[Place] = []
    while len(drawn) < cuts:
        drawn += random.sample(places, len(places))
    seqs = sorted(random.randint(1, events) for _ in range(cuts))
    return [
        PlannedCut(seq, place, random.choice(endings[place]), random.random())
        for seq, place in zip(seqs, drawn, strict=False)
    ]


class CuttingProxy(TcpProxy):
    """Cuts streams as planned, one cut after the other, whichever connection they come on."""

    def __init__(self, upstream_host: str, upstream_port: int, cuts: Iterable[PlannedCut]) -> None:
        """Prepares it. A plan without cuts between the id line and the blank line never has one fall there."""
        super().__init__(upstream_host, upstream_port)
        self.on_connection = self._watch
        self.planned = deque(cuts)
        """The cuts to come."""
        self._spares_ids = all(cut.place is not Place.BEFORE_BLANK_LINE for cut in self.planned)
        self.cut_events: dict[PlannedCut, int] = {}
        """The cuts that fell on an event, and its seq; the others fell on heads and on control frames."""
        self.seq = 0
        """The latest event that was passed on whole."""
        self.events: dict[int, bytes] = {}
        """The frame of each event, as the server wrote it."""
        self.faults: list[str] = []
        """What the server wrote and should not have written."""

    @property
    def origin(self) -> str:
        """Where readers find it: scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    def _watch(self) -> Hook:
        pieces = ResponsePieces()

        def pass_on(data: bytes) -> bytes:
            passed = b""
            for piece in pieces.feed(data):
                cut = self._cut(piece) if piece.stream else None
                if cut is not None:
                    raise Cut(passed + cut.passed, clean=cut.clean)
                passed += piece.raw
            return passed

        return pass_on

    def _cut(self, piece: Piece) -> Cut | None:
        if piece.kind is Kind.CHUNK:
            frames = self._frames(piece.body)
            planned = self._due(frames)
            if planned is not None:
                return self._cut_chunk(piece, frames, planned)
            self.seq = max([self.seq, *(frame.seq for frame in frames if frame.seq is not None)])
        elif piece.kind is Kind.HEAD and self.planned and self.planned[0].place is Place.HEAD:
            planned = self.planned.popleft()
            end = 1 + int(planned.depth * (len(piece.raw) - 1))
            return Cut(piece.raw[:end], clean=planned.ending is not Ending.RESET)
        return None

    def _frames(self, body: bytes) -> list[Frame]:
        """The frames that a chunk is made of."""
        frames: list[Frame] = []
        start = 0
        while start < len(body):
            match = _FRAME.match(body, start)
            if match is None:
                self.faults.append(f"a chunk is not made of whole frames: {body[start:]!r}")
                break
            event = (match["event"] or b"").decode()
            seq = None if match["seq"] is None else int(match["seq"])
            frames.append(Frame(event, seq, start, match.end()))
            start = match.end()
            if (seq is None) != (not event or event in _WITHOUT_ID):
                self.faults.append(f"an id too many or too few: {match[0]!r}")
            if seq is not None and event != "ready":
                self._see(seq, event, match[0])
        return frames

    def _see(self, seq: int, event: str, frame: bytes) -> None:
        # Once a message is deleted, its earlier events no longer show its text.
        if self.events.setdefault(seq, frame) != frame and event != "message.deleted":
            self.faults.append(f"an event was sent in two versions: {self.events[seq]!r}, {frame!r}")

    def _due(self, frames: list[Frame]) -> PlannedCut | None:
        if not self.planned or self.planned[0].place is Place.HEAD:
            return None
        reached = any(frame.seq is not None and frame.seq >= self.planned[0].seq for frame in frames)
        return self.planned.popleft() if reached else None

    def _cut_chunk(self, piece: Piece, frames: list[Frame], planned: PlannedCut) -> Cut:
        frame = next(frame for frame in frames if frame.seq is not None and frame.seq >= planned.seq)
        if frame.event != "ready":
            assert frame.seq is not None
            self.cut_events[planned] = frame.seq
        match planned.place:
            case Place.INSIDE:
                end = piece.start + frame.start + 1 + int(planned.depth * (frame.end - frame.start - 2))
            case Place.BEFORE_BLANK_LINE:
                end = piece.start + frame.end - 1
            case Place.AFTER:
                end = piece.start + frame.end
            case _:
                end = 1 + int(planned.depth * (len(piece.raw) - 1))
                if self._spares_ids and any(end == piece.start + frame.end - 1 for frame in frames):
                    end += 1
        if planned.ending is not Ending.END:
            return Cut(piece.raw[:end], clean=planned.ending is Ending.BREAK)
        # The chunk ends early here, and the response with it.
        body = piece.body[: max(end - piece.start, 0)]
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return Cut(chunk + b"0\r\n\r\n", clean=True)
