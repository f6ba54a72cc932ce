"""Agreements of an agent and its clients, without the imports of the whole configuration."""

from pathlib import Path

DEFAULT_PATH = Path("/etc/nfq-enforcer/agent.yaml")
DEFAULT_SOCKET = "/run/nfq-enforcer/agent.sock"
RUN_SOCKET = "run.sock"  # of ``nfq-enforcer run``, in the folder of the API's socket
MAX_REQUEST = 1 << 24  # bytes of a request to the API
ENVIRONMENT = "NFQ_ENFORCER_"  # prefix of the environment variables that set a key
CONFIG_VARIABLE = f"{ENVIRONMENT}CONFIG"  # names the configuration file, and sets no key
