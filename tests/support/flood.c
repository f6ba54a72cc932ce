/* Flood: flood INTERFACE GATEWAY_MAC SECONDS RATE RANDOM_BITS < PACKETS
 *
 * Sends the IP packets of the standard input, one after the other and again, from this interface to a neighbour. Each
 * packet is preceded by its length and by the offset of its transport checksum (0: it has none), of 16 bits each. RATE
 * is the maximum of packets a second. In each packet sent, the last RANDOM_BITS bits of the first four (IPv6: of the
 * last four) bytes of the source address are random, up to 32; the checksums stay correct. Prints the number of packets.
 */

#include <arpa/inet.h>
#include <err.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 256
#define ETHERNET 14

struct packet {
	uint16_t size, checksum;
	unsigned char frame[ETHERNET + 2000];
};

static struct packet packets[MOST];

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static int read_packets(const unsigned char *header)
{
	unsigned char start[4];
	int count = 0;

	while (count < MOST && fread(start, 1, 4, stdin) == 4) {
		struct packet *packet = &packets[count++];

		packet->size = start[0] << 8 | start[1];
		packet->checksum = start[2] << 8 | start[3];
		if (packet->size > 2000 || fread(packet->frame + ETHERNET, 1, packet->size, stdin) != packet->size)
			errx(1, "a packet is incomplete");
		memcpy(packet->frame, header, 12);
		packet->frame[12] = packet->frame[ETHERNET] >> 4 == 4 ? 0x08 : 0x86;
		packet->frame[13] = packet->frame[ETHERNET] >> 4 == 4 ? 0x00 : 0xdd;
	}
	return count;
}

/* Change a checksum as the change of two words of the packet requires (RFC 1624). */
static void adjust(unsigned char *checksum, const unsigned char *before, const unsigned char *after)
{
	uint32_t sum = (uint16_t)~(checksum[0] << 8 | checksum[1]);

	for (int place = 0; place < 4; place += 2)
		sum += (uint16_t)~(before[place] << 8 | before[place + 1]) + (after[place] << 8 | after[place + 1]);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	checksum[0] = ~sum >> 8;
	checksum[1] = ~sum;
}

static void change_source(struct packet *packet, uint32_t mask)
{
	unsigned char *ip = packet->frame + ETHERNET, before[4], *source = ip + (ip[0] >> 4 == 4 ? 12 : 20);
	uint32_t address;

	memcpy(before, source, 4);
	memcpy(&address, source, 4);
	address = htonl((ntohl(address) & ~mask) | (((uint32_t)random() << 1 ^ (uint32_t)random()) & mask));
	memcpy(source, &address, 4);
	if (ip[0] >> 4 == 4)
		adjust(ip + 10, before, source);
	if (packet->checksum)
		adjust(ip + packet->checksum, before, source);
}

int main(int argc, char **argv)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET };
	struct ifreq request = { 0 };
	unsigned char header[12];
	unsigned int mac[6];
	int sender, count;

	if (argc != 6 || sscanf(argv[2], "%x:%x:%x:%x:%x:%x", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) != 6)
		errx(1, "usage: flood INTERFACE GATEWAY_MAC SECONDS RATE RANDOM_BITS < PACKETS");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sender = socket(AF_PACKET, SOCK_RAW, 0);
	address.sll_ifindex = if_nametoindex(argv[1]);
	if (sender < 0 || bind(sender, (void *)&address, sizeof(address)) < 0)
		err(1, "%s", argv[1]);
	strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
	if (ioctl(sender, SIOCGIFHWADDR, &request) < 0)
		err(1, "%s", argv[1]);
	for (int place = 0; place < 6; place++)
		header[place] = mac[place];
	memcpy(header + 6, request.ifr_hwaddr.sa_data, 6);
	count = read_packets(header);
	if (!count)
		errx(1, "no packets");

	double seconds = atof(argv[3]), rate = atof(argv[4]), begun = now();
	int bits = atoi(argv[5]);
	uint32_t mask = bits >= 32 ? 0xffffffff : (1u << bits) - 1;
	uint64_t sent = 0;

	srandom(getpid());
	for (;;) {
		if (sent % 32 == 0) {
			double elapsed = now() - begun;

			if (elapsed > seconds)
				break;
			if (sent > elapsed * rate) {
				usleep(200);
				continue;
			}
		}
		struct packet *packet = &packets[sent++ % count];

		if (mask)
			change_source(packet, mask);
		(void)!send(sender, packet->frame, ETHERNET + packet->size, 0);
	}
	printf("%llu\n", (unsigned long long)sent);
	return 0;
}
