/* Bulk TCP: bulk NAMESPACE ADDRESS PORT SECONDS
 *
 * This process sends for so many seconds over one connection; a child in the other namespace receives. Prints the bytes
 * received, the seconds from the first to the last of them, and the segments retransmitted.
 */

#include "common.h"

#define CHUNK (256 << 10)

struct received {
	uint64_t bytes;
	double seconds;
};

static char buffer[CHUNK];

static void receive(int listening, struct received *received)
{
	int peer = accept(listening, NULL, NULL);
	double begun = now();
	ssize_t size;

	check(peer, "accept");
	while ((size = recv(peer, buffer, CHUNK, 0)) > 0)
		received->bytes += size;
	check(size, "recv");
	received->seconds = now() - begun;
}

static unsigned int transmit(const union address *to, double seconds)
{
	int peer = new_socket(SOCK_STREAM, to);
	struct tcp_info info;
	socklen_t size = sizeof info;
	double end;

	check(connect(peer, &to->any, sizeof *to), "connect");
	end = now() + seconds;
	while (now() < end)
		check(send(peer, buffer, CHUNK, 0), "send");
	check(getsockopt(peer, IPPROTO_TCP, TCP_INFO, &info, &size), "TCP_INFO");
	check(shutdown(peer, SHUT_WR), "shutdown");
	return info.tcpi_total_retrans;
}

int main(int count, char **arguments)
{
	struct received *received = shared(sizeof *received);
	union address to;
	unsigned int retransmitted;
	double seconds;
	int listening, status;
	pid_t sink;

	if (count != 5)
		return 2;
	end_with_parent();
	to = address(arguments[2], number(arguments[3], 1, 65535));
	seconds = number(arguments[4], 0, 3600);
	alarm(seconds + GRACE);
	listening = bound_in(arguments[1], SOCK_STREAM, &to);
	sink = fork();
	check(sink, "fork");
	if (sink == 0) {
		end_with_parent();
		receive(listening, received);
		return 0;
	}
	retransmitted = transmit(&to, seconds);
	if (waitpid(sink, &status, 0) < 0 || status != 0)
		return 1;
	printf("{\"bytes\": %lu, \"seconds\": %.6f, \"retransmitted\": %u}\n", received->bytes, received->seconds,
	       retransmitted);
	return 0;
}
