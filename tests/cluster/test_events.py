"""What a run tells of its events, and where tracebacks go."""

import json
import logging

from mtray.cluster.actors.hello import Hello
from mtray.cluster.control.protocol import Part, Tell
from mtray.cluster.events import EventLog

COLLECTOR = Part("collector", 3)


def test_an_event_is_a_line_of_the_file_and_its_sentence_one_of_the_screen(tmp_path, caplog):
    events = EventLog(tmp_path, lambda: 1.23456)
    events.add_process(COLLECTOR, Hello(77, "collector-3-77.log", "0a", "10.0.0.2", {}))
    fields = {"part": "collector 3", "life": 0, "cause": "why"}
    with caplog.at_level(logging.WARNING, "mtray"):
        events.tell(Tell("death", fields, "collector 3 died and is replaced now: why"))
        events.tell(Tell("replacement", {"part": "collector 3"}))
    events.close()
    assert caplog.messages == ["collector 3 died and is replaced now: why"]
    death, replacement = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    where = {"process": 77, "address": "10.0.0.2", "log": "logs/collector-3-77.log"}
    assert death == {"time": 1.235, "event": "death", **fields, **where}
    assert replacement == {"time": 1.235, "event": "replacement", "part": "collector 3"}


def test_a_process_that_has_not_said_where_it_is_has_no_other_ones_log(tmp_path):
    events = EventLog(tmp_path, lambda: 0.0)
    events.add_process(COLLECTOR, Hello(77, "collector-3-77.log", "0a", "10.0.0.2", {}))
    for event, life in (("death", 0), ("death", 1)):
        events.tell(Tell(event, {"part": "collector 3", "life": life}))
    events.close()
    first, second = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert first["process"] == 77
    assert second["process"] is None
    assert not second.keys() & {"address", "log"}


def test_a_traceback_is_appended_to_the_file_of_the_process(tmp_path):
    events = EventLog(tmp_path, lambda: 0.0)
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "collector-3-77.log"
    log.write_text("printed\n")
    events.add_process(COLLECTOR, Hello(77, log.name, "0a", "10.0.0.2", {}))
    assert events.keep_trace(COLLECTOR, "Traceback\n  line\n") == f"; the traceback is in {log}"
    assert log.read_text() == "printed\nTraceback\n  line\n"


def test_a_process_on_another_machine_has_a_file_for_its_traceback(tmp_path):
    told = EventLog(tmp_path, lambda: 0.0).keep_trace(COLLECTOR, "Traceback")
    assert told == f"; the traceback is in {tmp_path}/logs/collector-3.log"
    assert (tmp_path / "logs" / "collector-3.log").read_text() == "Traceback\n"


def test_where_no_file_can_be_written_the_line_names_none(tmp_path):
    events = EventLog(tmp_path / "gone", lambda: 0.0)
    assert events.keep_trace(COLLECTOR, "Traceback") == ""
    assert events.keep_trace(None, "Traceback") == events.keep_trace(COLLECTOR, "") == ""
