"""What the demo shows: a live panel in a terminal, a line now and then elsewhere, and the summary."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from stream.demo_tracker import SeenAlert, Tracker

__all__ = ["View", "summary_table"]

LINE_S = 5.0
SHOWN_ALERTS = 12
REDRAW_S = 0.25


class View:
    """Context manager; call `update` as often as you like."""

    def __init__(self, console: Console, tracker: Tracker, seconds: float) -> None:
        self.console, self.tracker, self.seconds = console, tracker, seconds
        self.notice = ""
        self.lag: int | None = None  # records that wait; None while nobody knows
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._began = self._drawn = time.monotonic()

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._panel())
            self._live.stop()

    def say(self, text: str) -> None:
        """Something happened: a line of its own, and a note in the panel."""
        self.notice = text
        self.console.print(f"[bold]{text}[/]")

    def update(self, lag: int | None) -> None:
        self.lag = lag
        now = time.monotonic()
        if now - self._drawn < (REDRAW_S if self._live else LINE_S):
            return
        self._drawn = now
        if self._live is not None:
            self._live.update(self._panel())
        else:
            self.console.print(self._line(), highlight=False, soft_wrap=True)

    def _line(self) -> str:
        t, recent = self.tracker, self.tracker.recent()
        right = sum(a.fraud for a in t.alerts)
        return (
            f"{time.monotonic() - self._began:5.0f} s  {recent.rate:6,.0f} events/s  p50 {recent.p50_ms:4.0f} ms  "
            f"p99 {recent.p99_ms:4.0f} ms  lag {self.lag if self.lag is not None else '?'}  "
            f"alerts {len(t.alerts)} ({right} right)  model {t.model}"
        )

    def _panel(self) -> Panel:
        facts = Table.grid(padding=(0, 3))
        recent = self.tracker.recent()
        facts.add_row(
            f"[bold]{recent.rate:,.0f}[/] events/s", f"p50 [bold]{recent.p50_ms:.0f}[/] ms",
            f"p99 [bold]{recent.p99_ms:.0f}[/] ms", f"lag [bold]{self.lag if self.lag is not None else '?'}[/]",
            f"scored [bold]{self.tracker.scored:,}[/]", f"model [bold]{self.tracker.model}[/]",
        )  # fmt: skip
        elapsed = time.monotonic() - self._began
        title = f"payments · {elapsed:.0f} of {self.seconds:.0f} s"
        return Panel(Group(facts, _alerts(self.tracker.alerts[-SHOWN_ALERTS:]), self.notice), title=title)


def _alerts(alerts: list[SeenAlert]) -> Table:
    table = Table(expand=True, show_edge=False)
    for name in ("event time", "card", "amount", "score", "because of", "truth"):  # a line each: a tall table is cut
        table.add_column(name, no_wrap=True, ratio=1 if name == "because of" else None, overflow="ellipsis")
    for alert in alerts:
        truth = f"[green]✓ {alert.pattern}[/]" if alert.fraud else "[red]✗ honest[/]"
        reasons = ", ".join(alert.reasons)
        table.add_row(alert.time[5:16].replace("T", " "), alert.card, f"{alert.amount:,.2f}", f"{alert.score:.3f}",
                      reasons, truth)  # fmt: skip
    return table


def summary_table(rows: list[tuple[str, str]]) -> Table:
    """The demo's last words."""
    table = Table(title="Summary", show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    return table
