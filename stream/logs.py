"""Logging set-up: few, rich lines; JSON for machines, colours for people.

structlog and the standard library (Faust, aiokafka) share one handler on standard error, so standard
output stays free for what a command prints. Never log card numbers or raw payloads.
"""

from __future__ import annotations

import logging
import sys

import structlog

__all__ = ["configure_logs"]

NOISY = ("aiokafka", "faust", "mode", "asyncio")  # a line per reconnect attempt at INFO
SAID_BY_US = "kafka"  # kafka-python only creates topics here, and its failure to connect is our error message


def configure_logs(level: str = "INFO", as_json: bool = False) -> None:
    """Send all logging to standard error. `level`: DEBUG, INFO, WARNING or ERROR; may be called again."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor
    if as_json:
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    else:
        # not rich's tracebacks: they show local variables, and those are records
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger(SAID_BY_US).setLevel(logging.DEBUG if level == "DEBUG" else logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
