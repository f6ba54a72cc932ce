/* Datagrams: datagrams NAMESPACE ADDRESS PORT SECONDS SIZE WINDOW RATE
 *
 * Sends one flow of datagrams of SIZE bytes, for so many seconds, to a socket of the same process in the other namespace.
 * At most WINDOW datagrams are in flight, so the result is the capacity of the path, not the loss on it. RATE is the
 * maximum of datagrams a second, 0 for no limit. Prints the datagrams sent and received, the elapsed seconds, and the
 * datagrams that arrived after a later one.
 */

#include "common.h"
#include <poll.h>

#define BATCH 32
#define LARGEST 9000
#define TIMEOUT_MS 100 /* a datagram that has not arrived by then counts as lost */

static struct mmsghdr messages[BATCH];
static struct iovec parts[BATCH];
static char data[BATCH][LARGEST];

struct figures {
	uint64_t sent, received, reordered, next;
};

static uint64_t *sequence(int place)
{
	return (uint64_t *)data[place];
}

static void send_some(int sender, int some, struct figures *figures)
{
	int sent;

	for (int place = 0; place < some; place++)
		*sequence(place) = figures->sent + place;
	sent = sendmmsg(sender, messages, some, 0);
	check(sent, "sendmmsg");
	figures->sent += sent;
}

/* Receive the datagrams that have arrived; return their number. */
static int receive(int receiver, struct figures *figures)
{
	int received = recvmmsg(receiver, messages, BATCH, MSG_DONTWAIT, NULL);

	if (received < 0 && errno == EAGAIN)
		return 0;
	check(received, "recvmmsg");
	for (int place = 0; place < received; place++) {
		if (*sequence(place) < figures->next)
			figures->reordered++;
		else
			figures->next = *sequence(place) + 1;
	}
	figures->received += received;
	return received;
}

static int arrives(int receiver)
{
	struct pollfd waiting = { .fd = receiver, .events = POLLIN };

	return poll(&waiting, 1, TIMEOUT_MS) > 0;
}

static int allowed(const struct figures *figures, uint64_t window, uint64_t lost, double rate, double elapsed)
{
	uint64_t room = window - (figures->sent - lost - figures->received);

	if (rate > 0 && rate * elapsed < figures->sent + room)
		room = rate * elapsed > figures->sent ? rate * elapsed - figures->sent : 0;
	return room < BATCH ? room : BATCH;
}

static void run(int sender, int receiver, double seconds, uint64_t window, double rate)
{
	struct figures figures = { 0 };
	double begun = now(), elapsed = 0;
	uint64_t lost = 0;

	while (elapsed < seconds) {
		int some = allowed(&figures, window, lost, rate, elapsed);

		if (some)
			send_some(sender, some, &figures);
		/* with a full window, wait until datagrams arrive; after the timeout all in flight count as lost */
		if (!receive(receiver, &figures) && figures.sent - lost - figures.received >= window && !arrives(receiver))
			lost = figures.sent - figures.received;
		elapsed = now() - begun;
	}
	while (figures.received < figures.sent - lost && arrives(receiver))
		receive(receiver, &figures);
	printf("{\"sent\": %lu, \"received\": %lu, \"reordered\": %lu, \"seconds\": %.6f}\n", figures.sent,
	       figures.received, figures.reordered, now() - begun);
}

int main(int count, char **arguments)
{
	int sender, receiver, room = 8 << 20, size;
	union address to;
	double seconds;

	if (count != 8)
		return 2;
	end_with_parent();
	to = address(arguments[2], number(arguments[3], 1, 65535));
	seconds = number(arguments[4], 0, 3600);
	size = number(arguments[5], sizeof(uint64_t), LARGEST);
	alarm(seconds + GRACE);
	for (int place = 0; place < BATCH; place++) {
		parts[place] = (struct iovec){ .iov_base = data[place], .iov_len = size };
		messages[place].msg_hdr = (struct msghdr){ .msg_iov = &parts[place], .msg_iovlen = 1 };
	}
	receiver = bound_in(arguments[1], SOCK_DGRAM, &to);
	check(setsockopt(receiver, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room), "SO_RCVBUFFORCE");
	sender = new_socket(SOCK_DGRAM, &to);
	check(connect(sender, &to.any, sizeof to), "connect");
	run(sender, receiver, seconds, number(arguments[6], 1, 1000), number(arguments[7], 0, 1e9));
	return 0;
}
