"""Places where an agent and its clients find each other, without the imports of the whole configuration."""

from pathlib import Path

DEFAULT_PATH = Path("/etc/nfq-enforcer/agent.yaml")
DEFAULT_SOCKET = "/run/nfq-enforcer/agent.sock"
ENVIRONMENT = "NFQ_ENFORCER_"  # prefix of the environment variables that set a key
CONFIG_VARIABLE = f"{ENVIRONMENT}CONFIG"  # names the configuration file, and sets no key
