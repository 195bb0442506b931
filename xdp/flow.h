/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The flow table: which real a connection belongs to. An array of 64-byte sets of four entries, read and
 * written by all CPUs and by the control plane without locks: an entry is valid only where tag ^ value is
 * the flow's hash, so that a torn write is a miss, and a miss falls back to the Maglev table.
 *
 * A flow has two sets that it may be in. It is looked for in the second one only after the first.
 *
 * Replacement: an empty entry, else an expired one, in the first set and then in the second; else that of an
 * entry which can move to its own other set; else the one of an unestablished flow unseen for longest; else none.
 * So a flood, whatever it is made of, can only displace other flows that have not proven themselves. A flow is
 * established by packets in three different ticks.
 */
#ifndef VC5_FLOW_H
#define VC5_FLOW_H

#define FLOW_LOCAL_MASK   ((1U << FLOW_LOCAL_BITS) - 1)
#define FLOW_SERVICE_MASK ((1U << FLOW_SERVICE_BITS) - 1)
#define FLOW_STATE_MASK   ((1U << FLOW_STATE_BITS) - 1)
#define FLOW_TICK_MASK    ((1U << FLOW_TICK_BITS) - 1)

/* Entries are shared by CPUs: each word is read once and written once. */
#define READ_ONCE(x)     (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

/* A tick is 2^TICK_SHIFT jiffies, about a second: bpf_jiffies64() costs nothing, a clock or a division does. */
static __always_inline u16 flow_now(void)
{
	return bpf_jiffies64() >> TICK_SHIFT;
}

static __always_inline u64 flow_value(u32 service, u32 local, enum flow_state state, u16 tick)
{
	return FLOW_VALID | (u64)tick << FLOW_TICK_SHIFT | (u64)state << FLOW_STATE_SHIFT |
	       (u64)service << FLOW_SERVICE_SHIFT | local;
}

static __always_inline u32 flow_local(u64 value)
{
	return value & FLOW_LOCAL_MASK;
}

static __always_inline u32 flow_service(u64 value)
{
	return value >> FLOW_SERVICE_SHIFT & FLOW_SERVICE_MASK;
}

static __always_inline enum flow_state flow_state(u64 value)
{
	return value >> FLOW_STATE_SHIFT & FLOW_STATE_MASK;
}

static __always_inline u16 flow_tick(u64 value)
{
	return value >> FLOW_TICK_SHIFT & FLOW_TICK_MASK;
}

static __always_inline void flow_write(struct flow_entry *entry, u64 hash, u64 value)
{
	WRITE_ONCE(entry->value, value);
	WRITE_ONCE(entry->tag, hash ^ value);
}

static __always_inline u32 flow_first_set(u64 hash)
{
	return hash & (FLOW_SETS - 1);
}

static __always_inline u32 flow_second_set(u64 hash)
{
	return hash >> 24 & (FLOW_SETS - 1);
}

/* Finds the flow in one set: its entry and, in *value, the value; or NULL. */
static __always_inline struct flow_entry *flow_find_in(struct flow_set *set, u64 hash, u64 *value)
{
#pragma unroll
	for (int i = 0; i < FLOW_WAYS; i++) {
		u64 v = READ_ONCE(set->way[i].value);
		u64 t = READ_ONCE(set->way[i].tag);

		if ((t ^ v) == hash && (v & FLOW_VALID)) {
			*value = v;
			return &set->way[i];
		}
	}
	return NULL;
}

/* An entry may be this many ticks ahead: another CPU refreshed it after this one had read the clock. */
#define CLOCK_SLACK 16

/* Ticks since an entry was last seen, and as many more as it may be ahead. */
static __always_inline u32 flow_age(u64 value, u16 now)
{
	return (u16)(now - flow_tick(value) + CLOCK_SLACK);
}

/* 1 where an entry has been silent for longer than its state allows, else 0. */
static __always_inline u32 flow_expired(u64 value, u16 now, const struct settings *settings)
{
	u32 timeout = settings->timeout[flow_state(value)] + CLOCK_SLACK;

	return (timeout - flow_age(value, now)) >> 31;
}

/*
 * What an entry is worth to a newcomer: the higher, the sooner it goes; 0 is never. Below the bits that say
 * what it is stands its age. Computed without a branch, which is faster for floods, and spares the verifier
 * walking through all combinations.
 */
#define RANK_EMPTY   (1U << 19)
#define RANK_EXPIRED (1U << 18)
#define RANK_YOUNG   (1U << 17)

static __always_inline u32 flow_rank(u64 value, u16 now, const struct settings *settings)
{
	u32 age = flow_age(value, now);
	u32 empty = value >> 63 ^ 1;
	u32 expired = flow_expired(value, now, settings);
	u32 young = (value >> (FLOW_STATE_SHIFT + 2) & 1) ^ 1; /* states from FLOW_ESTABLISHED on have that bit */

	return empty * RANK_EMPTY + expired * RANK_EXPIRED + young * (RANK_YOUNG + age);
}

struct flow_victim {
	struct flow_entry *entry;
	u32 rank;
};

/* The larger of two numbers below 2^31, without a branch: which one it is can't be predicted. */
static __always_inline u32 larger(u32 a, u32 b)
{
	u32 less = a - b;

	asm volatile("" : "+r"(less)); /* or the compiler makes a branch of it */
	return a - (less & -(less >> 31));
}

/* Improves the choice of the entry to replace by the entries of one more set. */
static __always_inline void flow_choose_victim(struct flow_victim *victim, struct flow_set *set, u16 now,
					       const struct settings *settings)
{
	u32 best = 0; /* rank, and below it how many ways come after this one: of equals the first one */

#pragma unroll
	for (u32 i = 0; i < FLOW_WAYS; i++)
		best = larger(best, flow_rank(READ_ONCE(set->way[i].value), now, settings) * FLOW_WAYS +
					    FLOW_WAYS - 1 - i);
	if (best / FLOW_WAYS > victim->rank) {
		victim->rank = best / FLOW_WAYS;
		victim->entry = &set->way[FLOW_WAYS - 1 - best % FLOW_WAYS];
	}
}

#define MOVE_TRIES 4

/*
 * Makes room in a full set by moving one of its entries to that one's other set. Without it 4% of flows find
 * no place in a table loaded to 80%; not tried in a table that is nearly full, where it would be in vain.
 */
static __always_inline void flow_move_one(struct flow_victim *victim, struct flow_set *set, u32 index, u16 now,
					  const struct settings *settings)
{
#pragma unroll
	for (int i = 0; i < MOVE_TRIES; i++) {
		u64 value = READ_ONCE(set->way[i].value);
		u64 hash = READ_ONCE(set->way[i].tag) ^ value;
		u32 other = flow_first_set(hash) == index ? flow_second_set(hash) : flow_first_set(hash);
		struct flow_set *there = flow_set_at(other);
		struct flow_victim room = {};

		if (!there || victim->rank >= RANK_EXPIRED)
			continue;
		flow_choose_victim(&room, there, now, settings);
		if (room.rank < RANK_EXPIRED)
			continue;
		flow_write(room.entry, hash, value);
		victim->entry = &set->way[i];
		victim->rank = RANK_EXPIRED;
	}
}

/* Where a flow is, or would be. */
struct flow_place {
	struct flow_set *first;
	struct flow_set *second;
	struct flow_entry *entry; /* NULL where it isn't in the table */
	u64 value;
};

/* False only where the table itself is not there. */
static __always_inline bool flow_find(struct flow_place *place, u64 hash)
{
	place->first = flow_set_at(flow_first_set(hash));
	if (!place->first)
		return false;
	place->second = place->first;
	place->entry = flow_find_in(place->first, hash, &place->value);
	if (place->entry)
		return true;
	place->second = flow_set_at(flow_second_set(hash));
	if (!place->second)
		return false;
	place->entry = flow_find_in(place->second, hash, &place->value);
	return true;
}

/*
 * Records a flow that is in neither of its sets; `move`: if need be, move another one. False where every
 * entry belongs to an established flow.
 */
static __always_inline bool flow_insert(struct flow_place *place, u64 hash, u64 value, u16 now, bool move)
{
	const struct settings *settings = settings_get();
	struct flow_victim victim = {};
	u32 enough;

	if (!settings)
		return false;
	enough = settings->flags & SETTING_CROWDED ? RANK_YOUNG : RANK_EXPIRED;
	flow_choose_victim(&victim, place->first, now, settings);
	if (victim.rank < enough)
		flow_choose_victim(&victim, place->second, now, settings);
	if (move && victim.rank < enough && !(settings->flags & SETTING_CROWDED))
		flow_move_one(&victim, place->first, flow_first_set(hash), now, settings);
	if (!victim.entry)
		return false;
	flow_write(victim.entry, hash, value);
	return true;
}

/* A client that still sends when so many ticks have passed since its FIN has closed only its own direction. */
#define HALF_CLOSED_TICKS 2

/* The state after one more packet, which comes `age` ticks after the one that the entry tells of. */
static __always_inline enum flow_state flow_next_state(enum flow_state state, const struct packet *p, s16 age)
{
	if (p->ends)
		return FLOW_CLOSING;
	if (state == FLOW_CLOSING && p->starts)
		return FLOW_UNPROVEN;
	if (state == FLOW_CLOSING)
		return age >= HALF_CLOSED_TICKS ? FLOW_PROVING : FLOW_CLOSING;
	if (!age)
		return state;
	if (state == FLOW_UNPROVEN)
		return FLOW_PROVING;
	if (state == FLOW_PROVING)
		return p->protocol == IPPROTO_UDP ? FLOW_STREAM : FLOW_ESTABLISHED;
	return state;
}

#endif
