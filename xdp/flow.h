/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The flow table: which real a connection belongs to. An array of 64-byte sets of four entries, read and
 * written by all CPUs and by the control plane without locks: an entry is valid only where tag ^ value is
 * the flow's hash, so that a torn write is a miss, and a miss falls back to the Maglev table.
 *
 * A flow has two sets that it may be in. It is looked for in the second one only after the first.
 *
 * Replacement: an empty entry, else an expired one, in the first set and then in the second; else the one of
 * an unestablished flow unseen for longest; else none. So a flood, whatever it is made of, can only displace
 * other flows that have not proven themselves. A flow is established by packets in three different ticks.
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

/* What an entry is worth to a newcomer: the higher, the sooner it goes; 0 is never. */
#define RANK_EMPTY   0x40000
#define RANK_EXPIRED 0x20000
#define RANK_YOUNG   0x10000

/* An entry may be this many ticks ahead: another CPU refreshed it after this one had read the clock. */
#define CLOCK_SLACK 16

static __always_inline u32 flow_rank(u64 value, u16 now, const struct settings *settings)
{
	u16 age = now - flow_tick(value);

	if (!(value & FLOW_VALID))
		return RANK_EMPTY;
	if (age > FLOW_TICK_MASK - CLOCK_SLACK)
		age = 0;
	if (age > settings->timeout[flow_state(value)])
		return RANK_EXPIRED | age;
	if (flow_state(value) != FLOW_ESTABLISHED)
		return RANK_YOUNG | age;
	return 0;
}

struct flow_victim {
	struct flow_entry *entry;
	u32 rank;
};

/* Improves the choice of the entry to replace by the entries of one more set. */
static __always_inline void flow_choose_victim(struct flow_victim *victim, struct flow_set *set, u16 now,
					       const struct settings *settings)
{
#pragma unroll
	for (int i = 0; i < FLOW_WAYS; i++) {
		u32 rank = flow_rank(READ_ONCE(set->way[i].value), now, settings);

		if (rank > victim->rank) {
			victim->rank = rank;
			victim->entry = &set->way[i];
		}
	}
}

/* Records a flow that is in neither of its sets. False where every entry belongs to an established flow. */
static __always_inline bool flow_insert(struct flow_set *first, struct flow_set *second, u64 hash, u64 value,
					u16 now)
{
	const struct settings *settings = settings_get();
	struct flow_victim victim = {};

	if (!settings)
		return false;
	flow_choose_victim(&victim, first, now, settings);
	if (victim.rank < RANK_EXPIRED)
		flow_choose_victim(&victim, second, now, settings);
	if (!victim.entry)
		return false;
	flow_write(victim.entry, hash, value);
	return true;
}

/* The state after one more packet; later: it comes in another tick than the last one did. */
static __always_inline enum flow_state flow_next_state(enum flow_state state, bool starts, bool ends, bool later)
{
	if (ends)
		return FLOW_CLOSING;
	if (state == FLOW_CLOSING)
		return starts ? FLOW_UNPROVEN : FLOW_CLOSING;
	if (later && state < FLOW_ESTABLISHED)
		return state + 1;
	return state;
}

#endif
