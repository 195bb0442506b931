/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the data plane and the control plane share: the contents of the maps. vc5py/dataplane/abi.py mirrors
 * this file, and the directory of the pinned maps is named after a hash of it. Every record is a multiple of
 * 64-bit words; the control plane changes a live record one aligned word at a time, so whatever must change
 * together is in one word.
 */
#ifndef VC5_TYPES_H
#define VC5_TYPES_H

/* A flow's entry is valid only where tag ^ value == hash: a torn write is a miss. value 0 is "empty". */
struct flow_entry {
	u64 tag;
	u64 value;
};

#define FLOW_WAYS 4

/* One cache line. */
struct flow_set {
	struct flow_entry way[FLOW_WAYS];
};

/* The bits of flow_entry.value. */
#define FLOW_LOCAL_BITS    15 /* bit 0: the backend, counted from its service's first */
#define FLOW_SERVICE_SHIFT 15 /* 13 bits: the service's index */
#define FLOW_SERVICE_BITS  13
#define FLOW_STATE_SHIFT   28 /* 3 bits: enum flow_state */
#define FLOW_STATE_BITS    3
#define FLOW_TICK_SHIFT    32 /* 16 bits: when last seen, in ticks, wrapping */
#define FLOW_TICK_BITS     16
#define FLOW_VALID         (1ULL << 63)

enum flow_state {
	FLOW_UNPROVEN = 0,    /* one packet, or several within one tick */
	FLOW_PROVING = 1,     /* seen in a second tick */
	FLOW_ESTABLISHED = 2, /* seen in a third tick: replaced only when it has expired */
	FLOW_CLOSING = 3,     /* FIN or RST seen */
	FLOW_STATES = 8,
};

/* What a (VIP, port, protocol) leads to; port 0 with protocol 0 says only that the address is a VIP. */
struct service_key4 {
	__be32 vip;
	__be16 port;
	u8 protocol;
	u8 zero;
};

/* A service: where its Maglev table and its backends are. */
struct service {
	u64 table;    /* first line of slots (low 32 bits), log2 of the number of slots (bits 32-39) */
	u64 backends; /* its first backend (low 32 bits), how many from there on are its own (high 32) */
	u64 identity; /* stable name, the same on every node; 0: no such service */
	u64 reserved[5];
};

#define TABLE_LOG2_SHIFT    32
#define BACKEND_ROOM_SHIFT  32

/* One cache line of Maglev slots: each names a backend of the service, counted from its first. */
#define SLOTS_PER_LINE 32

struct slot_line {
	u16 slot[SLOTS_PER_LINE];
};

#define SLOT_NONE 0x7fff

/* How to get a packet to a real: everything that the forwarding code needs, in one cache line. */
struct backend {
	u8 mac[6];    /* the real's (or its gateway's) address; in one word with the flags */
	u16 flags;    /* BACKEND_* */
	u32 ifindex;  /* the interface the real is on */
	u32 reserved0;
	u64 identity; /* stable name, the same on every node; 0: unused record */
	u64 reserved[5];
};

#define BACKEND_UP        0x0001 /* flows may go there: healthy, or draining */
#define BACKEND_REACHABLE 0x0002 /* mac is valid */

/* Packets and bytes (of the frame, as received) sent to one backend by one CPU. */
struct backend_count {
	u64 packets;
	u64 bytes;
};

struct verdict_counts {
	u64 packets[VERDICT_SLOTS];
};

/* An interface that the program is attached to, at index ifindex. */
struct interface {
	u8 mac[6]; /* frames for a VIP must be addressed to it */
	u16 flags; /* INTERFACE_* */
};

#define INTERFACE_OURS 0x0001

/* How long an entry of each state is kept against newcomers, in ticks (1 to 32767). */
struct settings {
	u16 timeout[FLOW_STATES];
	u64 reserved[6];
};

/* A probe's mark: PROBE_MARK | index of the backend. */
#define PROBE_MARK      0x5c500000
#define PROBE_MARK_MASK 0xfff00000

_Static_assert(sizeof(struct flow_set) == 64, "one cache line");
_Static_assert(sizeof(struct service_key4) == 8, "no padding");
_Static_assert(sizeof(struct service) == 64, "one cache line");
_Static_assert(sizeof(struct slot_line) == 64, "one cache line");
_Static_assert(sizeof(struct backend) == 64, "one cache line");
_Static_assert(sizeof(struct backend_count) == 16, "no padding");
_Static_assert(sizeof(struct interface) == 8, "one word");
_Static_assert(sizeof(struct settings) == 64, "no padding");

#endif
