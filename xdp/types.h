/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the data plane and the control plane share: the contents of the maps. vc5py/dataplane/abi.py mirrors
 * this file, and the directory of the pinned maps is named after a hash of it. Every record is a multiple of
 * 64-bit words; the control plane changes a live record one aligned word at a time, so whatever must change
 * together is in one word, or no packet goes by the record meanwhile.
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
#define FLOW_LEARNED       (1ULL << 48) /* the last that is known of it came from another balancer */
#define FLOW_VALID         (1ULL << 63)

/* States from FLOW_ESTABLISHED on are replaced only when they have expired. */
enum flow_state {
	FLOW_UNPROVEN = 0,    /* one packet, or several within one tick */
	FLOW_PROVING = 1,     /* seen in a second tick */
	FLOW_CLOSING = 2,     /* FIN or RST seen */
	FLOW_FRAGMENT = 3,    /* not a flow: where the later fragments of one packet go */
	FLOW_ESTABLISHED = 4, /* TCP, seen in a third tick */
	FLOW_STREAM = 5,      /* the same for UDP */
	FLOW_STATES = 8,
};

/* The ring of one CPU: how many flows it has written there, and up to where they have been read. */
struct flow_log_head {
	u64 written;
	u64 read;
	u64 reserved[6];
};

/* What became of a flow that another balancer has told of. */
enum learn_result {
	LEARN_ADDED = 0,   /* it is new here */
	LEARN_TAKEN = 1,   /* it was known at another backend, and has this one from now on */
	LEARN_UPDATED = 2, /* it was known, but not as well */
	LEARN_KEPT = 3,    /* what we know is newer, or surer */
	LEARN_EXPIRED = 4, /* silent for too long */
	LEARN_NO_ROOM = 5,
	LEARN_UNKNOWN = 6, /* no such backend here */
	LEARN_STRAY = 8, /* beside another result: the flow's slot names another backend */
};

/* A flow that another balancer has told of. `owner`: service and backend, as in flow_entry.value. */
struct learned {
	u64 hash;
	u32 identity; /* the low bits of the backend's */
	u32 owner;
	u16 age;   /* since it was last seen, in ticks */
	u8 state;  /* enum flow_state */
	u8 result; /* enum learn_result */
	u32 reserved;
};

struct learn_control {
	u64 next; /* record of the batch */
	u64 reserved[7];
};

/*
 * What a (VIP, port, protocol) leads to: the index of a service. Port 0 with protocol 0 says that the
 * address is a VIP; the value is then VIP_* flags. A key is KEY_VALID, protocol (bits 48-55), port (32-47, in
 * network byte order) and for IPv4 the address (0-31); 0 is an empty entry.
 */
struct service_entry4 {
	u64 key;
	u64 value;
};

struct service_entry6 {
	u64 vip[2];
	u64 key;
	u64 value;
};

#define SERVICE_WAYS4 4
#define SERVICE_WAYS6 2
#define KEY_VALID     (1ULL << 63)

struct service_set4 {
	struct service_entry4 way[SERVICE_WAYS4];
};

struct service_set6 {
	struct service_entry6 way[SERVICE_WAYS6];
};

#define VIP_PASS_UNKNOWN 0x1 /* packets for no service go to the host's stack, not to the floor */

/* A service: where its Maglev tables and its backends are. */
struct service {
	u64 table;    /* first line of slots (low 32 bits), log2 of the number of slots (bits 32-39) */
	u64 previous; /* the same of the table that says what unstable slots named before */
	u64 backends; /* its first backend (low 32 bits), how many from there on are its own (high 32) */
	u64 identity; /* stable name, the same on every node; 0: no such service */
	u64 flags;    /* SERVICE_* */
	u64 reserved[3];
};

#define TABLE_LOG2_SHIFT   32
#define BACKEND_ROOM_SHIFT 32

#define SERVICE_STICKY      0x1 /* the slot depends on the client's address alone */
#define SERVICE_LEAST_CONNS 0x2 /* of two candidates the less loaded one */
#define SERVICE_BY_FLOW     0x4 /* slots say nothing of flows: always look into the flow table */

/*
 * One cache line of Maglev slots: each names a backend of the service, counted from its first. A slot is
 * unstable while a live flow in it may belong to another backend than the one it names.
 */
#define SLOTS_PER_LINE 32

struct slot_line {
	u16 slot[SLOTS_PER_LINE];
};

#define SLOT_UNSTABLE 0x8000
#define SLOT_NONE     0x7fff

/* How packets get to a real. */
enum forward_mode {
	MODE_L2 = 0,   /* rewrite the MAC addresses */
	MODE_IPIP = 1, /* IPv4 or IPv6 in IPv4 or IPv6 (RFC 2003, 2473, 4213) */
	MODE_GRE = 2,  /* RFC 2784 */
	MODE_FOU = 3,  /* IP in UDP */
	MODE_GUE = 4,  /* generic UDP encapsulation, version 0 */
	MODE_DSCP = 5, /* the real's address as destination, the VIP told by the DSCP */
};

#define MODE_OUTER6 0x80 /* beside the mode of a tunnel: its outer addresses are IPv6 */

/* Everything that the forwarding code needs to get a packet to a real, in one cache line. */
struct backend {
	u8 mac[6];   /* the real's, or its gateway's, address; in one word with the flags */
	u16 flags;   /* BACKEND_* */
	u32 ifindex; /* the interface it is on */
	u16 vlan;    /* the 802.1Q tag there; 0: none */
	u16 svlan;   /* the 802.1ad tag around that one; 0: none */
	u64 identity;    /* stable name, the same on every node; 0: unused record */
	__be32 source[4];      /* outer addresses of a tunnel, IPv4 ones in the first word; */
	__be32 destination[4]; /* destination is also the new one of MODE_DSCP */
	u8 mode;     /* enum forward_mode and MODE_OUTER6; with all that follows one word */
	u8 dscp;     /* of MODE_DSCP, 0 to 63 */
	__be16 port; /* UDP destination port of MODE_FOU and MODE_GUE */
	u16 mtu;     /* largest outer packet that fits the way to the real, in bytes */
	u16 load;    /* for SERVICE_LEAST_CONNS: connections in relation to the weight, in no unit */
};

#define BACKEND_UP        0x0001 /* flows may go there: healthy, or draining */
#define BACKEND_REACHABLE 0x0002 /* mac is valid */
#define BACKEND_SET_TAGS  0x0008 /* vlan and svlan count; else a frame keeps the tags it came with */
#define BACKEND_RESTING   0x0020 /* gone: its place is free once no flow names it */
#define BACKEND_ON_LINK   0x0010 /* mac is the real's own: a frame from it is one that came back */

/* Packets and bytes (of the frame, as received) sent to one backend by one CPU. */
struct backend_count {
	u64 packets;
	u64 bytes;
};

struct verdict_counts {
	u64 packets[VERDICT_SLOTS];
};

/*
 * An interface that frames come in by or leave by, at index ifindex. Of a bond its members are what the program
 * is attached to; backends name the bond itself.
 */
struct interface {
	u8 mac[6]; /* frames for a VIP must be addressed to it; those that leave come from it */
	u16 flags; /* INTERFACE_* */
	u32 bond;  /* ifindex of the bond that it is a member of; 0: none */
	u32 mtu;   /* largest IP packet that leaves by it, in bytes; 0: not known */
};

#define INTERFACE_OURS 0x0001

/* What holds for all services. */
struct settings {
	u16 timeout[FLOW_STATES]; /* how long an entry is kept against newcomers, in ticks (1 to 32767) */
	u32 flags;                /* SETTING_* */
	u32 icmp_per_jiffy;       /* "too big" answers that each CPU may send in a jiffy */
	u64 reserved[5];
};

#define SETTING_DROP_FRAGMENTS 0x1
#define SETTING_CROWDED        0x2 /* the flow table is nearly full */

/* How many "too big" answers a CPU has sent in its present jiffy. */
struct icmp_budget {
	u64 jiffy;
	u64 sent;
	u64 reserved[6];
};

/* A probe's mark: PROBE_MARK | index of the backend. */
#define PROBE_MARK      0x5c500000
#define PROBE_MARK_MASK 0xfff00000

_Static_assert(sizeof(struct flow_set) == 64, "one cache line");
_Static_assert(sizeof(struct flow_log_head) == 64, "one cache line");
_Static_assert(sizeof(struct learned) == 24, "no padding");
_Static_assert(sizeof(struct learn_control) == 64, "one cache line");
_Static_assert(sizeof(struct service_set4) == 64, "one cache line");
_Static_assert(sizeof(struct service_set6) == 64, "one cache line");
_Static_assert(sizeof(struct service) == 64, "one cache line");
_Static_assert(sizeof(struct slot_line) == 64, "one cache line");
_Static_assert(sizeof(struct backend) == 64, "one cache line");
_Static_assert(sizeof(struct backend_count) == 16, "no padding");
_Static_assert(sizeof(struct interface) == 16, "no padding");
_Static_assert(sizeof(struct settings) == 64, "no padding");
_Static_assert(sizeof(struct icmp_budget) == 64, "one cache line");

#endif
