/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Takes flows that other balancers have told of into the flow table, by the rules for flows of our own: only
 * empty and expired entries, and for a flow that has proven itself those of flows that haven't. The control
 * plane runs it once for every record of a batch; never is a packet involved.
 *
 * Of two opinions on one flow's backend the same one wins on every node (vc5py/core/flowsync.py restates it).
 */
#ifndef VC5_LEARN_H
#define VC5_LEARN_H

/* An established flow seen within so many ticks, which all talking ones are, is sure to be where it is said. */
#define LEARN_RECENT_TICKS (2 * SAMPLE_TICKS)

/* Ages are told in whole ticks, and travel: of two that differ by no more, neither is the newer. */
#define LEARN_SLACK_TICKS 2

static __always_inline bool learn_established(enum flow_state state)
{
	return state >= FLOW_ESTABLISHED;
}

struct opinion {
	u32 identity;
	u16 tick;
	enum flow_state state;
};

static __always_inline bool learn_sure(const struct opinion *o, u16 now)
{
	return learn_established(o->state) && (s16)(now - o->tick) <= LEARN_RECENT_TICKS;
}

/* Whether of two opinions on a flow's backend the first one holds. */
static __always_inline bool learn_prefers(const struct opinion *a, const struct opinion *b, u16 now)
{
	s16 newer = a->tick - b->tick;

	if (learn_sure(a, now) != learn_sure(b, now))
		return learn_sure(a, now);
	if (newer > LEARN_SLACK_TICKS || newer < -LEARN_SLACK_TICKS)
		return newer > 0;
	return a->identity > b->identity;
}

/* The state of a flow of which both we and a peer know, at the same backend. */
static __always_inline enum flow_state learn_merged(enum flow_state ours, enum flow_state theirs, s16 newer)
{
	enum flow_state first = newer > 0 ? ours : theirs, last = newer > 0 ? theirs : ours;

	if (first == FLOW_CLOSING || last == FLOW_CLOSING)
		return last;
	return first > last ? first : last;
}

/* The backend that a record names, if it is still the one that is meant. */
static __always_inline bool learn_backend(const struct learned *r, const struct service *service,
					  struct choice *choice, bool *up)
{
	*up = choose_local(service, r->owner & FLOW_LOCAL_MASK, choice);
	return choice->backend && (u32)choice->backend->identity == r->identity &&
	       !(choice->backend->flags & BACKEND_RESTING);
}

static __always_inline enum learn_result learn_insert(struct flow_place *place, u64 hash, u64 value, u16 now)
{
	const struct settings *settings = settings_get();
	struct flow_victim victim = {};

	if (!settings)
		return LEARN_NO_ROOM;
	flow_choose_victim(&victim, place->first, now, settings);
	if (victim.rank < RANK_EXPIRED)
		flow_choose_victim(&victim, place->second, now, settings);
	if (victim.rank < RANK_EXPIRED && !(settings->flags & SETTING_CROWDED))
		flow_move_one(&victim, place->first, flow_first_set(hash), now, settings);
	if (!victim.entry || (victim.rank < RANK_EXPIRED && !learn_established(flow_state(value))))
		return LEARN_NO_ROOM;
	flow_write(victim.entry, hash, value);
	return LEARN_ADDED;
}

/* A flow that we know at another backend. */
static __always_inline enum learn_result learn_disputed(const struct flow_place *place, const struct learned *r,
							const struct service *service, bool up, u64 value,
							u16 now)
{
	struct opinion theirs = { r->identity, flow_tick(value), flow_state(value) };
	struct opinion ours = { 0, flow_tick(place->value), flow_state(place->value) };
	struct choice choice = {};
	bool ours_up;

	if (flow_service(place->value) == flow_service(value)) {
		ours_up = choose_local(service, flow_local(place->value), &choice);
		if (choice.backend)
			ours.identity = choice.backend->identity;
		if (ours_up != up ? ours_up : !learn_prefers(&theirs, &ours, now))
			return LEARN_KEPT;
	}
	flow_write(place->entry, r->hash, value);
	return LEARN_TAKEN;
}

static __always_inline enum learn_result learn_known(const struct flow_place *place, const struct learned *r,
						     u32 index, u16 tick)
{
	enum flow_state old = flow_state(place->value);
	s16 newer = tick - flow_tick(place->value);
	enum flow_state state = learn_merged(old, r->state, newer);
	u64 value = flow_value(index, r->owner & FLOW_LOCAL_MASK, state, newer > 0 ? tick : flow_tick(place->value));

	if (newer <= 0 && state == old)
		return LEARN_KEPT;
	flow_write(place->entry, r->hash, newer > 0 ? value | FLOW_LEARNED : value | (place->value & FLOW_LEARNED));
	return LEARN_UPDATED;
}

/*
 * Whether the flow's slot names another backend. Such a slot must be unstable, or nobody looks at the entry; and
 * where the entry is new, an unstable one must not become stable by what was seen before.
 */
static __always_inline bool learn_is_stray(const struct service *service, const struct learned *r, bool is_new)
{
	u64 table = READ_ONCE(service->table);
	u32 slot = slot_lookup(table, hash_slot(r->hash));

	if (!table || service->flags & SERVICE_BY_FLOW || (slot & SLOT_UNSTABLE && !is_new))
		return false;
	return (slot & SLOT_NONE) != (r->owner & FLOW_LOCAL_MASK);
}

static __always_inline enum learn_result learn_one(const struct learned *r)
{
	u32 index = r->owner >> FLOW_LOCAL_BITS;
	struct service *service = service_at(index);
	struct settings *settings = settings_get();
	u16 now = flow_now(), tick = now - r->age;
	struct flow_place place = {};
	struct choice choice = {};
	enum learn_result result;
	bool up, same;
	u64 value;

	if (!service || !settings || r->state == FLOW_FRAGMENT || r->state > FLOW_STREAM)
		return LEARN_UNKNOWN;
	if (!learn_backend(r, service, &choice, &up))
		return LEARN_UNKNOWN;
	if (r->age > settings->timeout[r->state & FLOW_STATE_MASK])
		return LEARN_EXPIRED;
	if (!flow_find(&place, r->hash))
		return LEARN_NO_ROOM;
	value = flow_value(index, r->owner & FLOW_LOCAL_MASK, r->state, tick) | FLOW_LEARNED;
	same = place.entry && (place.value & ((1ULL << FLOW_STATE_SHIFT) - 1)) == r->owner;
	if (!place.entry)
		result = learn_insert(&place, r->hash, value, now);
	else if (same)
		result = learn_known(&place, r, index, tick);
	else
		result = learn_disputed(&place, r, service, up, value, now);
	if ((same || result <= LEARN_TAKEN) && learn_is_stray(service, r, !same))
		return result | LEARN_STRAY;
	return result;
}

#endif
