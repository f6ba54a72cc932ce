/* Accept every packet of a queue, like the example of libnetfilter_queue: accept_all QUEUE */

#include "common.h"
#include <libnetfilter_queue/libnetfilter_queue.h>
#include <linux/netfilter.h>

#define LENGTH 4096 /* maximum of packets in the queue */

static int on_packet(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *packet, void *unused)
{
	(void)message;
	(void)unused;
	return nfq_set_verdict(queue, ntohl(nfq_get_msg_packet_hdr(packet)->packet_id), NF_ACCEPT, 0, NULL);
}

int main(int count, char **arguments)
{
	static char buffer[0x11000] __attribute__((aligned));
	struct nfq_handle *handle = nfq_open();
	struct nfq_q_handle *queue;
	int received;

	if (count != 2 || !handle)
		return 2;
	end_with_parent();
	queue = nfq_create_queue(handle, number(arguments[1], 0, 65535), on_packet, NULL);
	if (!queue)
		fail("nfq_create_queue");
	check(nfq_set_mode(queue, NFQNL_COPY_PACKET, 0xffff), "nfq_set_mode");
	check(nfq_set_queue_maxlen(queue, LENGTH), "nfq_set_queue_maxlen");
	nfnl_rcvbufsiz(nfq_nfnlh(handle), LENGTH * 4096);
	puts("ready");
	fflush(stdout);
	for (;;) {
		received = recv(nfq_fd(handle), buffer, sizeof buffer, 0);
		if (received >= 0)
			nfq_handle_packet(handle, buffer, received);
		else if (errno != ENOBUFS)
			fail("recv");
	}
}
