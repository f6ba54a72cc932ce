"""Agreements of an agent and its clients, without the imports of the whole configuration."""

from pathlib import Path

DEFAULT_PATH = Path("/etc/nfq-enforcer/agent.yaml")
DEFAULT_SOCKET = "/run/nfq-enforcer/agent.sock"
RUN_SOCKET = "-run.sock"  # end of the name of the socket of ``nfq-enforcer run``, beside the API's
MAX_REQUEST = 1 << 24  # bytes of a request to the API
ENVIRONMENT = "NFQ_ENFORCER_"  # prefix of the environment variables that set a key
CONFIG_VARIABLE = f"{ENVIRONMENT}CONFIG"  # names the configuration file, and sets no key
