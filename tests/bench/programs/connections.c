/* New connections: connections NAMESPACE ADDRESS PORT SECONDS CONCURRENT
 *
 * Opens and closes connections, CONCURRENT at a time, for so many seconds. The server is a child in the other namespace
 * that accepts and closes. It may lag by some connections, so that its scheduling is not measured. It listens on several
 * ports, so that a pair of ports is not reused soon. Prints the number of connections, the elapsed seconds, and the time
 * to open a connection in microseconds: median and 99th percentile.
 */

#include "common.h"
#include <stdatomic.h>
#include <sys/epoll.h>

#define PORTS 16
#define MOST 4000000
#define LAG 256 /* maximum of connections that the server has not accepted yet */
#define CONCURRENT 256 /* maximum */

static float times[MOST];

static void serve(const int *listening, atomic_int *served)
{
	struct epoll_event events[PORTS];
	int waiting = epoll_create1(0);

	check(waiting, "epoll_create1");
	for (int port = 0; port < PORTS; port++) {
		struct epoll_event event = { .events = EPOLLIN, .data.fd = listening[port] };

		check(epoll_ctl(waiting, EPOLL_CTL_ADD, listening[port], &event), "epoll_ctl");
	}
	for (;;) {
		int ready = epoll_wait(waiting, events, PORTS, -1);

		check(ready, "epoll_wait");
		while (ready--) {
			int peer = accept(events[ready].data.fd, NULL, NULL);

			check(peer, "accept");
			close(peer);
			atomic_fetch_add(served, 1);
		}
	}
}

struct opening {
	int peer;
	double begun;
};

static void begin(struct opening *opening, const union address *to, int waiting)
{
	struct epoll_event event = { .events = EPOLLOUT, .data.ptr = opening };

	opening->peer = new_socket(SOCK_STREAM | SOCK_NONBLOCK, to);
	check(epoll_ctl(waiting, EPOLL_CTL_ADD, opening->peer, &event), "epoll_ctl");
	opening->begun = now();
	if (connect(opening->peer, &to->any, sizeof *to) && errno != EINPROGRESS)
		fail("connect");
}

/* Close an open connection; return the time to open it, in microseconds. */
static float end(const struct opening *opening)
{
	double opened = now();
	socklen_t size = sizeof errno;
	int refused;

	check(getsockopt(opening->peer, SOL_SOCKET, SO_ERROR, &refused, &size), "SO_ERROR");
	errno = refused;
	if (refused)
		fail("connect");
	close(opening->peer);
	return (opened - opening->begun) * 1e6;
}

static void await(const atomic_int *served, int least)
{
	const struct timespec moment = { .tv_nsec = 20000 };

	while (atomic_load(served) < least)
		nanosleep(&moment, NULL);
}

static int by_size(const void *one, const void *other)
{
	float difference = *(const float *)one - *(const float *)other;

	return (difference > 0) - (difference < 0);
}

int main(int count, char **arguments)
{
	static struct opening openings[CONCURRENT];
	struct epoll_event ready[CONCURRENT];
	union address to[PORTS];
	double seconds, begun, elapsed;
	atomic_int *served = shared(sizeof *served);
	int listening[PORTS], waiting = epoll_create1(EPOLL_CLOEXEC), started = 0, made = 0, concurrent, open;
	pid_t server;

	if (count != 6)
		return 2;
	check(waiting, "epoll_create1");
	end_with_parent();
	seconds = number(arguments[4], 0, 3600);
	concurrent = number(arguments[5], 1, CONCURRENT);
	alarm(seconds + GRACE);
	for (int port = 0; port < PORTS; port++) {
		to[port] = address(arguments[2], number(arguments[3], 1, 65535 - PORTS) + port);
		listening[port] = bound_in(arguments[1], SOCK_STREAM, &to[port]);
	}
	server = fork();
	check(server, "fork");
	if (server == 0) {
		end_with_parent();
		serve(listening, served);
	}
	begun = now();
	for (; started < concurrent; started++)
		begin(&openings[started], &to[started % PORTS], waiting);
	while (made < started) {
		open = epoll_wait(waiting, ready, concurrent, -1);
		check(open, "epoll_wait");
		while (open--) {
			times[made++] = end(ready[open].data.ptr);
			if (now() - begun < seconds && started < MOST)
				begin(ready[open].data.ptr, &to[started++ % PORTS], waiting);
		}
		await(served, made - LAG);
	}
	await(served, made);
	elapsed = now() - begun;
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	qsort(times, made, sizeof *times, by_size);
	printf("{\"connections\": %d, \"seconds\": %.6f, \"p50_us\": %.2f, \"p99_us\": %.2f}\n", made, elapsed,
	       times[made / 2], times[(int)(made * .99)]);
	return 0;
}
