"""One recommender in several threads, and after a fork: the answers of one thread, and never another user's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import pytest

from distilrec import load
from distilrec.engine.filters import Filter
from distilrec.engine.locks import fork_safe_lock
from distilrec.engine.stored import StoredRecommender
from distilrec.errors import StoreUnavailableError
from distilrec.stores.records import ItemRecord
from distilrec.stores.sqlite import SqliteStore
from tests import ROOT

pytestmark = pytest.mark.slow

THREADS = 8


@pytest.fixture(autouse=True)
def _switch_often():
    """Threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(work, threads=THREADS):
    """Runs work(number) in threads that begin at the same time, and raises what they raise."""
    gate = threading.Barrier(threads)

    def begin(number):
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(begin, range(threads)))


def test_the_same_questions_from_many_threads_have_the_answers_of_one(bundle):
    recommender = load(bundle)
    for n in range(4_000):  # a long scan, which lets other threads in
        recommender.add_item(n, {"price": n % 9})
    users = [f"u{n}" for n in range(60)] + ["nobody"]
    some = recommender.item_ids[:7]

    def questions(user):
        yield recommender.recommend(user)
        yield recommender.recommend(user, k=3, diversity=0.5, where=Filter(deny=tuple(some[:3])))
        yield recommender.recommend(user, some)
        yield recommender.explain(user, some[0])
        yield recommender.past(user, 99)

    right = {user: list(questions(user)) for user in users}
    rounds = together(
        lambda number: [(user, list(questions(user))) for user in users[number:] + users[:number]]
    )
    assert [user for answers in rounds for user, answer in answers if answer != right[user]] == []


def test_every_method_at_once_ends_as_it_does_in_one_thread(bundle):
    """Each thread has users and items of its own, so that the outcome does not depend on the order."""
    shared, alone = load(bundle), load(bundle)
    items = alone.item_ids[:12]

    def work(recommender, number):
        user = f"thread-{number}"
        answers = []
        for n in range(12):
            recommender.update(
                [{"user_id": user, "item_id": items[(n + number) % 12], "event_type": "buy"}] * 2
            )
            recommender.set_user(user, {"age": 20 + n, "country": "fr"})
            answers.append(recommender.recommend(user, items))
            answers.append(recommender.explain(user, items[number]))
            answers.append(recommender.recommend(f"u{number * 5 + n % 5}", items))
            own = f"item-{number}-{n}"
            recommender.put_item(ItemRecord(own, own.title(), {"price": float(n)}))
            answers.append(recommender.recommend(user, [own, items[0]]))
            answers.append(
                (
                    recommender.title(own),
                    recommender.item(own).attributes,
                    recommender.search(own)[0].item_id,
                )
            )
            recommender.put_item(ItemRecord(own, available=n % 2 == 0))
            answers.append(own in [a.item_id for a in recommender.recommend(user, k=200)])
            (
                recommender.some_users(50),
                recommender.item_ids,
                recommender.attributes,
                recommender.users.recent(9),
            )
            recommender.forget(f"u{number}")
        return answers

    expected = [work(alone, number) for number in range(THREADS)]
    assert together(lambda number: work(shared, number)) == expected
    for number in range(THREADS):
        assert shared.recommend(f"thread-{number}", items) == alone.recommend(
            f"thread-{number}", items
        )
    assert sorted(shared.item_ids) == sorted(alone.item_ids)
    held = [shared.users.peek(user) for user in shared.users.recent(999)]
    assert shared.users.nbytes == sum(user.nbytes for user in held)


def test_a_stored_recommender_reads_what_its_thread_wrote(bundle, tmp_path):
    """All threads write events of one user too, of whom none may get lost; others push users out of memory meanwhile."""
    store = SqliteStore(tmp_path / "store.db")
    stored, alone = StoredRecommender(load(bundle, max_users=6), store), load(bundle)
    items = alone.item_ids
    number_of = count()
    seen_by_all: set[str] = set()

    def work(number):
        own = f"thread-{number}"
        for n in range(10):
            item = items[(number + 3 * n) % len(items)]
            stored.update(
                [
                    {"user_id": own, "item_id": item},
                    {"user_id": "all", "item_id": items[next(number_of) % 40]},
                ]
            )
            assert item not in [a.item_id for a in stored.recommend(own, k=200)]
            stored.recommend(f"u{(number * 10 + n) % 60}")
        return own

    for own in together(work):
        number = int(own.removeprefix("thread-"))
        alone.update(
            {"user_id": own, "item_id": items[(number + 3 * n) % len(items)]} for n in range(10)
        )
        assert stored.recommend(own) == alone.recommend(own)
    seen_by_all.update(items[n % 40] for n in range(80))
    assert seen_by_all.isdisjoint(a.item_id for a in stored.recommend("all", k=200))
    assert stored.recommend("all") == StoredRecommender(load(bundle), store).recommend("all")
    store.close()


class Slow(SqliteStore):
    """Gives other threads time between its reading and what is done with the answer."""

    read_once, go_on = threading.Event(), threading.Event()

    def read(self, asked):
        records = super().read(asked)
        self.read_once.set()
        self.go_on.wait(
            timeout=0.5
        )  # the other thread must wait for this one: then nobody says go on
        return records


def test_an_event_stored_while_its_user_is_read_is_not_forgotten(bundle, tmp_path):
    store = Slow(tmp_path / "store.db")
    stored = StoredRecommender(load(bundle), store)
    asking = threading.Thread(target=stored.recommend, args=("u1",))
    asking.start()
    assert store.read_once.wait(60)
    stored.update([{"user_id": "u1", "item_id": "i39"}])
    store.go_on.set()
    asking.join()
    assert stored.recommender.past("u1", 1) == ["i39"]
    store.close()


def in_child(work):
    """Runs work() in a forked process and returns what it says; a child that hangs is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, work().encode())
        finally:
            os._exit(0)
    os.close(writing)
    watch = threading.Timer(60, os.kill, (child, 9))
    watch.start()
    with os.fdopen(reading, "rb") as said:
        answer = said.read().decode()
    watch.cancel()
    os.waitpid(child, 0)
    return answer


FORK = """
import os, sys, threading
import distilrec
from distilrec.engine.stored import StoredRecommender
from distilrec.errors import DistilrecError
from distilrec.stores.sqlite import SqliteStore
sys.path.insert(0, sys.argv[3])
from tests.engine.test_threads import in_child

sys.setswitchinterval(1e-6)
recommender = distilrec.load(sys.argv[1])  # before the fork, as servers with preloading do
stored = StoredRecommender(distilrec.load(sys.argv[1]), SqliteStore(sys.argv[2]))
stored.recommend("u1")
items = recommender.item_ids[:10]
right = repr([recommender.recommend("u%d" % n) for n in range(20)])
done = threading.Event()

def keep_busy(number):
    while not done.is_set():
        recommender.update([{"user_id": "busy %d" % number, "item_id": items[number]}])
        recommender.explain("u3", items[number])
        stored.update([{"user_id": "busy", "item_id": items[number]}])

def answers():
    recommender.update([{"user_id": "of the child", "item_id": items[0]}])
    return repr([recommender.recommend("u%d" % n) for n in range(20)])

def refused():
    said = []
    for call in (
        lambda: stored.recommend("u1"),
        lambda: stored.recommend("u2"),
        lambda: stored.update([{"user_id": "u1", "item_id": items[0]}]),
        lambda: SqliteStore(sys.argv[2]),
        stored.store.close,
    ):
        try:
            call()
            said.append("nothing")
        except DistilrecError as error:
            said.append(error.code + " " + error.message)
    return "\\n".join(said)

threads = [threading.Thread(target=keep_busy, args=(n,)) for n in range(3)]
for thread in threads:
    thread.start()
children = [in_child(answers) == right for _ in range(20)]
told = in_child(refused)
done.set()
for thread in threads:
    thread.join()
assert all(children), children
assert not recommender.knows_user("of the child")
before = stored.recommend("u1")
assert stored.update([{"user_id": "u1", "item_id": before[0].item_id}]) == [True]  # the parent goes on
assert stored.recommend("u1") != before
print(told)
"""


def test_forked_processes_answer_and_do_not_touch_a_store_opened_before(bundle, tmp_path):
    """The fork happens while other threads hold every lock that there is."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, bundle, tmp_path / "store.db", ROOT],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    remembered, read, written, opened, closed = run.stdout.splitlines()
    for line in (remembered, read, written):
        assert line.startswith("store_unavailable the store ")
        assert "was opened before this process was forked" in line
    assert "is in use by another process" in opened
    assert closed == "nothing"


def test_a_fork_waits_for_the_thread_that_holds_a_lock():
    lock, value = fork_safe_lock(), ["whole"]
    taken, go_on = threading.Event(), threading.Event()

    def change():
        with lock:
            value[0] = "half"
            taken.set()
            go_on.wait()
            value[0] = "whole again"

    def from_the_child():
        free = lock.acquire(timeout=5)
        return f"{value[0]}, {'free' if free else 'locked'}"

    thread = threading.Thread(target=change)
    thread.start()
    taken.wait()
    threading.Timer(0.1, go_on.set).start()
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(DeprecationWarning)  # of Python 3.12 and later: this process has threads
        assert in_child(from_the_child) == "whole again, free"
    thread.join()


def test_a_store_says_where_it_belongs(tmp_path):
    store = SqliteStore(tmp_path / "store.db")

    def read():
        try:
            store.items()
        except StoreUnavailableError as error:
            return error.fix
        return "read"

    assert "open the store after the fork" in in_child(read)
    assert store.items() == ([], 0)
    store.close()
