"""Null queue: a program with NetfilterQueue whose callback accepts each packet and does nothing else."""

import sys

import netfilterqueue

_MAXLEN, _COPY = 4096, 3968  # packets parked at most, and bytes copied of each: the values of the engine


def main() -> None:
    """Bind the queue given as argument, print ``ready``, and accept packets until killed."""
    queue = netfilterqueue.NetfilterQueue()
    queue.bind(int(sys.argv[1]), netfilterqueue.Packet.accept, _MAXLEN, range=_COPY, sock_len=_MAXLEN * (_COPY + 256))
    print("ready", flush=True)
    queue.run()


if __name__ == "__main__":
    main()
