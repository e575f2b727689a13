/* The shim behind shim.h. */
#define _GNU_SOURCE
#include "shim.h"

#include <stdio.h>
#include <string.h>

#include <rte_spinlock.h>

/* Errors that DPDK logged and nobody took yet; what does not fit is left out. */
static struct {
	rte_spinlock_t lock;
	size_t len;
	char text[1024];
} errors = { .lock = RTE_SPINLOCK_INITIALIZER };

static int shown_level;

static void
remember(const char *line, size_t len)
{
	while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == ' '))
		len--;
	rte_spinlock_lock(&errors.lock);
	size_t gap = errors.len > 0 ? 2 : 0;
	if (len > 0 && errors.len + gap + len <= sizeof(errors.text)) {
		memcpy(errors.text + errors.len, "; ", gap);
		memcpy(errors.text + errors.len + gap, line, len);
		errors.len += gap + len;
	}
	rte_spinlock_unlock(&errors.lock);
}

static ssize_t
log_write(void *cookie, const char *text, size_t size)
{
	(void)cookie;
	/* Outside of a message the level is negative. */
	int level = rte_log_cur_msg_loglevel();
	if (level <= shown_level)
		fwrite(text, 1, size, stderr);
	if (level >= 0 && level <= (int)RTE_LOG_ERR)
		remember(text, size);
	return (ssize_t)size;
}

int
penstock_log_open(int shown)
{
	shown_level = shown;
	static const cookie_io_functions_t functions = { .write = log_write };
	FILE *stream = fopencookie(NULL, "w", functions);
	if (stream == NULL)
		return -1;
	setvbuf(stream, NULL, _IOLBF, BUFSIZ);
	return rte_openlog_stream(stream);
}

size_t
penstock_log_take(char *out, size_t room)
{
	rte_spinlock_lock(&errors.lock);
	size_t len = RTE_MIN(errors.len, room);
	memcpy(out, errors.text, len);
	errors.len = 0;
	rte_spinlock_unlock(&errors.lock);
	return len;
}

int
penstock_errno(void)
{
	return rte_errno;
}

unsigned int
penstock_lcore(void)
{
	return rte_lcore_id();
}

unsigned int penstock_lcore_cpus(uint32_t *cpus, unsigned int room)
{
	unsigned int lcore, count = 0;

	if (count < room)
		cpus[count] = (uint32_t)rte_lcore_to_cpu_id((int)rte_get_main_lcore());
	count++;
	RTE_LCORE_FOREACH_WORKER(lcore) {
		if (count < room)
			cpus[count] = (uint32_t)rte_lcore_to_cpu_id((int)lcore);
		count++;
	}
	return count;
}

int
penstock_port_of(const char *device)
{
	uint16_t port;

	RTE_ETH_FOREACH_DEV(port) {
		struct rte_eth_dev_info info;
		if (rte_eth_dev_info_get(port, &info) == 0 && info.device != NULL &&
		    strcmp(rte_dev_name(info.device), device) == 0)
			return port;
	}
	return -ENODEV;
}

int
penstock_link(uint16_t port, struct penstock_link *out)
{
	struct rte_eth_link link;
	int result = rte_eth_link_get_nowait(port, &link);
	if (result != 0)
		return result;
	out->speed_mbps = link.link_speed;
	out->up = link.link_status == RTE_ETH_LINK_UP;
	out->full_duplex = link.link_duplex == RTE_ETH_LINK_FULL_DUPLEX;
	return 0;
}

/* Makes chains contiguous or frees them; returns how many frames are left at the front of the array. */
static uint16_t
join_segments(struct rte_mbuf **frames, uint16_t count, uint64_t *multisegment)
{
	uint16_t kept = 0;

	for (uint16_t i = 0; i < count; i++) {
		if (unlikely(frames[i]->nb_segs > 1) && rte_pktmbuf_linearize(frames[i]) != 0) {
			rte_pktmbuf_free(frames[i]);
			*multisegment += 1;
			continue;
		}
		frames[kept++] = frames[i];
	}
	return kept;
}

uint16_t
penstock_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **frames, uint16_t room, uint64_t *multisegment)
{
	uint16_t count = rte_eth_rx_burst(port, queue, frames, room);
	return join_segments(frames, count, multisegment);
}

uint16_t
penstock_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **frames, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, frames, count);
}

struct rte_mbuf *
penstock_alloc(struct rte_mempool *pool)
{
	return rte_pktmbuf_alloc(pool);
}

int
penstock_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **frames, uint16_t count)
{
	return rte_pktmbuf_alloc_bulk(pool, frames, count);
}
