/* Shared code of the programs: termination, numbers, a clock, sockets in another network namespace. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define GRACE 20 /* seconds beyond its duration after which SIGALRM ends a program */

static inline void fail(const char *what)
{
	perror(what);
	exit(1);
}

static inline void check(int result, const char *what)
{
	if (result < 0)
		fail(what);
}

/* End with the parent, so that no process outlives an interrupted run. */
static inline void end_with_parent(void)
{
	check(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
}

static inline double number(const char *text, double least, double most)
{
	char *end;
	double value = strtod(text, &end);

	if (*end || end == text || !(value >= least && value <= most)) {
		fprintf(stderr, "%s is not a number from %g to %g\n", text, least, most);
		exit(2);
	}
	return value;
}

static inline double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static inline union address address(const char *text, int port)
{
	union address v4 = { .v4 = { .sin_family = AF_INET, .sin_port = htons(port) } };
	union address v6 = { .v6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) } };

	if (inet_pton(AF_INET, text, &v4.v4.sin_addr) == 1)
		return v4;
	if (inet_pton(AF_INET6, text, &v6.v6.sin6_addr) == 1)
		return v6;
	fprintf(stderr, "%s is not an IP address\n", text);
	exit(2);
}

static inline void enter(const char *namespace)
{
	int file = open(namespace, O_RDONLY | O_CLOEXEC);

	check(file, namespace);
	check(setns(file, CLONE_NEWNET), "setns");
	close(file);
}

/* Return a socket of the family of an address. */
static inline int new_socket(int type, const union address *to)
{
	int made = socket(to->any.sa_family, type, 0);

	check(made, "socket");
	return made;
}

static inline int bound(int type, const union address *to)
{
	int made = new_socket(type, to), on = 1;

	check(setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), "SO_REUSEADDR");
	check(bind(made, &to->any, sizeof *to), "bind");
	if (type == SOCK_STREAM)
		check(listen(made, 1024), "listen");
	return made;
}

/* Return a bound socket in another namespace; the caller's namespace stays the same. */
static inline int bound_in(const char *namespace, int type, const union address *to)
{
	int own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), made;

	check(own, "/proc/self/ns/net");
	enter(namespace);
	made = bound(type, to);
	check(setns(own, CLONE_NEWNET), "setns");
	close(own);
	return made;
}

/* Return memory that is shared with children. */
static inline void *shared(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		fail("mmap");
	return memory;
}
