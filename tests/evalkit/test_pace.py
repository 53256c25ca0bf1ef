"""How many requests go at once: the start, the doubling, the halving, and never one more than the limit."""

import asyncio
import random

from tunegate.evalkit.pace import FIRST, Pace


def test_it_doubles_until_the_first_fault_and_then_adds():
    assert Pace(8).limit == 8
    pace = Pace(1000)
    assert pace.limit == FIRST == 32
    for _ in range(32):
        pace.good()
    assert pace.limit == 64, "one round of good answers doubles it"
    for _ in range(2000):
        pace.good()
    assert pace.limit == 1000
    pace.bad(1)
    pace.bad(0)
    assert pace.limit == 500, "once for all that were under way"
    for _ in range(500):
        pace.good()
    assert 500.9 < pace.limit < 501.0, "a round of good answers adds one"


def crowd(pace, n, *, seed, cancel=0):
    """n requests of random length, some met by a fault, some cancelled: most at once, most over the limit of its time."""
    rng, state = random.Random(seed), {"now": 0, "most": 0, "over": 0, "done": 0}

    async def one():
        async with pace.slot() as number:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
            if number > pace._spared_until:
                state["over"] = max(state["over"], state["now"] - int(pace.limit))
            try:
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                state["done"] += 1
                pace.good() if rng.random() < 0.9 else pace.bad(number)
            finally:
                state["now"] -= 1

    async def go():
        tasks = [asyncio.create_task(one()) for _ in range(n)]
        for task in rng.sample(tasks, cancel):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)

    asyncio.run(go())
    return state


def test_nobody_slips_in_and_nobody_is_forgotten():
    """A place given to a waiter is taken at once: another request that comes before the waiter wakes must not get it."""
    for seed in range(20):
        pace = Pace(5)
        pace.bad, pace.good = lambda number: None, lambda: None
        assert crowd(pace, 60, seed=seed) == {"now": 0, "most": 5, "over": 0, "done": 60}
        assert crowd(Pace(40), 300, seed=seed)["done"] == 300
        cancelled = crowd(Pace(3), 60, seed=seed, cancel=20)
        assert cancelled["now"] == 0
        assert cancelled["done"] >= 40
