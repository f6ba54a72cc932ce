/* Accept every packet of a queue in the fastest known way: accept_batches QUEUE
 *
 * The kernel does not segment large packets for the queue (GSO) and copies only headers; one system call receives many
 * packets, and one batch verdict accepts all of them.
 */

#include "common.h"
#include <libnetfilter_queue/libnetfilter_queue.h>
#include <linux/netfilter.h>

#define LENGTH 4096 /* maximum of packets in the queue */
#define BATCH 64
#define COPY 256 /* bytes of a packet: its headers */
#define ROOM 1024 /* bytes of a netlink message: COPY and the other attributes */

static uint32_t last;

static int on_packet(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *packet, void *unused)
{
	(void)queue;
	(void)message;
	(void)unused;
	last = ntohl(nfq_get_msg_packet_hdr(packet)->packet_id);
	return 0;
}

static void answer(struct nfq_handle *handle, struct nfq_q_handle *queue)
{
	static char buffers[BATCH][ROOM] __attribute__((aligned));
	static struct iovec parts[BATCH];
	static struct mmsghdr messages[BATCH];
	int received;

	for (int place = 0; place < BATCH; place++) {
		parts[place] = (struct iovec){ .iov_base = buffers[place], .iov_len = ROOM };
		messages[place].msg_hdr = (struct msghdr){ .msg_iov = &parts[place], .msg_iovlen = 1 };
	}
	for (;;) {
		received = recvmmsg(nfq_fd(handle), messages, BATCH, MSG_WAITFORONE, NULL);
		if (received < 0 && errno != ENOBUFS)
			fail("recvmmsg");
		for (int place = 0; place < received; place++)
			nfq_handle_packet(handle, buffers[place], messages[place].msg_len);
		if (received > 0)
			check(nfq_set_verdict_batch(queue, last, NF_ACCEPT), "nfq_set_verdict_batch");
	}
}

int main(int count, char **arguments)
{
	struct nfq_handle *handle = nfq_open();
	struct nfq_q_handle *queue;

	if (count != 2 || !handle)
		return 2;
	end_with_parent();
	queue = nfq_create_queue(handle, number(arguments[1], 0, 65535), on_packet, NULL);
	if (!queue)
		fail("nfq_create_queue");
	check(nfq_set_mode(queue, NFQNL_COPY_PACKET, COPY), "nfq_set_mode");
	check(nfq_set_queue_flags(queue, NFQA_CFG_F_GSO, NFQA_CFG_F_GSO), "nfq_set_queue_flags");
	check(nfq_set_queue_maxlen(queue, LENGTH), "nfq_set_queue_maxlen");
	nfnl_rcvbufsiz(nfq_nfnlh(handle), LENGTH * 4096);
	puts("ready");
	fflush(stdout);
	answer(handle, queue);
}
