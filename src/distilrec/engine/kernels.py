"""The loops of the engine, compiled by numba and cached on disk. One thread, float32, no allocation
in the scans.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from distilrec.engine.items import CHANNELS, TILE
from distilrec.engine.time_inputs import DAY, DAYS, HOUR, HOURS, KNOTS, PER_KNOT

CACHED = True  # whether compiled kernels are kept on disk


_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called; sums may be reordered. numba's decorator has no
    types of its own; every kernel is called through a typed method in `runtime`. Where there is no
    folder to keep compiled code in, each start compiles again.
    """
    return _compiled(function, fastmath=_FASTMATH)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function as `kernel` does, for kernels to call: it becomes part of their code.

    Of a function that is called, numba may run its own copy when it has just compiled it, and the
    caller's when both come from disk, whose sums are in another order.
    """
    return _compiled(function, fastmath=_FASTMATH, inline="always")


def fold_kernel(function: Callable[..., Any]) -> Any:
    """Compile a function as `kernel` does, in the order and with the roundings that are written: a
    state that was updated and one that was folded again from the same events are the same bits,
    wherever they lie in memory.
    """
    return _compiled(function, fastmath=False)


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    global CACHED  # noqa: PLW0603
    try:
        return njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # numba found no folder that it can write
        CACHED = False
        return njit(nogil=True, **options)(function)


_GROUP = 32  # scores that are compared with the worst of the best at once
_BLOCK = 2_048  # items per pass: their scores stay in the first-level cache


@fold_kernel
def fold_recurrent(state, items, events, vectors, gain, decay, scale):  # type: ignore[no-untyped-def]
    """H = decay * h + scale * gain[event] * x per event; the row of `state` behind these (scales,
    dim) becomes x_last.
    """
    scales, dim = decay.shape
    for n in range(items.shape[0]):
        item, event = items[n], events[n]
        for s in range(scales):
            for c in range(dim):
                state[s, c] = decay[s, c] * state[s, c] + scale[s, c] * (
                    gain[event, c] * vectors[item, c]
                )
    if items.shape[0] > 0:
        for c in range(dim):
            state[scales, c] = vectors[items[-1], c]


@kernel
def keep_latest(rows, items, events, kept):  # type: ignore[no-untyped-def]
    """Put these events before those that are there: items plus 1, the latest first, 0 for none,
    then their types; `kept` of each, in rows (n, dim) of at least 2 kept floats.
    """
    dim = rows.shape[1]
    new = min(items.shape[0], kept)
    for part in range(2):
        first = part * kept
        for n in range(first + kept - 1, first + new - 1, -1):
            rows[n // dim, n % dim] = rows[(n - new) // dim, (n - new) % dim]
        for n in range(new):
            event = items.shape[0] - 1 - n
            value = items[event] + 1 if part == 0 else events[event]
            rows[(first + n) // dim, (first + n) % dim] = value


@kernel
def latest_without_each(rows, kept, out):  # type: ignore[no-untyped-def]
    """Put into out[j] the kept events of a user, `rows`, without event j of the latest (events,);
    the oldest of them is not known then, and becomes none.
    """
    dim = rows.shape[1]
    for j in range(out.shape[0]):
        age = out.shape[0] - 1 - j
        for place in range(2 * kept):
            n = place % kept
            source = place + 1 if n >= age else place
            known = n < age or n + 1 < kept
            out[j, place // dim, place % dim] = (
                rows[source // dim, source % dim] if known else np.float32(0.0)
            )


@inlined
def read_latest(rows, kept, visit, types, latest):  # type: ignore[no-untyped-def]
    """Put the kept events but the oldest into `latest` (2 (kept - 1),), items plus 1, then types,
    plus `types` for those that are older than the latest `visit` ones.
    """
    dim = rows.shape[1]
    number = latest.shape[0] // 2
    for n in range(number):
        latest[n] = rows[n // dim, n % dim]
        earlier = np.float32(types if n >= visit and latest[n] > 0 else 0)
        latest[number + n] = rows[(kept + n) // dim, (kept + n) % dim] + earlier


@inlined
def visit_in(user, dim, kept):  # type: ignore[no-untyped-def]
    """Return how many of the latest events are of this visit, which stands behind U f_u (dim,) for
    a student that knows visits; all for another.
    """
    return int(user[dim]) if user.shape[0] > dim else kept


@inlined
def add_neighbours(latest, neighbours, values, units, ages, repeats, out):  # type: ignore[no-untyped-def]
    """Add the sum over the latest events of w[e, age] S[j, i] + r[e, age] (i = j) to out (items,).

    latest: of `read_latest`; neighbours: (rows, number) int32; values: of the same shape int8, S in
    `units` (rows,); ages: w, (types, n); repeats: r, (types, n); each twice as many rows, those of
    events of earlier visits behind the others, for a student that knows visits.
    """
    number = ages.shape[1]
    for age in range(number):
        item = int(latest[age]) - 1
        if 0 <= item < neighbours.shape[0]:
            event = int(latest[number + age])
            out[item] += repeats[event, age]
            weight = ages[event, age] * units[item]
            if weight != 0:
                for m in range(neighbours.shape[1]):
                    out[neighbours[item, m]] += weight * np.float32(values[item, m])


@kernel
def neighbours_of(  # type: ignore[no-untyped-def]
    states, kept, visit, items, neighbours, values, units, ages, repeats, out
):
    """Add what `add_neighbours` adds, for some items and for several states, to out (states,
    items). states: the rows of `keep_latest` of each; visit: how many of the latest events of each
    are of this visit; rows of neighbours rise.
    """
    number = ages.shape[1]
    latest = np.empty(2 * number, np.float32)
    for s in range(states.shape[0]):
        read_latest(states[s], kept, visit, ages.shape[0] // 2, latest)
        for age in range(number):
            item = int(latest[age]) - 1
            if 0 <= item < neighbours.shape[0]:
                event = int(latest[number + age])
                weight = ages[event, age] * units[item]
                for n in range(items.shape[0]):
                    if items[n] == item:
                        out[s, n] += repeats[event, age]
                    m = np.searchsorted(neighbours[item], items[n])
                    if m < neighbours.shape[1] and neighbours[item, m] == items[n]:
                        out[s, n] += weight * np.float32(values[item, m])


@kernel
def without_each_recurrent(items, events, vectors, gain, decay, scale, out):  # type: ignore[no-untyped-def]
    """out[j] = the state had event j not happened, (events, scales + 1, dim): h - a^(n-1-j) (h_j -
    h_{j-1}).

    h_j is the state after event j; what came before j keeps one step of decay less, as if refolded.
    O(events S d).
    """
    scales, dim = decay.shape
    total = items.shape[0]
    state = np.zeros((scales, dim), np.float64)
    for j in range(total):  # forward: out[j] holds h_j - h_{j-1}
        for s in range(scales):
            for c in range(dim):
                before = state[s, c]
                state[s, c] = decay[s, c] * before + scale[s, c] * (
                    gain[events[j], c] * vectors[items[j], c]
                )
                out[j, s, c] = state[s, c] - before
    later = np.ones((scales, dim), np.float64)
    for j in range(total - 1, -1, -1):
        for s in range(scales):
            for c in range(dim):
                out[j, s, c] = state[s, c] - later[s, c] * out[j, s, c]
                later[s, c] *= decay[s, c]
        last = total - 1 if j < total - 1 else total - 2
        for c in range(dim):
            out[j, scales, c] = vectors[items[last], c] if last >= 0 else np.float32(0.0)


@inlined
def query_recurrent(  # type: ignore[no-untyped-def]
    state, user, mix, widen, widen_bias, narrow, narrow_bias, outer, epsilon, query
):
    """Q = norm(W h + x_last + U f_u + MLP(norm([h, x_last + U f_u]))) into `query` (dim,).

    widen: (wide, (scales + 1) dim), its columns times the gains of the inner norm.
    """
    dim = query.shape[0]
    scales = mix.shape[1] // dim
    known = np.empty((scales + 1) * dim, np.float32)
    for s in range(scales + 1):
        for c in range(dim):
            known[s * dim + c] = state[s, c] + (user[c] if s == scales else np.float32(0.0))
    # A loop of its own: where one also writes, the order of its sum would depend on addresses.
    square = np.float32(0.0)
    for j in range(known.shape[0]):
        square += known[j] * known[j]
    norm = np.float32(1.0) / math.sqrt(square / np.float32(known.shape[0]) + epsilon)
    for c in range(dim):
        value = known[scales * dim + c] + narrow_bias[c]
        for j in range(scales * dim):
            value += mix[c, j] * known[j]
        query[c] = value
    for w in range(widen.shape[0]):
        value = np.float32(0.0)
        for j in range(known.shape[0]):
            value += widen[w, j] * known[j]
        value = widen_bias[w] + norm * value
        activated = value / (np.float32(1.0) + math.exp(-value))  # SiLU
        for c in range(dim):
            query[c] += narrow[w, c] * activated
    square = np.float32(0.0)
    for c in range(dim):
        square += query[c] * query[c]
    norm = np.float32(1.0) / math.sqrt(square / np.float32(dim) + epsilon)
    for c in range(dim):
        query[c] *= norm * outer[c]


@kernel
def add_time(user, table, gap, local, out):  # type: ignore[no-untyped-def]
    """Put U f_u + T into out (dim,): G[log_4(1 + gap)] + C[hour] + D[day], between two rows of G
    and of C.

    table: (1 + KNOTS + 24 + 7, dim), what stands in place of G without an event, G, C and D; gap:
    in seconds, negative without an event; local: the time on the clocks of the zone, in seconds
    since 1970.
    """
    knot, share, next_knot = 0, np.float32(0.0), 0
    if gap >= 0.0:
        place = min(math.log2(1.0 + gap) / PER_KNOT, KNOTS - 1.0)
        knot = 1 + int(place)
        share = np.float32(place - int(place))
        next_knot = min(knot + 1, KNOTS)
    days = math.floor(local / DAY)
    place = (local - days * DAY) / HOUR
    hour = int(place)
    of_hour = np.float32(place - hour)
    next_hour = 1 + KNOTS + (hour + 1) % HOURS
    hour += 1 + KNOTS
    day = 1 + KNOTS + HOURS + int(days) % DAYS
    for c in range(out.shape[0]):
        between = table[knot, c] + share * (table[next_knot, c] - table[knot, c])
        between += table[hour, c] + of_hour * (table[next_hour, c] - table[hour, c])
        out[c] = user[c] + between + table[day, c]


@fold_kernel
def fold_mean(state, items, vectors):  # type: ignore[no-untyped-def]
    """Add the item vectors to state[:dim] and their number to state[dim]."""
    dim = vectors.shape[1]
    for n in range(items.shape[0]):
        for c in range(dim):
            state[c] += vectors[items[n], c]
    state[dim] += items.shape[0]


@inlined
def scores_dot(query, columns, biases, out):  # type: ignore[no-untyped-def]
    """s_i = q . v_i + b_i for all items into `out` (items,).

    columns: (channels, items), the item vectors transposed; query: (channels,); channels is a
    multiple of CHANNELS. Eight channels at a time over items that are neighbours in memory: the
    compiler turns the inner loop into vector code.
    """
    for start in range(0, out.shape[0], _BLOCK):
        stop = min(start + _BLOCK, out.shape[0])
        block = out[start:stop]
        block[:] = biases[start:stop]
        for c in range(0, columns.shape[0], CHANNELS):
            q0, q1, q2, q3 = query[c], query[c + 1], query[c + 2], query[c + 3]
            q4, q5, q6, q7 = query[c + 4], query[c + 5], query[c + 6], query[c + 7]
            v0, v1 = columns[c, start:stop], columns[c + 1, start:stop]
            v2, v3 = columns[c + 2, start:stop], columns[c + 3, start:stop]
            v4, v5 = columns[c + 4, start:stop], columns[c + 5, start:stop]
            v6, v7 = columns[c + 6, start:stop], columns[c + 7, start:stop]
            for i in range(stop - start):
                block[i] += (
                    (q0 * v0[i] + q1 * v1[i]) + (q2 * v2[i] + q3 * v3[i])
                    + (q4 * v4[i] + q5 * v5[i]) + (q6 * v6[i] + q7 * v7[i])
                )  # fmt: skip


@inlined
def scores_quantised(query, columns, scales, biases, factor, sums, out):  # type: ignore[no-untyped-def]
    """s_i = factor scale_i (q . v_i) + b_i, the product in integers, for all items into `out`
    (items,) float32.

    query: (channels,), columns: (channels, items), both int8 in [-127, 127]; sums: (at least TILE,)
    int32, overwritten. Two products fit into 16 bits, which doubles what a vector instruction does.
    """
    for start in range(0, out.shape[0], TILE):
        stop = min(start + TILE, out.shape[0])
        total = sums[: stop - start]
        total[:] = 0
        for c in range(0, columns.shape[0], CHANNELS):
            q0, q1, q2, q3 = query[c], query[c + 1], query[c + 2], query[c + 3]
            q4, q5, q6, q7 = query[c + 4], query[c + 5], query[c + 6], query[c + 7]
            v0, v1 = columns[c, start:stop], columns[c + 1, start:stop]
            v2, v3 = columns[c + 2, start:stop], columns[c + 3, start:stop]
            v4, v5 = columns[c + 4, start:stop], columns[c + 5, start:stop]
            v6, v7 = columns[c + 6, start:stop], columns[c + 7, start:stop]
            for i in range(stop - start):
                total[i] += (
                    (np.int32(np.int16(q0 * v0[i] + q1 * v1[i]))
                    + np.int32(np.int16(q2 * v2[i] + q3 * v3[i])))
                    + (np.int32(np.int16(q4 * v4[i] + q5 * v5[i]))
                    + np.int32(np.int16(q6 * v6[i] + q7 * v7[i])))
                )  # fmt: skip
        part, scale, bias = out[start:stop], scales[start:stop], biases[start:stop]
        for i in range(stop - start):
            part[i] = bias[i] + factor * scale[i] * np.float32(total[i])


@kernel
def scores_relu(query, readout, hidden, biases, out):  # type: ignore[no-untyped-def]
    """s_i = w . relu(q + h_i) + b_i for all items into `out` (items,)."""
    for i in range(hidden.shape[0]):
        value = biases[i]
        for c in range(query.shape[0]):
            value += readout[c] * max(query[c] + hidden[i, c], np.float32(0.0))
        out[i] = value


@inlined
def top_k(scores, seen, mask, k, best_items, best_scores):  # type: ignore[no-untyped-def]
    """Find the k best items that are not in `seen`, best first, equal scores in item order; return
    how many there are.

    mask: (items,) uint8, 0 for an item that must not be given; an empty mask lets all pass.
    Overwrites the scores of items that are left out with -inf.
    """
    for n in range(seen.shape[0]):
        scores[seen[n]] = -np.inf
    if mask.shape[0] > 0:
        for i in range(scores.shape[0]):
            if mask[i] == 0:
                scores[i] = -np.inf
    count = 0
    threshold = np.float32(-np.inf)
    for start in range(0, scores.shape[0], _GROUP):
        stop = min(start + _GROUP, scores.shape[0])
        if count == k:  # once the list is full, nearly every group is passed over by vector code
            better = np.int32(0)
            for i in range(start, stop):
                better += np.int32(scores[i] > threshold)
            if better == 0:
                continue
        for i in range(start, stop):
            value = scores[i]
            if value > threshold or (count < k and value > -np.inf):
                place = count if count < k else k - 1
                while place > 0 and best_scores[place - 1] < value:
                    best_scores[place] = best_scores[place - 1]
                    best_items[place] = best_items[place - 1]
                    place -= 1
                best_scores[place] = value
                best_items[place] = i
                if count < k:
                    count += 1
                if count == k:
                    threshold = best_scores[k - 1]
    return count


@kernel
def recommend_recurrent(  # type: ignore[no-untyped-def]
    state, user, mix, widen, widen_bias, narrow, narrow_bias, outer, epsilon,
    columns, biases, seen, mask, k, query, scores, best_items, best_scores,
):  # fmt: skip
    """`query_recurrent`, `scores_dot` and `top_k` in one call: entering compiled code costs as much
    as a small scan, and each argument a part of that.
    """
    query_recurrent(
        state, user, mix, widen, widen_bias, narrow, narrow_bias, outer, epsilon,
        query[: outer.shape[0]],
    )  # fmt: skip
    scores_dot(query, columns, biases, scores)
    return top_k(scores, seen, mask, k, best_items, best_scores)


@kernel
def recommend_with_neighbours(  # type: ignore[no-untyped-def]
    state, user, mix, widen, widen_bias, narrow, narrow_bias, outer, epsilon,
    kept, neighbours, values, units, ages, repeats,
    columns, biases, seen, mask, k, query, scores, best_items, best_scores,
):  # fmt: skip
    """`recommend_recurrent` with `add_neighbours` for the latest events of the state."""
    dim = outer.shape[0]
    query_recurrent(
        state, user, mix, widen, widen_bias, narrow, narrow_bias, outer, epsilon, query[:dim]
    )  # fmt: skip
    scores_dot(query, columns, biases, scores)
    latest = query[dim : dim + 2 * ages.shape[1]]
    visit, types = visit_in(user, dim, kept), ages.shape[0] // 2
    read_latest(state[mix.shape[1] // dim + 1 :], kept, visit, types, latest)
    add_neighbours(latest, neighbours, values, units, ages, repeats, scores)
    return top_k(scores, seen, mask, k, best_items, best_scores)


@kernel
def best_quantised(  # type: ignore[no-untyped-def]
    query, columns, scales, vectors, biases, seen, mask, pool, sums, scores, best_items, best_scores
):
    """Find the best items by `scores_quantised`, scored again exactly; as many as `best_items`
    holds or fewer, best first.

    query: (dim,) float32; vectors: (items, dim) float32; pool: how many are scored again.
    """
    dim = query.shape[0]
    largest = np.float32(1e-30)
    for c in range(dim):
        largest = max(largest, abs(query[c]))
    factor = largest / np.float32(127.0)
    rounded = np.zeros(columns.shape[0], np.int8)
    for c in range(dim):
        rounded[c] = np.int8(round(query[c] / factor))
    scores_quantised(rounded, columns, scales, biases, factor, sums, scores)
    items, approximate = np.empty(pool, np.int32), np.empty(pool, np.float32)
    count = top_k(scores, seen, mask, pool, items, approximate)
    return rescore(query, vectors, biases, np.sort(items[:count]), best_items, best_scores)


@kernel
def best_by_rows(query, vectors, biases, seen, mask, scores, best_items, best_scores):  # type: ignore[no-untyped-def]
    """Find the best items by q . v_i + b_i; as many as `best_items` holds or fewer, best first.

    query: (dim,); vectors: (items, dim), read once from the first number to the last: faster than
    columns where the catalogue is larger than the caches; scores: (items,), overwritten.
    """
    for i in range(vectors.shape[0]):
        value = np.float32(0.0)
        for c in range(vectors.shape[1]):
            value += query[c] * vectors[i, c]
        scores[i] = value + biases[i]
    return top_k(scores, seen, mask, best_items.shape[0], best_items, best_scores)


@inlined
def rescore(query, vectors, biases, items, best_items, best_scores):  # type: ignore[no-untyped-def]
    """Find the best of `items` (n,) by q . v_i + b_i; as many as `best_items` holds or fewer, equal
    scores in the order given.
    """
    scores = np.empty(items.shape[0], np.float32)
    for n in range(items.shape[0]):
        value = biases[items[n]]
        for c in range(query.shape[0]):
            value += query[c] * vectors[items[n], c]
        scores[n] = value
    nothing, everything = np.empty(0, np.int32), np.empty(0, np.uint8)
    count = top_k(scores, nothing, everything, best_items.shape[0], best_items, best_scores)
    for n in range(count):
        best_items[n] = items[best_items[n]]
    return count


@kernel
def best_of(  # type: ignore[no-untyped-def]
    query, vectors, biases, candidates, few, seen, mask, marked, best_items, best_scores
):
    """`rescore` of those of `candidates` (n,) that are not in `seen` and pass the mask, each once;
    equal scores by item.

    Returns how many there are in `best_items`, and how many of the first `few` candidates were not
    left out. marked: (items,) uint8 of zeros, and so it is again afterwards.
    """
    for n in range(seen.shape[0]):
        marked[seen[n]] = 1
    left = np.empty(candidates.shape[0], np.int32)
    count = near = 0
    for n in range(candidates.shape[0]):
        item = candidates[n]
        if marked[item] == 0 and (mask.shape[0] == 0 or mask[item] == 1):
            left[count] = item
            count += 1
            marked[item] = 1
        if n < few:
            near = count
    for n in range(seen.shape[0]):
        marked[seen[n]] = 0
    for n in range(count):
        marked[left[n]] = 0
    return rescore(query, vectors, biases, np.sort(left[:count]), best_items, best_scores), near


@kernel
def queries_recurrent(  # type: ignore[no-untyped-def]
    states, user, mix, widen, widen_bias, narrow, narrow_bias, outer, epsilon, queries
):
    """`query_recurrent` for several states of one user, (n, rows, dim), into `queries` (n,
    dim).
    """
    for n in range(states.shape[0]):
        query_recurrent(
            states[n], user, mix, widen, widen_bias, narrow, narrow_bias, outer, epsilon, queries[n]
        )  # fmt: skip


@kernel
def diversify(vectors, relevance, diversity, chosen):  # type: ignore[no-untyped-def]
    """Maximal marginal relevance (Carbonell and Goldstein 1998): `chosen` (k,) gets rows of
    `vectors` (n, dim), n >= k.

    Each next item maximises (1 - diversity) relevance - diversity max cosine to the items chosen
    before it; relevance: (n,) in [0, 1], best first.
    """
    n, dim = vectors.shape
    unit = np.empty((n, dim), np.float32)
    for i in range(n):
        square = np.float32(1e-12)
        for c in range(dim):
            square += vectors[i, c] * vectors[i, c]
        for c in range(dim):
            unit[i, c] = vectors[i, c] / math.sqrt(square)
    closest = np.full(n, np.float32(-1.0))
    taken = np.zeros(n, np.uint8)
    for place in range(chosen.shape[0]):
        best, best_value = -1, np.float32(0.0)
        for i in range(n):
            if taken[i] == 0:
                likeness = np.float32(0.0) if place == 0 else closest[i]
                value = (np.float32(1.0) - diversity) * relevance[i] - diversity * likeness
                if best < 0 or value > best_value:
                    best, best_value = i, value
        chosen[place] = best
        taken[best] = 1
        for i in range(n):
            cosine = np.float32(0.0)
            for c in range(dim):
                cosine += unit[i, c] * unit[best, c]
            closest[i] = max(closest[i], cosine)
