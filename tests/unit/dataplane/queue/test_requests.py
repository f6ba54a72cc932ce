"""Requests to netfilter, and the messages of its answers."""

import errno
import os
import struct

import pytest

from nfq_enforcer.core.wire.packet import TCP, UDP
from nfq_enforcer.dataplane.queue.requests import DUMP, REQUEST, request, split_messages
from tests.support.conntracks import DONE, ERROR, NEW, Way, entry, message
from tests.support.nodes import V4, V6


def test_a_datagram_from_the_kernel_has_several_messages() -> None:
    one, other = entry(TCP, Way(V4.client, V4.web, 1, 2)), entry(UDP, Way(V6.client, V6.web, 1, 2))
    received = message(NEW, one) + message(NEW, other) + message(DONE, bytes(4))

    assert list(split_messages(received)) == [(NEW, one), (NEW, other), (DONE, bytes(4))]
    assert list(split_messages(received[:-1])) == [(NEW, one), (NEW, other)]


def test_an_error_is_raised_as_the_kernels() -> None:
    with pytest.raises(PermissionError) as caught:
        list(split_messages(message(ERROR, struct.pack("=i", -errno.EPERM))))
    assert caught.value.strerror == os.strerror(errno.EPERM)


def test_a_request_has_header_family_number_and_attributes() -> None:
    assert request(0x101, REQUEST | DUMP) == struct.pack("=IHHIIBBH", 20, 0x101, 0x301, 0, 0, 0, 0, 0)
    assert request(0x401, family=1, number=7, attributes=b"1234") == (
        struct.pack("=IHHIIBB", 24, 0x401, 1, 0, 0, 1, 0) + b"\0\7" + b"1234"
    )
