"""Log lines as they are written."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest


def lines_of(program: str) -> list[dict[str, Any]]:
    """What a program logs, once logs are configured as the server does. In a process of its own: they are global."""
    setup = "import logging, structlog\nfrom server import logs\nlogs.configure('INFO')\nlog = structlog.get_logger()\n"
    done = subprocess.run([sys.executable, "-c", setup + program], capture_output=True, check=True, timeout=60)
    assert done.stdout == b""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_line_is_one_json_object() -> None:
    (line,) = lines_of("log.info('hello', n=1, text='a\\nb', odd=object)")
    assert (line["event"], line["level"], line["n"], line["text"]) == ("hello", "info", 1, "a\nb")
    assert line["time"].endswith("Z")


def test_what_libraries_log_passes_through_it() -> None:
    first, second = lines_of(
        "logging.getLogger('some.library').warning('so %s', 'it is')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.getLogger('x').exception('failed')"
    )
    assert (first["event"], first["logger"], first["level"]) == ("so it is", "some.library", "warning")
    assert "ZeroDivisionError" in second["exception"]


def test_a_traceback_is_in_the_line() -> None:
    (line,) = lines_of("try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    log.error('failed', exc_info=error)")
    assert "ZeroDivisionError" in line["exception"]


def test_a_traceback_for_people_shows_no_variables() -> None:
    """Formatters that structlog takes by itself, where they are installed, do."""
    program = (
        "import structlog\nfrom server import logs\nlogs.configure('INFO', pretty=True)\n"
        "def fail(secret):\n    raise ValueError\n"
        "try:\n    fail('hid' + 'den')\nexcept ValueError:\n    structlog.get_logger().exception('failed')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    assert b"ValueError" in done.stderr
    assert b"hidden" not in done.stderr


@pytest.mark.parametrize("level", [logging.DEBUG, logging.NOTSET + 1])
def test_what_is_below_the_level_is_not_written(level: int) -> None:
    assert lines_of(f"log.debug('x')\nlogging.getLogger('y').log({level}, 'z')") == []


def test_a_text_that_is_no_utf_8_is_written_all_the_same() -> None:
    (line,) = lines_of("log.info('odd', path='/a\\udcffb')")
    assert line["event"] == "odd"


def test_lines_of_one_turn_of_the_loop_are_written_together() -> None:
    lines = lines_of(
        "import asyncio, sys\n"
        "class Counting:\n"
        "    writes = 0\n"
        "    def write(self, data):\n"
        "        Counting.writes += 1\n"
        "        sys.stderr.buffer.write(data)\n"
        "    def flush(self):\n"
        "        sys.stderr.buffer.flush()\n"
        "async def main():\n"
        "    writer = logs.LineWriter(Counting())\n"
        "    for n in range(3):\n"
        "        writer.write(b'{\"n\":%d}' % n)\n"
        "    await asyncio.sleep(0)\n"
        "    writer.write(b'{\"writes\":%d}' % Counting.writes)\n"
        "asyncio.run(main())"
    )
    assert lines == [{"n": 0}, {"n": 1}, {"n": 2}, {"writes": 1}]


@pytest.mark.parametrize(("level", "there"), [("INFO", True), ("WARNING", False)])
def test_there_are_lines_only_where_they_are_wanted(level: str, there: bool) -> None:
    program = f"logs.configure({level!r})\nlog.error('found', there=logs.lines() is not None)"
    assert [line["there"] for line in lines_of(program)] == [there]


def test_what_is_logged_in_a_request_carries_its_id() -> None:
    program = "from handlers.request_id import CURRENT\nlog.info('before')\nCURRENT.set('r1')\nlog.info('in it')"
    before, inside = lines_of(program)
    assert "request_id" not in before
    assert inside["request_id"] == "r1"
