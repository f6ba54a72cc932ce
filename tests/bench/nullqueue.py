"""A program: NetfilterQueue with a callback that accepts, and does nothing else."""

import sys

import netfilterqueue

_LENGTH, _COPY = 4096, 4016  # packets that wait at most, and bytes of each: what the engine asks for


def main() -> None:
    """Bind the queue that the argument names, say so, and accept until ended."""
    queue = netfilterqueue.NetfilterQueue()
    queue.bind(int(sys.argv[1]), netfilterqueue.Packet.accept, _LENGTH, range=_COPY, sock_len=_LENGTH * (_COPY + 256))
    print("ready", flush=True)
    queue.run()


if __name__ == "__main__":
    main()
