/*
 * The shim's flow rules, told to a driver that only writes them down: a line a call. `refuse N` has it refuse to make the Nth.
 * Arguments: QUEUES [low_bits] [udp] [any_port] [list] [refuse N]
 */
#include "../../dpdk-sys/shim.c"

#include <stdlib.h>

static long made, refused;

static void
write_down(const char *call, const struct rte_flow_attr *attr, const struct rte_flow_item *item,
	   const struct rte_flow_action *action)
{
	printf("%s%s:", call, attr->ingress && !attr->egress && !attr->transfer ? "" : " (not of what comes in)");
	for (; item->type != RTE_FLOW_ITEM_TYPE_END; item++) {
		const struct rte_flow_item_udp *udp = item->spec, *udp_mask = item->mask;
		const struct rte_flow_item_esp *esp = item->spec, *esp_mask = item->mask;
		if (item->type == RTE_FLOW_ITEM_TYPE_ETH)
			printf(" eth");
		if (item->type == RTE_FLOW_ITEM_TYPE_IPV4)
			printf(" ipv4");
		if (item->type == RTE_FLOW_ITEM_TYPE_UDP)
			printf(" udp");
		if (item->type == RTE_FLOW_ITEM_TYPE_UDP && udp != NULL)
			printf(" %04x:%04x/%04x:%04x", udp->hdr.src_port, rte_be_to_cpu_16(udp->hdr.dst_port),
			       udp_mask->hdr.src_port, udp_mask->hdr.dst_port);
		if (item->type == RTE_FLOW_ITEM_TYPE_ESP)
			printf(" esp");
		if (item->type == RTE_FLOW_ITEM_TYPE_ESP && esp != NULL)
			printf(" %08x/%08x", rte_be_to_cpu_32(esp->hdr.spi), rte_be_to_cpu_32(esp_mask->hdr.spi));
	}
	for (; action->type != RTE_FLOW_ACTION_TYPE_END; action++) {
		if (action->type == RTE_FLOW_ACTION_TYPE_QUEUE) {
			printf(" > queue %d\n", ((const struct rte_flow_action_queue *)action->conf)->index);
			continue;
		}
		const struct rte_flow_action_rss *rss = action->conf;
		printf(" > hash of %s over", rss->types == RTE_ETH_RSS_ESP ? "esp" : "something else");
		for (uint32_t i = 0; i < rss->queue_num; i++)
			printf(" %d", rss->queue[i]);
		printf(rss->queue == NULL ? " the table\n" : "\n");
	}
}

int
rte_flow_validate(uint16_t port, const struct rte_flow_attr *attr, const struct rte_flow_item pattern[],
		  const struct rte_flow_action actions[], struct rte_flow_error *error)
{
	(void)port, (void)error;
	write_down("may", attr, pattern, actions);
	return 0;
}

struct rte_flow *
rte_flow_create(uint16_t port, const struct rte_flow_attr *attr, const struct rte_flow_item pattern[],
		const struct rte_flow_action actions[], struct rte_flow_error *error)
{
	(void)port;
	write_down("make", attr, pattern, actions);
	if (++made != refused)
		return (struct rte_flow *)(uintptr_t)made;
	error->message = "the table is full";
	rte_errno = ENOSPC;
	return NULL;
}

int
rte_flow_destroy(uint16_t port, struct rte_flow *flow, struct rte_flow_error *error)
{
	(void)port, (void)error;
	printf("destroy %ld\n", (long)(uintptr_t)flow);
	return 0;
}

int
main(int count, char **words)
{
	struct penstock_rules rules = { .queues = (uint16_t)atoi(words[1]) };
	char said[64];

	for (int i = 2; i < count; i++) {
		rules.low_bits |= strcmp(words[i], "low_bits") == 0;
		rules.udp |= strcmp(words[i], "udp") == 0;
		rules.any_port |= strcmp(words[i], "any_port") == 0;
		rules.list |= strcmp(words[i], "list") == 0;
		if (strcmp(words[i], "refuse") == 0)
			refused = atol(words[++i]);
	}
	int result = penstock_rules_make(0, &rules, said, sizeof(said));
	printf("%d %s\n", -result, said);
	return 0;
}
