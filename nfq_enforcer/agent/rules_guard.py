"""Rules guard: finds changes of our rules and sets by other programs, restores them, and reports both.

A check compares the kernel with the wanted state (``Rules.check``): after each notification of nf_tables, once a second
besides, and before the store learns that this node enforces a revision. It needs only the lock of ``Rules``, so a long
compilation delays neither check nor repair.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from nfq_enforcer.agent.notifications import notified
from nfq_enforcer.agent.timings import GuardTimings
from nfq_enforcer.dataplane.rules import kernel_watch
from nfq_enforcer.dataplane.rules.comparison import describe
from nfq_enforcer.dataplane.rules.iptables import Rules
from nfq_enforcer.errors import NfqError

_log = logging.getLogger(__name__)
_UNREADABLE = "the rules cannot be read"
_MISSING_RULES = "the rules are not intact and policy is not enforced"
_UNREADABLE_RULES = "the rules cannot be checked, so this node does not count as enforcing policy"


class RulesState(NamedTuple):
    """State of the rules, as the last check left it."""

    intact: bool
    since: float  # time of the last change of ``intact``, in seconds since the epoch
    missing: str | None = None  # the faults, while the rules are not intact
    error: str | None = None  # the reason for which they could not be repaired
    repairs: int = 0
    last_repair: float | None = None
    last_missing: str | None = None  # the faults before the last repair
    checked: float | None = None  # time of the last comparison with the kernel, which need not have succeeded


class RulesGuard:
    """Rules guard: keeps the kernel's rules and sets as ``Rules`` wants them."""

    def __init__(self, rules: Rules, timings: GuardTimings | None = None) -> None:
        """Set the rules; nothing is checked before ``keep`` or ``run``."""
        self._rules = rules
        self._timings = timings or GuardTimings()
        self._lock = asyncio.Lock()  # one check at a time
        self._repair_log = RepairLog(self._timings)
        self._changed = asyncio.Event()
        self.state = RulesState(intact=True, since=time.time())
        self.on_state: Callable[[bool], None] = lambda intact: None  # called when ``state.intact`` changes

    async def keep(self) -> bool:
        """Check the rules, and repair them if another program has changed them; return whether they are intact."""
        async with self._lock:
            before, after, error = await asyncio.to_thread(self._check_and_repair)
            self.state = self.state._replace(checked=time.time())
            if after is None:
                if before is not None:
                    self._repair_log.repaired(before, time.monotonic())
                    repairs = self.state.repairs + 1
                    self.state = self.state._replace(repairs=repairs, last_repair=time.time(), last_missing=before)
                if before is None and not self.state.intact:
                    _log.warning("the rules are intact again")
                self._change(intact=True, missing=None, error=None)
            else:
                if (reason := error or after) != (self.state.error or self.state.missing):
                    _log.error("%s: %s", _UNREADABLE_RULES if after == _UNREADABLE else _MISSING_RULES, reason)
                self._change(intact=False, missing=after, error=error)
            return self.state.intact

    def _check_and_repair(self) -> tuple[str | None, str | None, str | None]:
        """Return the faults before and after a repair, and the reason of a failed one; None for no fault."""
        before = None
        try:
            if not (faults := self._rules.check()):
                return None, None, None
            before = describe(faults)
            remaining = self._rules.repair(faults)
        except (NfqError, OSError) as error:
            return before, before or _UNREADABLE, str(error)
        except Exception as error:  # the entry point of a thread: the guard must outlive any error
            return before, before or _UNREADABLE, f"internal error: {error!r}"
        return before, describe(remaining) if remaining else None, None

    def _change(self, *, intact: bool, missing: str | None, error: str | None) -> None:
        changed = intact != self.state.intact
        since = time.time() if changed else self.state.since
        self.state = self.state._replace(intact=intact, since=since, missing=missing, error=error)
        if changed:
            self.on_state(intact)

    async def run(self) -> None:
        """Keep the rules: after each notification of the kernel, and at an interval; never return."""
        lost = "no notifications of changed rules (%s): they are checked at an interval only"
        with notified(kernel_watch.open_notifications, self._changed, _log, lost):
            while True:
                try:
                    async with asyncio.timeout(self._timings.interval):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                self._changed.clear()
                await self.keep()
                await asyncio.to_thread(self._update_ipsets)
                await asyncio.sleep(self._timings.pause)

    def _update_ipsets(self) -> None:
        try:
            self._rules.update_ipsets()
        except (NfqError, OSError) as error:
            _log.warning("the ipsets cannot be changed, which concerns no verdict: %s", error)


class RepairLog:
    """Repair log: one line for each repair, and fewer if another program causes the same one again and again."""

    def __init__(self, timings: GuardTimings) -> None:
        """Start without lines."""
        self._timings = timings
        self._logged: dict[str, list[float]] = {}  # faults: times of their last lines
        self._omitted = 0

    def repaired(self, missing: str, now: float) -> None:
        """Log that these faults were repaired, each kind at most as often as the timings allow."""
        oldest = now - self._timings.log_period
        recent = {text: [time for time in times if time > oldest] for text, times in self._logged.items()}
        self._logged = {text: times for text, times in recent.items() if times}
        times = self._logged.setdefault(missing, [])
        if len(times) >= self._timings.log_lines:
            self._omitted += 1
            return
        times.append(now)
        more = f" ({self._omitted} more repairs since the last of these lines)" if self._omitted else ""
        self._omitted = 0
        _log.warning("rules were changed by another program and have been repaired: %s%s", missing, more)
