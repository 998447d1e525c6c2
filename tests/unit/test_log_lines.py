"""What people read of a log."""

import logging

from agents.log import TextFormatter


def test_an_option_with_line_breaks_makes_no_lines_of_its_own() -> None:
    """Nor does it change the terminal of who reads them."""
    record = logging.makeLogRecord({"msg": "llama_server.starting", "levelname": "INFO"})
    record.__dict__ |= {"host": "h", "process_name": "p", "launch": ""}
    record.command = "llama-server -r 'a\n12:00:00.000 INFO h/p key.made\r\x1b[2Jé\tb'"
    told = TextFormatter().format(record)
    assert told.endswith(
        r"command=llama-server -r 'a\n12:00:00.000 INFO h/p key.made\r\x1b[2Jé" + "\tb'"
    )
    assert len(told.splitlines()) == 1
