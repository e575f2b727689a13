/* The shim behind shim.h. */
#define _GNU_SOURCE
#include "shim.h"

#include <stdio.h>
#include <string.h>

#include <rte_esp.h>
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

/* Queues that a rule can name; more are not steered. */
#define RULE_QUEUES 128
#define ESP_IN_UDP_PORT 4500

/* One rule: validated, or made where `made` is there. */
static int
rule(uint16_t port, const struct penstock_rules *rules, uint16_t queue, struct rte_flow **made,
     struct rte_flow_error *error)
{
	uint16_t list[RULE_QUEUES];
	for (uint16_t i = 0; i < rules->queues; i++)
		list[i] = i;
	struct rte_flow_item_esp spi = { .hdr.spi = rte_cpu_to_be_32(queue) };
	struct rte_flow_item_esp low = { .hdr.spi = rte_cpu_to_be_32(rules->queues - 1u) };
	struct rte_flow_item_udp to = { .hdr.dst_port = RTE_BE16(ESP_IN_UDP_PORT) };
	struct rte_flow_item_udp whole = { .hdr.dst_port = RTE_BE16(UINT16_MAX) };
	struct rte_flow_action_queue one = { .index = queue };
	struct rte_flow_action_rss hash = { .types = RTE_ETH_RSS_ESP };
	if (rules->list) {
		hash.queue = list;
		hash.queue_num = rules->queues;
	}

	struct rte_flow_item pattern[5] = { { .type = RTE_FLOW_ITEM_TYPE_ETH }, { .type = RTE_FLOW_ITEM_TYPE_IPV4 } };
	struct rte_flow_item *item = &pattern[2];
	if (rules->udp) {
		item->type = RTE_FLOW_ITEM_TYPE_UDP;
		item->spec = rules->any_port ? NULL : &to;
		item->mask = rules->any_port ? NULL : &whole;
		item++;
	}
	item->type = RTE_FLOW_ITEM_TYPE_ESP;
	item->spec = rules->low_bits ? &spi : NULL;
	item->mask = rules->low_bits ? &low : NULL;
	(++item)->type = RTE_FLOW_ITEM_TYPE_END;

	struct rte_flow_action actions[2] = { 0 };
	actions[0].type = rules->low_bits ? RTE_FLOW_ACTION_TYPE_QUEUE : RTE_FLOW_ACTION_TYPE_RSS;
	actions[0].conf = rules->low_bits ? (const void *)&one : (const void *)&hash;
	actions[1].type = RTE_FLOW_ACTION_TYPE_END;

	const struct rte_flow_attr incoming = { .ingress = 1 };
	if (made == NULL)
		return rte_flow_validate(port, &incoming, pattern, actions, error);
	rte_errno = 0;
	*made = rte_flow_create(port, &incoming, pattern, actions, error);
	return *made != NULL ? 0 : rte_errno != 0 ? -rte_errno : -EINVAL;
}

int
penstock_rules_make(uint16_t port, const struct penstock_rules *rules, char *said, size_t room)
{
	struct rte_flow *made[RULE_QUEUES];
	struct rte_flow_error error = { 0 }, ignored;
	uint16_t count = rules->low_bits ? rules->queues : 1, done = 0;
	int result = rules->queues >= 1 && rules->queues <= RULE_QUEUES ? 0 : -ERANGE;

	for (uint16_t i = 0; i < count && result == 0; i++)
		result = rule(port, rules, i, NULL, &error);
	while (done < count && result == 0) {
		result = rule(port, rules, done, &made[done], &error);
		done += result == 0;
	}
	if (result != 0)
		while (done-- > 0)
			rte_flow_destroy(port, made[done], &ignored);
	snprintf(said, room, "%s", result != 0 && error.message != NULL ? error.message : "");
	return result;
}

void
penstock_rules_end(uint16_t port)
{
	struct rte_flow_error ignored;
	rte_flow_flush(port, &ignored);
}
