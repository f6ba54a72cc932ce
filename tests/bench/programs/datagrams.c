/* Datagrams: datagrams NAMESPACE ADDRESS PORT SECONDS SIZE WINDOW RATE
 *
 * One flow, for so many seconds, of datagrams of SIZE bytes to a socket of this very process in the other namespace. No
 * more than WINDOW are on the way at a time, so what is measured is what the way can carry, not what is lost on it. RATE
 * is how many are sent a second at most, 0 for as many as can be. Prints how many were sent and received, in which time,
 * and how many came after one that was sent later.
 */

#include "common.h"
#include <poll.h>

#define BATCH 32
#define LARGEST 9000
#define PATIENCE_MS 100 /* what has not come by then is lost */

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

/* Take what has come; return how many that were. */
static int take(int receiver, struct figures *figures)
{
	int taken = recvmmsg(receiver, messages, BATCH, MSG_DONTWAIT, NULL);

	if (taken < 0 && errno == EAGAIN)
		return 0;
	check(taken, "recvmmsg");
	for (int place = 0; place < taken; place++) {
		if (*sequence(place) < figures->next)
			figures->reordered++;
		else
			figures->next = *sequence(place) + 1;
	}
	figures->received += taken;
	return taken;
}

static int arrives(int receiver)
{
	struct pollfd waiting = { .fd = receiver, .events = POLLIN };

	return poll(&waiting, 1, PATIENCE_MS) > 0;
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
		/* with the window full, wait for all that is on the way or for some of it to come */
		if (!take(receiver, &figures) && figures.sent - lost - figures.received >= window && !arrives(receiver))
			lost = figures.sent - figures.received;
		elapsed = now() - begun;
	}
	while (figures.received < figures.sent - lost && arrives(receiver))
		take(receiver, &figures);
	printf("{\"sent\": %lu, \"received\": %lu, \"reordered\": %lu, \"seconds\": %.6f}\n", figures.sent,
	       figures.received, figures.reordered, now() - begun);
}

int main(int count, char **arguments)
{
	int sender, receiver, room = 8 << 20, size;
	struct sockaddr_in to;
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
	sender = new_socket(SOCK_DGRAM);
	check(connect(sender, (const struct sockaddr *)&to, sizeof to), "connect");
	run(sender, receiver, seconds, number(arguments[6], 1, 1000), number(arguments[7], 0, 1e9));
	return 0;
}
