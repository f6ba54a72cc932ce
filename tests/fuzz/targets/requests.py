"""Any bytes on the API's socket get one line of printable JSON: a result, or an error of the client."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nfq_enforcer.agent import params
from nfq_enforcer.agent.api import ApiServer, Params
from nfq_enforcer.web.server import Limits
from tests.fuzz import connections

_LIMITS = Limits(request=1500)


def _reads(read: Callable[[Params], Any]) -> Callable[[Params], Any]:
    async def method(given: Params) -> Any:
        return read(given)

    return method


_METHODS = {
    "all": _reads(dict),
    "text": _reads(lambda given: params.text(given, "a")),
    "texts": _reads(lambda given: params.texts(given, "a")),
    "flag": _reads(lambda given: params.flag(given, "a")),
    "count": _reads(lambda given: params.count(given, "a")),
    "seconds": _reads(lambda given: params.seconds(given, "a", 600.0)),
}
_PARAMS = ({"a": "x"}, {"a": ["x"]}, {"a": True}, {"a": 7}, {"a": 0.5}, {"b": None})
SEEDS = [
    *(json.dumps({"method": name, "params": given}).encode() + b"\n" for name in _METHODS for given in _PARAMS),
    b'{"method": "all", "params": {"a": ' + b"[" * 500,
    b'{"method": "all", "params": {"a": NaN}}\n',
    b'{"method": "all", "params": {"\\ud800": 1e999}}\n',
    b"[" * 1501,
]


def check(data: bytes) -> None:
    answer = connections.exchange(_listen, data)
    if not data:
        return
    assert answer.count(b"\n") == 1
    line = answer.decode()
    assert line[:-1].isprintable()
    message = json.loads(line)
    assert message.keys() == {"result"} or message.keys() == {"error", "exit_code"}
    assert message.get("exit_code", 2) == 2


async def _listen(path: Path) -> None:
    await ApiServer(path, _METHODS, _LIMITS, group="").start()
