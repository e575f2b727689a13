/*
 * What Rust sees of DPDK: the headers that bindgen reads, and a shim for what DPDK offers only as inline code, as
 * macros or in structures whose shape changes between releases. Calls carry a burst, never one header field.
 */
#ifndef PENSTOCK_SHIM_H
#define PENSTOCK_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <rte_cycles.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_flow.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_version.h>

/* Where the fields of an mbuf stand: its structure nests them in unions that differ between releases. */
enum penstock_mbuf_layout {
	PENSTOCK_MBUF_BUF_ADDR = offsetof(struct rte_mbuf, buf_addr),
	PENSTOCK_MBUF_DATA_OFF = offsetof(struct rte_mbuf, data_off),
	PENSTOCK_MBUF_PKT_LEN = offsetof(struct rte_mbuf, pkt_len),
	PENSTOCK_MBUF_DATA_LEN = offsetof(struct rte_mbuf, data_len),
	PENSTOCK_MBUF_BUF_LEN = offsetof(struct rte_mbuf, buf_len),
	PENSTOCK_MBUF_HEADROOM = RTE_PKTMBUF_HEADROOM,
	PENSTOCK_MBUF_DEFAULT_BUF_SIZE = RTE_MBUF_DEFAULT_BUF_SIZE,
};

/* Macros that bindgen cannot evaluate. */
static const uint64_t PENSTOCK_RSS_WANTED = RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP | RTE_ETH_RSS_ESP;
static const uint64_t PENSTOCK_RSS_BY_SPI = RTE_ETH_RSS_ESP;
static const uint64_t PENSTOCK_RX_CHECKSUM =
	RTE_ETH_RX_OFFLOAD_IPV4_CKSUM | RTE_ETH_RX_OFFLOAD_UDP_CKSUM | RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
static const uint64_t PENSTOCK_TX_CHECKSUM =
	RTE_ETH_TX_OFFLOAD_IPV4_CKSUM | RTE_ETH_TX_OFFLOAD_UDP_CKSUM | RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
static const uint32_t PENSTOCK_NO_LCORE = LCORE_ID_ANY;

struct penstock_link {
	uint32_t speed_mbps; /* 0 none, UINT32_MAX unknown */
	bool up;
	bool full_duplex;
};

/*
 * Routes DPDK's log through the shim: what is as severe as `shown` (an RTE_LOG number) to stderr, and all errors into
 * a buffer for penstock_log_take.
 */
int penstock_log_open(int shown);

/* Moves the errors logged since the last call into `out`, lines joined by "; ", without NUL. Returns the octets. */
size_t penstock_log_take(char *out, size_t room);

/* rte_errno of this thread. */
int penstock_errno(void);

/* The lcore of this thread, or PENSTOCK_NO_LCORE. */
unsigned int penstock_lcore(void);

/* The CPUs of all lcores, the main one first, up to `room` of them; returns how many lcores there are. */
unsigned int penstock_lcore_cpus(uint32_t *cpus, unsigned int room);

/* The first port of the device with this name, or a negative errno. */
int penstock_port_of(const char *device);

/* Link state without waiting, or a negative errno. */
int penstock_link(uint16_t port, struct penstock_link *out);

/*
 * Receives up to `room` frames. Every one has a single segment: a chain is copied together where its first segment
 * has the room, and otherwise freed and counted in `multisegment`.
 */
uint16_t penstock_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **frames, uint16_t room,
			   uint64_t *multisegment);

/* Hands frames to the device; returns how many, from the front, it took. */
uint16_t penstock_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **frames, uint16_t count);

/* Flow rules that choose the queue of received ESP, for a started port whose first queues are `queues`. */
struct penstock_rules {
	bool low_bits; /* queue q gets the SPIs whose low bits are q, `queues` being a power of two; or a hash of the SPI chooses */
	bool udp;      /* ESP in UDP (RFC 3948), or in IP */
	bool any_port; /* the pattern names no UDP port: the device's parser looks for ESP behind 4500 only */
	bool list;     /* the hash goes over a list of queues, or over the device's own table of them */
	uint16_t queues;
};

/*
 * Has the driver validate the rules, then makes them: all or none. Returns 0 or a negative errno, with the driver's
 * words, if any, in `said` (NUL at the end).
 */
int penstock_rules_make(uint16_t port, const struct penstock_rules *rules, char *said, size_t room);

/* Removes all flow rules of a port. */
void penstock_rules_end(uint16_t port);

/* An empty mbuf, or NULL. */
struct rte_mbuf *penstock_alloc(struct rte_mempool *pool);

/* `count` empty mbufs, all or none: 0 or a negative errno. */
int penstock_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **frames, uint16_t count);

#endif
