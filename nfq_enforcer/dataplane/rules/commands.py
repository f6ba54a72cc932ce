"""Commands that change the kernel's rules: run, with their failure as one sentence."""

import subprocess

from nfq_enforcer.errors import NfqError

_TIMEOUT = 60.0  # s; of one command


def run(command: list[str], text: str | None = None) -> str:
    """Return the output of a command with this input; raise NfqError if it fails or does not end."""
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT
        )
    except FileNotFoundError:
        package = "nftables" if command[0] == "nft" else "iptables"
        raise NfqError(f"{command[0]} not found in PATH: install the package {package}") from None
    except subprocess.TimeoutExpired:
        raise NfqError(f"{' '.join(command)} did not end within {_TIMEOUT:.0f} seconds") from None
    if done.returncode != 0:
        raise NfqError(f"{' '.join(command)} failed: {_reason(done.stderr)}")
    return done.stdout


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and "Try `" not in line]
    return "; ".join(lines) or "no reason given"
