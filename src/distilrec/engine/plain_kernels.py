"""The functions of `distilrec.engine.kernels` in numpy: for machines that cannot compile, and to
test the compiled loops against.

Names, parameters and what is written into the given arrays are the same. Everything is float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distilrec.engine.items import Floats, Mask, Places
from distilrec.engine.time_inputs import DAY, DAYS, HOUR, HOURS, KNOTS, PER_KNOT

_NO_ITEMS: Places = np.zeros(0, np.int32)
_NO_MASK: Mask = np.zeros(0, np.uint8)
_FROM = 4_096  # scores from which the best are picked out before they are sorted


def fold_recurrent(
    state: Floats,
    items: Places,
    events: Places,
    vectors: Floats,
    gain: Floats,
    decay: Floats,
    scale: Floats,
) -> None:
    """H = decay * h + scale * gain[event] * x per event; the row of `state` behind these becomes
    x_last.
    """
    scales = len(decay)
    for item, event in zip(items, events, strict=True):
        state[:scales] = decay * state[:scales] + scale * (gain[event] * vectors[item])
    if len(items):
        state[scales] = vectors[items[-1]]


def keep_latest(rows: Floats, items: Places, events: Places, kept: int) -> None:
    """Put these events before those that are there: items plus 1, the latest first, 0 for none,
    then their types; `kept` of each.
    """
    flat = rows.reshape(-1).copy()
    new = [items[::-1][:kept] + 1, events[::-1][:kept]]
    for part, values in enumerate(new):
        own = flat[part * kept : (part + 1) * kept]
        own[:] = np.concatenate([values, own])[:kept]
    rows[:] = flat.reshape(rows.shape)


def latest_without_each(rows: Floats, kept: int, out: Floats) -> None:
    """Put into out[j] the kept events of a user, `rows`, without event j of the latest."""
    events = rows.reshape(-1)[: 2 * kept].reshape(2, kept)
    for j in range(len(out)):
        without = np.delete(events, [len(out) - 1 - j] if len(out) - 1 - j < kept else [], axis=1)
        flat = out[j].reshape(-1).copy()
        flat[: 2 * kept] = 0
        for part, values in enumerate(without):
            flat[part * kept : part * kept + len(values)] = values
        out[j] = flat.reshape(out[j].shape)


def read_latest(rows: Floats, kept: int, visit: int, types: int, latest: Floats) -> None:
    """Put the kept events but the oldest into `latest`, items plus 1, then types, plus `types` for
    those that are older than the latest `visit` ones.
    """
    number = len(latest) // 2
    flat = rows.reshape(-1)
    latest[:number] = flat[:number]
    earlier = (np.arange(number) >= visit) & (latest[:number] > 0)
    latest[number:] = flat[kept : kept + number] + types * earlier


def visit_in(user: Floats, dim: int, kept: int) -> int:
    """Return how many of the latest events are of this visit, which stands behind U f_u."""
    return int(user[dim]) if len(user) > dim else kept


def add_neighbours(
    latest: Floats,
    neighbours: Places,
    values: NDArray[np.int8],
    units: Floats,
    ages: Floats,
    repeats: Floats,
    out: Floats,
) -> None:
    """Add the sum over the latest events of w[e, age] S[j, i] + r[e, age] (i = j) to out,
    (items,).
    """
    number = ages.shape[1]
    for age in range(number):
        item, event = int(latest[age]) - 1, int(latest[number + age])
        if 0 <= item < len(neighbours):
            # An item is in a row once.
            weight = ages[event, age] * units[item]
            out[neighbours[item]] += weight * values[item].astype(np.float32)
            out[item] += repeats[event, age]


def neighbours_of(
    states: Floats,
    kept: int,
    visit: int,
    items: Places,
    neighbours: Places,
    values: NDArray[np.int8],
    units: Floats,
    ages: Floats,
    repeats: Floats,
    out: Floats,
) -> None:
    """Add what `add_neighbours` adds, for some items and for several states, to out."""
    number = ages.shape[1]
    if not number:
        return
    every = int(max(neighbours.max(initial=0), items.max(initial=0), len(neighbours) - 1)) + 1
    latest = np.empty(2 * number, np.float32)
    for state, row in zip(states, out, strict=True):
        read_latest(state, kept, visit, len(ages) // 2, latest)
        added = np.zeros(every, np.float32)
        add_neighbours(latest, neighbours, values, units, ages, repeats, added)
        row += added[items]


def without_each_recurrent(
    items: Places,
    events: Places,
    vectors: Floats,
    gain: Floats,
    decay: Floats,
    scale: Floats,
    out: Floats,
) -> None:
    """out[j] = the state had event j not happened: h - a^(n-1-j) (h_j - h_{j-1})."""
    total, scales = len(items), len(decay)
    states = np.zeros((total + 1, *decay.shape))
    for n, (item, event) in enumerate(zip(items, events, strict=True)):
        states[n + 1] = decay * states[n] + scale * (gain[event] * vectors[item])
    later = decay.astype(np.float64) ** np.arange(total - 1, -1, -1)[:, None, None]
    out[:, :scales] = states[-1] - later * np.diff(states, axis=0)
    if total:
        out[:, scales] = vectors[items[-1]]
        out[-1, scales] = vectors[items[-2]] if total > 1 else 0.0


def query_recurrent(
    state: Floats,
    user: Floats,
    mix: Floats,
    widen: Floats,
    widen_bias: Floats,
    narrow: Floats,
    narrow_bias: Floats,
    outer: Floats,
    epsilon: np.float32,
    query: Floats,
) -> None:
    """Q = norm(W h + x_last + U f_u + MLP(norm([h, x_last + U f_u]))) into `query` (dim,)."""
    dim = len(query)
    known = state[: mix.shape[1] // dim + 1].reshape(-1).copy()
    known[-dim:] += user[:dim]
    value = widen_bias + widen @ known / np.sqrt(np.mean(known * known) + epsilon)
    # Beyond this a float32 is 0 or the value itself.
    hidden = value / (1 + np.exp(np.minimum(-value, np.float32(80))))
    raw = known[-dim:] + narrow_bias + mix @ known[:-dim] + hidden @ narrow
    query[:] = outer * raw / np.sqrt(np.mean(raw * raw) + epsilon)


def queries_recurrent(
    states: Floats,
    user: Floats,
    mix: Floats,
    widen: Floats,
    widen_bias: Floats,
    narrow: Floats,
    narrow_bias: Floats,
    outer: Floats,
    epsilon: np.float32,
    queries: Floats,
) -> None:
    """`query_recurrent` for several states of one user, into `queries` (n, dim)."""
    weights = mix, widen, widen_bias, narrow, narrow_bias, outer, epsilon
    for state, query in zip(states, queries, strict=True):
        query_recurrent(state, user, *weights, query)


def add_time(user: Floats, table: Floats, gap: float, local: float, out: Floats) -> None:
    """Put U f_u + T into out (dim,); see `kernels.add_time`."""
    gaps, hours = table[1 : 1 + KNOTS], table[1 + KNOTS : 1 + KNOTS + HOURS]
    day = int(local // DAY) % DAYS
    out[:] = user + table[1 + KNOTS + HOURS + day] + _between(hours, local % DAY / HOUR)
    out += table[0] if gap < 0 else _between(gaps, min(np.log2(1 + gap) / PER_KNOT, KNOTS - 1))


def _between(rows: Floats, place: float) -> Floats:
    """Return what is between two rows; behind the last one comes the first."""
    row = int(place)
    one, next_one = rows[row], rows[(row + 1) % len(rows)]
    between: Floats = one + np.float32(place - row) * (next_one - one)
    return between


def fold_mean(state: Floats, items: Places, vectors: Floats) -> None:
    """Add the item vectors to state[:dim] and their number to state[dim]."""
    for item in items:
        state[:-1] += vectors[item]
    state[-1] += len(items)


def scores_dot(query: Floats, columns: Floats, biases: Floats, out: Floats) -> None:
    """s_i = q . v_i + b_i for all items into `out`; columns may have room for more items."""
    count = len(out)
    np.matmul(query[: len(columns)], columns[:, :count], out=out)
    out += biases[:count]


def scores_relu(
    query: Floats, readout: Floats, hidden: Floats, biases: Floats, out: Floats
) -> None:
    """s_i = w . relu(q + h_i) + b_i for all items into `out`."""
    out[:] = np.maximum(query + hidden, 0) @ readout + biases


def top_k(
    scores: Floats, seen: Places, mask: Mask, k: int, best_items: Places, best_scores: Floats
) -> int:
    """Find the k best items that are not in `seen` and pass the mask, best first, equal scores in
    item order; return how many there are. What is left out gets the score -inf.
    """
    scores[seen] = -np.inf
    if len(mask):
        scores[mask == 0] = -np.inf
    items = np.arange(len(scores))
    if k < len(scores) and len(scores) >= _FROM:
        items = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    order = items[np.argsort(-scores[items], kind="stable")[:k]]
    order = order[scores[order] > -np.inf]
    best_items[: len(order)], best_scores[: len(order)] = order, scores[order]
    return len(order)


def recommend_recurrent(
    state: Floats,
    user: Floats,
    mix: Floats,
    widen: Floats,
    widen_bias: Floats,
    narrow: Floats,
    narrow_bias: Floats,
    outer: Floats,
    epsilon: np.float32,
    columns: Floats,
    biases: Floats,
    seen: Places,
    mask: Mask,
    k: int,
    query: Floats,
    scores: Floats,
    best_items: Places,
    best_scores: Floats,
) -> int:
    """`query_recurrent`, `scores_dot` and `top_k`."""
    weights = mix, widen, widen_bias, narrow, narrow_bias, outer, epsilon
    query_recurrent(state, user, *weights, query[: len(outer)])
    scores_dot(query, columns, biases, scores)
    return top_k(scores, seen, mask, k, best_items, best_scores)


def recommend_with_neighbours(
    state: Floats,
    user: Floats,
    mix: Floats,
    widen: Floats,
    widen_bias: Floats,
    narrow: Floats,
    narrow_bias: Floats,
    outer: Floats,
    epsilon: np.float32,
    kept: int,
    neighbours: Places,
    values: NDArray[np.int8],
    units: Floats,
    ages: Floats,
    repeats: Floats,
    columns: Floats,
    biases: Floats,
    seen: Places,
    mask: Mask,
    k: int,
    query: Floats,
    scores: Floats,
    best_items: Places,
    best_scores: Floats,
) -> int:
    """`recommend_recurrent` with `add_neighbours` for the latest events of the state."""
    dim = len(outer)
    weights = mix, widen, widen_bias, narrow, narrow_bias, outer, epsilon
    query_recurrent(state, user, *weights, query[:dim])
    scores_dot(query, columns, biases, scores)
    latest = query[dim : dim + 2 * ages.shape[1]]
    visit, types = visit_in(user, dim, kept), len(ages) // 2
    read_latest(state[mix.shape[1] // dim + 1 :], kept, visit, types, latest)
    add_neighbours(latest, neighbours, values, units, ages, repeats, scores)
    return top_k(scores, seen, mask, k, best_items, best_scores)


def best_quantised(
    query: Floats,
    columns: NDArray[np.int8],
    scales: Floats,
    vectors: Floats,
    biases: Floats,
    seen: Places,
    mask: Mask,
    pool: int,
    sums: NDArray[np.int32],
    scores: Floats,
    best_items: Places,
    best_scores: Floats,
) -> int:
    """Find the best items. Numpy has no fast product of integers, so all are scored exactly."""
    return best_by_rows(query, vectors, biases, seen, mask, scores, best_items, best_scores)


def best_by_rows(
    query: Floats,
    vectors: Floats,
    biases: Floats,
    seen: Places,
    mask: Mask,
    scores: Floats,
    best_items: Places,
    best_scores: Floats,
) -> int:
    """Find the best items by q . v_i + b_i; as many as `best_items` holds or fewer, best first."""
    np.matmul(vectors, query, out=scores)
    scores += biases
    return top_k(scores, seen, mask, len(best_items), best_items, best_scores)


def rescore(
    query: Floats,
    vectors: Floats,
    biases: Floats,
    items: Places,
    best_items: Places,
    best_scores: Floats,
) -> int:
    """Find the best of `items` by q . v_i + b_i, equal scores in the order given."""
    scores = vectors[items] @ query + biases[items]
    count = top_k(scores, _NO_ITEMS, _NO_MASK, len(best_items), best_items, best_scores)
    best_items[:count] = items[best_items[:count]]
    return count


def best_of(
    query: Floats,
    vectors: Floats,
    biases: Floats,
    candidates: Places,
    few: int,
    seen: Places,
    mask: Mask,
    marked: Mask,
    best_items: Places,
    best_scores: Floats,
) -> tuple[int, int]:
    """`rescore` of those of `candidates` that are not in `seen` and pass the mask, each once; equal
    scores by item. Also returns how many of the first `few` candidates were not left out.
    """
    passing = ~np.isin(candidates, seen)
    if len(mask):
        passing &= mask[candidates] == 1
    left = np.unique(candidates[passing]).astype(np.int32)
    near = len(np.unique(candidates[:few][passing[:few]]))
    return rescore(query, vectors, biases, left, best_items, best_scores), near


def diversify(vectors: Floats, relevance: Floats, diversity: np.float32, chosen: Places) -> None:
    """Maximal marginal relevance: `chosen` (k,) gets rows of `vectors` (n, dim), n >= k."""
    unit = vectors / np.sqrt((vectors * vectors).sum(axis=1, keepdims=True) + np.float32(1e-12))
    closest = np.full(len(vectors), -1, np.float32)
    for place in range(len(chosen)):
        likeness = closest if place else np.float32(0)
        value = (1 - diversity) * relevance - diversity * likeness
        value[chosen[:place]] = -np.inf
        best = int(np.argmax(value))
        chosen[place] = best
        closest = np.maximum(closest, unit @ unit[best])
