"""Lists under rules, from students of each kind."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilrec import load
from distilrec.engine import (
    Boost,
    Condition,
    Filter,
    Limit,
    Newness,
    Pin,
    Requirement,
    Rules,
    StoredRecommender,
    Tiredness,
    read_rules,
)
from distilrec.engine.groups import Groups
from distilrec.errors import ConfigError, FileMissingError, InvalidIdError
from distilrec.features.attributes import collect_attributes
from distilrec.stores import open_store
from distilrec.stores.records import ItemRecord

pytestmark = pytest.mark.slow

CHEAP = Filter(attributes={"price": Condition(max=3.0)})
FIRST_GENRE = Filter(attributes={"genres": Condition(any_of=("g0",))})


@pytest.fixture(params=["numba", "numpy"])
def recommender(request, folder):
    return load(folder, runtime=request.param)


def ids(found):
    return [one.item_id for one in found]


def of(recommender, item, name):
    return recommender.item(item).attributes.get(name)


def test_no_rules_change_nothing(recommender):
    plain = recommender.recommend("u1", k=7)
    found = recommender.arrange("u1", Rules(), 7)
    assert ids(found.items) == ids(plain) and not found.moved and not found.problems
    assert [one.score for one in found.items] == pytest.approx(
        [one.score for one in plain], abs=1e-5
    )
    for options in ({"diversity": 0.6}, {"where": CHEAP}, {"exclude_seen": False}, {"k": 99}):
        plain = recommender.recommend("u2", **options)
        assert ids(recommender.arrange("u2", Rules(), **options).items) == ids(plain)
    session = recommender.session(["i1", "i5"])
    assert ids(recommender.arrange(session, Rules()).items) == ids(recommender.recommend(session))


def test_boosts_are_exact_over_the_whole_catalogue(recommender):
    rules = Rules(
        boost=(
            Boost(FIRST_GENRE, weight=3.0, name="first"),
            Boost(CHEAP, weight=0.2),
        )
    )
    everything = recommender.recommend("u1", k=99)
    added = {
        item: math.log(3) * ("g0" in of(recommender, item, "genres"))
        + math.log(0.2) * (of(recommender, item, "price") <= 3)
        for item, _ in everything
    }
    best = sorted(everything, key=lambda one: -(one.score + added[one.item_id]))
    found = recommender.arrange("u1", rules, 6)
    assert ids(found.items) == ids(best)[:6]
    scores = dict(everything)
    assert dict(found.items) == pytest.approx(
        {item: scores[item] for item in ids(found.items)}, abs=1e-5
    )
    before = {item: rank for rank, item in enumerate(ids(everything), 1)}
    for move in found.moved:
        assert move.before == before[move.item_id]
        up = move.rank is not None and move.rank < move.before
        assert (move.rule == "first") == up
        assert added[move.item_id] and (
            move.rank is None or ids(found.items)[move.rank - 1] == move.item_id
        )
    assert {move.rule for move in found.moved} == {"first", "boost 2"}


@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_limits_by_category_and_by_number(recommender, diversity):
    found = recommender.arrange(
        "u1", Rules(limit=(Limit(2, attribute="genres"),)), 6, diversity=diversity
    )
    counts = {}
    for item, _ in found.items:
        for genre in of(recommender, item, "genres"):
            counts[genre] = counts.get(genre, 0) + 1
    assert max(counts.values()) == 2
    plain = ids(recommender.recommend("u1", k=6, diversity=diversity))
    left_out = {move.item_id: move for move in found.moved}
    assert set(plain) - set(ids(found.items)) == set(left_out)
    for item, move in left_out.items():
        assert (move.rule, move.before, move.rank) == ("limit 1", plain.index(item) + 1, None)
    few = recommender.arrange(
        "u1", Rules(limit=(Limit(1, where=CHEAP), Limit(1, attribute="price"))), 99
    )
    assert sum(of(recommender, item, "price") <= 3 for item in ids(few.items)) == 1
    assert len(few.items) > 6


def test_pins_and_whom_they_are_not_shown(recommender):
    plain = ids(recommender.recommend("u1", k=99))
    had = recommender.past("u1", 1)[0]
    last, other = plain[-1], plain[-2]
    rules = Rules(
        pin=(
            Pin(last, 2, name="ad"),
            Pin(other, 1),
            Pin(had, 3),
            Pin("nothing", 4),
            Pin(plain[0], 40),
        )
    )
    found = recommender.arrange("u1", rules, 5)
    assert ids(found.items) == [other, last, *plain[:3]]
    assert found.moved == [
        ("pin 2", other, None, 1, ""),
        ("ad", last, None, 2, ""),
        ("pin 3", had, None, None, "seen"),
        ("pin 4", "nothing", None, None, "unknown"),
    ] or [move.before for move in found.moved[:2]] == [len(plain) - 1, len(plain)]
    again = recommender.arrange("u1", Rules(pin=(Pin(had, 3, seen=True),)), 5)
    assert ids(again.items) == [*plain[:2], had, *plain[2:4]]
    expensive = Filter(attributes={"price": Condition(min=of(recommender, last, "price") + 0.001)})
    refused = recommender.arrange("u1", Rules(pin=(Pin(last, 1),)), 5, where=expensive)
    assert last not in ids(refused.items) and refused.moved[0].reason == "filtered"
    recommender.put_item(ItemRecord(last, available=False))
    refused = recommender.arrange("u1", Rules(pin=(Pin(last, 1),)), 5)
    assert ids(refused.items) == plain[:5] and refused.moved[0].reason == "not available"
    recommender.put_item(ItemRecord(last, removed=True))
    refused = recommender.arrange("u1", Rules(pin=(Pin(last, 1),)), 5)
    assert ids(refused.items) == plain[:5] and refused.moved[0].reason == "unknown"


def test_at_least_one_new_item(recommender):
    plain = recommender.recommend("u1", k=99)
    wanted = [item for item in ids(plain)[5:] if of(recommender, item, "price") > 6][:2]
    dear = Filter(attributes={"price": Condition(min=6.0)})
    rules = Rules(
        limit=(Limit(1, where=dear),), at_least=(Requirement(1, where=dear, name="dear"),)
    )
    found = recommender.arrange("u1", rules, 5)
    assert sum(of(recommender, item, "price") > 6 for item in ids(found.items)) == 1
    new = Rules(at_least=(Requirement(2, new=Newness()),))
    assert ids(recommender.arrange("u1", new, 5).items) == ids(plain)[:5]  # there are none
    recommender.add_item("n1", {"genres": ["g0"], "price": 5.0})
    recommender.add_item("n2", {"genres": ["g1"], "price": 5.0})
    found = recommender.arrange("u1", new, 5)
    assert {"n1", "n2"} <= set(ids(found.items)) and len(found.items) == 5
    now = time.time()
    recommender.put_item(ItemRecord("n1", attributes={"since": now - 86_400 * 3}))
    recommender.put_item(ItemRecord(wanted[0], attributes={"since": now + 86_400 * 3}))
    since = Rules(at_least=(Requirement(1, new=Newness("since", days=4)),))
    assert "n1" in ids(recommender.arrange("u1", since, 5).items)
    week = recommender.arrange("u1", since, 5, now=now + 86_400 / 300).items
    assert "n1" in ids(week)
    old = Rules(at_least=(Requirement(1, new=Newness("since", days=2)),))
    assert ids(recommender.arrange("u1", old, 5).items) == ids(recommender.recommend("u1", k=5))


def test_items_that_were_shown_lately_are_left_out_or_sink(recommender):
    plain = recommender.recommend("u1", k=99)
    names = ids(plain)
    shown = {names[0]: 3, names[1]: 2, names[2]: 9, "nothing": 9}
    found = recommender.arrange("u1", Rules(tired=Tiredness()), 5, impressions=shown)
    assert ids(found.items) == [names[1], *names[3:7]]
    assert [(move.rule, move.item_id, move.before, move.rank) for move in found.moved] == [
        ("tired", names[0], 1, None),
        ("tired", names[2], 3, None),
    ]
    rules = Rules(tired=Tiredness(impressions=2, weight=0.1, name="seen too often"))
    sunk = recommender.arrange("u1", rules, 99, impressions=shown)
    added = {item: math.log(0.1) for item in names[:3]}
    best = sorted(plain, key=lambda one: -(one.score + added.get(one.item_id, 0)))
    assert ids(sunk.items) == ids(best)
    assert {move.item_id for move in sunk.moved} <= set(names[:3])
    pinned = Rules(tired=Tiredness(), pin=(Pin(names[0], 2),))
    assert ids(recommender.arrange("u1", pinned, 2, impressions=shown).items) == names[1::-1]
    for nothing in ({}, None, {names[0]: 2}):
        assert recommender.arrange(
            "u1", Rules(tired=Tiredness()), 5, impressions=nothing
        ).items == (recommender.arrange("u1", Rules(), 5).items)


def test_impressions_are_in_no_state(recommender):
    before = recommender.recommend("u2")
    done = recommender.update(
        [{"user_id": "u2", "item_id": item, "event_type": "impression"} for item in ("i1", "zz")]
    )
    assert done == (0, 0) and recommender.recommend("u2") == before
    visit = recommender.session(["i1", {"item_id": "i2", "event_type": "impression"}])
    assert recommender.recommend(visit) == recommender.recommend(recommender.session(["i1"]))


def test_pages_do_not_overlap_and_go_on(recommender):
    rules = Rules(pin=(Pin("i20", 2), Pin("i21", 7)), limit=(Limit(3, attribute="genres"),))
    pages, shown = [], []
    for _ in range(4):
        page = recommender.arrange("stranger", rules, 5, shown=shown)
        pages.append(ids(page.items))
        shown += ids(page.items)
        recommender.update([{"user_id": "stranger", "item_id": shown[0]}])  # the list moves
    assert len(set(shown)) == len(shown) == 20
    assert pages[0][1] == "i20" and pages[1][1] == "i21"
    third = recommender.arrange("stranger", rules, 5, shown=pages[0])
    assert ("pin 2", 7) in [(move.rule, move.rank) for move in third.moved]
    assert recommender.arrange("stranger", rules, 99, shown=recommender.item_ids).items == []


options = st.fixed_dictionaries(
    {
        "k": st.integers(1, 12),
        "exclude_seen": st.booleans(),
        "diversity": st.sampled_from([0.0, 0.4]),
        "where": st.sampled_from([None, CHEAP, Filter(deny=("i1", "i2", "i3"))]),
        "shown": st.sampled_from([(), ("i4", "i7")]),
    }
)
conditions = st.sampled_from([CHEAP, FIRST_GENRE, Filter(deny=("i1", "i5")), Filter(allow=("i9",))])
some_rules = st.builds(
    Rules,
    pin=st.dictionaries(st.integers(1, 9), st.integers(0, 44), max_size=3).map(
        lambda slots: tuple(
            Pin(f"i{item}", slot)
            for item, slot in {item: slot for slot, item in slots.items()}.items()
        )
    ),
    boost=st.lists(st.builds(Boost, conditions, st.sampled_from([0.1, 0.5, 4.0])), max_size=2).map(tuple),
    limit=st.lists(
        st.builds(Limit, st.integers(1, 3), st.sampled_from(["genres", "price"]), st.none() | conditions),
        max_size=2,
    ).map(tuple),
    at_least=st.lists(st.builds(Requirement, st.integers(1, 3), conditions), max_size=2).map(tuple),
    filter=st.none() | conditions,
)  # fmt: skip


@pytest.fixture(scope="module")
def busy(folder):
    """A recommender some of whose items cannot be had."""
    made = load(folder, runtime="numpy")
    made.put_item(ItemRecord("i6", available=False))
    made.put_item(ItemRecord("i8", removed=True))
    made.add_item("new", {"genres": ["g0"], "price": 1.0})
    return made


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(rules=some_rules, asked=options)
def test_what_holds_whatever_the_rules(busy, rules, asked):
    found = busy.arrange("u1", rules, **asked)
    listed = ids(found.items)
    assert len(set(listed)) == len(listed) <= asked["k"]
    assert not {"i6", "i8", *asked["shown"]} & set(listed)
    allowed = set(
        ids(busy.recommend("u1", k=99, exclude_seen=asked["exclude_seen"], where=asked["where"]))
    )
    assert set(listed) <= allowed
    for limit in rules.limit:
        counts = {}
        for item in listed:
            values = of(busy, item, limit.attribute)
            for value in values if isinstance(values, list) else [values]:
                counts.setdefault(value, []).append(item)
        pinned = {str(pin.item_id) for pin in rules.pin}
        if limit.where is None:
            for members in counts.values():
                assert len(members) <= max(limit.at_most, len(pinned & set(members)))
    for move in found.moved:
        if move.rank is not None:
            assert listed[move.rank - 1 - len(asked["shown"])] == move.item_id
        else:
            assert move.item_id not in listed


def test_rules_of_a_catalogue_that_lacks_an_attribute(bundle):
    recommender = load(bundle)
    rules = Rules(
        boost=(Boost(Filter(attributes={"colour": Condition()}), 2.0),),
        limit=(Limit(1, attribute="colour", name="a colour each"), Limit(1, attribute="genres")),
        at_least=(Requirement(new=Newness("genres")),),
        filter=Filter(attributes={"price": Condition(any_of=("x",))}),
        pin=(Pin("nothing", 1),),
    )
    with pytest.raises(ConfigError, match="rule 'filter': attribute 'price' is numeric"):
        recommender.arrange("u1", rules)
    found = recommender.arrange("u1", rules, 3, lenient=True)
    assert [problem.message.split(":")[0] for problem in found.problems] == [
        "rule 'filter'", "rule 'boost 1'", "rule 'a colour each'", "rule 'at_least 1'"
    ]  # fmt: skip
    same = recommender.arrange("u1", Rules(limit=rules.limit[1:]), 3)
    assert found.items == same.items
    assert [str(problem).split(":")[0] for problem in recommender.check_rules(rules)][4:] == [
        "rule 'pin 1'"
    ]
    for wrong, error, words in (
        ({"k": 0}, ConfigError, "k is 0"),
        ({"diversity": 2}, ConfigError, "diversity is 2"),
        ({"shown": "i1"}, InvalidIdError, "shown is 'i1', not a list"),
        ({"shown": [""]}, InvalidIdError, "the shown '' is empty"),
    ):
        with pytest.raises(error, match=words):
            recommender.arrange("u1", Rules(), **wrong)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Pin("i1", 0), "slot is 0"),
        (lambda: Boost(CHEAP, 0.0), "weight is 0"),
        (lambda: Limit(2), "neither `attribute` nor `where`"),
        (lambda: Requirement(2), "neither `where` nor `new`"),
        (lambda: Newness(days=-1), "days is -1"),
        (lambda: Tiredness(weight=1.0), "weight is 1"),
        (lambda: Tiredness(hours=721), "hours is 721"),
        (lambda: Tiredness(impressions=0), "impressions is 0"),
        (lambda: Rules(pin=(Pin("i1", 1), Pin("i2", 1))), "two rules of `pin` have the slot 1"),
        (lambda: Rules(pin=(Pin(7, 1), Pin("7", 2))), "two rules of `pin` have the item '7'"),
    ],
)
def test_rules_that_cannot_be(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_file_of_rules(tmp_path):
    file = tmp_path / "rules.toml"
    with pytest.raises(FileMissingError):
        read_rules(file)
    file.write_text(
        '[placements.home]\npin = [{item_id = 7, slot = 1}]\n[[placements.home.limit]]\nat_most = 2\nattribute = "genres"\n'
    )
    rules = read_rules(file)["home"]
    assert rules == Rules(pin=(Pin(7, 1),), limit=(Limit(2, "genres"),))
    for text, words in (
        ("[placements.home]\npins = []", "did you mean `pin`"),
        ("[placements.home]\nboost = [{weight = 2}]", "no `where`"),
        ("[placements.home]\nlimit = [{at_most = 2}]", "neither `attribute` nor `where`"),
        ("[home]", "no key `home`"),
        ("[placements.home]\npin = [{item_id = 7, slot = 0}]", "slot"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as problem:
            read_rules(file)
        assert words in str(problem.value) and "rules.toml" in str(problem.value), words


def test_over_a_store(bundle, tmp_path):
    stored = StoredRecommender(load(bundle), open_store(f"sqlite:///{tmp_path / 'store.db'}"))
    first = ids(stored.arrange("buyer", Rules(), 3).items)
    stored.update([{"user_id": "buyer", "item_id": first[0]}])
    found = stored.arrange("buyer", Rules(pin=(Pin(first[0], 1),)), 3)
    assert first[0] not in ids(found.items) and found.moved[0].reason == "seen"
    tired = Rules(tired=Tiredness(impressions=2, answers=True))
    lists = [ids(stored.arrange("visitor", tired, 3).items) for _ in range(4)]
    assert lists[0] == lists[1] and lists[2] == lists[3] and not set(lists[0]) & set(lists[2])
    events = [
        {"user_id": "other", "item_id": first[0], "event_type": "impression", "event_id": "1"}
    ]
    assert stored.update(events) == [True] and stored.update(events) == [False]
    once = Rules(tired=Tiredness(impressions=1))
    assert first[0] not in ids(stored.arrange("other", once, 3).items)
    assert stored.arrange("other", once, 3, now=time.time() - 200).items  # `now` in the past
    stored.merge("other", "visitor")
    assert first[0] not in ids(stored.arrange("visitor", once, 3).items)
    stored.erase("visitor")
    assert ids(stored.arrange("visitor", once, 3).items)[0] == first[0]
    stored.store.close()


values = st.lists(st.none() | st.lists(st.sampled_from("abc"), max_size=2), max_size=9)


@given(values=values, numbers=st.lists(st.none() | st.sampled_from([1.0, 2.5]), max_size=9))
def test_groups_are_the_items_of_each_category(values, numbers):
    for kind, column in (("categorical", values), ("numeric", numbers)):
        attributes = collect_attributes({"x": (kind, column)}, len(column))
        groups = Groups(attributes, "x")
        for item in range(len(column)):
            for other in range(len(column)):
                both = [column[item] or [], column[other] or []]
                sets = [set(one if isinstance(one, list) else [one]) for one in both]
                shared = set(groups.of(item)) & set(groups.of(other))
                assert bool(shared) == bool(sets[0] & sets[1])
            for category in groups.of(item):
                assert item in groups.members(category)
