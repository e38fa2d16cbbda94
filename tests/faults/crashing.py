"""`make test-faults`: kill -9 of a server in the middle of mixed writes, again and again, on LMDB and on Redis.

KILLS: kills amid writes, per store. SEED: of all that is random; when a process is killed also depends on its speed.
STORE: lmdb or redis, otherwise both. PLANT: a bug of planted_server.py, to see that it is found.

A round: clients write, the server dies (now and then with Redis, now and then while it saves its caches), comes back,
and is asked for everything that it acknowledged. Then some more is written, questions are asked, it is killed without
anybody writing, comes back, and is asked for everything and the same questions again. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import grpc
from crash_checks import Inspection, answers, compare_answers, questions
from crash_model import KINDS, Findings, Model
from crash_server import STORES, CrashServer
from crash_traffic import GALLERY, CrashClient, Pool, Scene, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_bundle import Bundle

IMAGES, FEATURES = 300, 400
CALM_CALLS = 12
LONGEST_TRAFFIC_S = 0.8
SHOWN = 20


@dataclass(slots=True)
class Outcome:
    """What a run on one store came to."""

    store: str
    findings: Findings = field(default_factory=Findings)
    kills: int = 0
    quiet_kills: int = 0
    redis_kills: int = 0
    acknowledged: int = 0
    compared_answers: int = 0
    duration_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """Return the counts by name."""
        counts = {kind: float(self.findings.counts[kind]) for kind in KINDS}
        names = ("kills", "quiet_kills", "redis_kills", "acknowledged", "compared_answers")
        return {**{name: float(getattr(self, name)) for name in names}, **counts}


class CrashRun:
    """Rounds of kills on one store."""

    def __init__(self, server: CrashServer, bundle: Bundle, outcome: Outcome, seed: str, *, busy: bool) -> None:
        """`busy`: the server always saves its caches all the time, else in every other round."""
        self._server, self._outcome, self._seed, self._busy = server, outcome, seed, busy
        self._model = Model(IMAGES)
        self._pool = Pool(FEATURES, bundle.digest)

    def run(self, kills: int, say: Callable[[str], None], until_found: str) -> None:
        """Do so many rounds, or end sooner with the first finding of a kind."""
        began_s, told = time.monotonic(), 0
        self._start(0)
        self._server.api.create(GALLERY)
        for number in range(kills):
            going = self._finished(number)
            self._outcome.acknowledged = self._model.acknowledged
            self._outcome.redis_kills = self._server.redis_kills
            self._outcome.duration_s = time.monotonic() - began_s
            say(
                f"{self._outcome.store} round {number}: {self._model.acknowledged} acknowledged, "
                f"{len(list(self._model.present()))} images, {self._outcome.findings.counts.total()} findings"
            )
            texts = self._outcome.findings.texts[told:SHOWN]
            told += len(texts)
            for text in texts:
                say(f"{self._outcome.store}: {text}")
            # Of one that answers no more nothing can be asked.
            if not going or self._outcome.findings.counts[until_found]:
                return

    def _finished(self, number: int) -> bool:
        try:
            self._round(number)
        except grpc.RpcError as error:
            self._outcome.findings.add("refused", f"{self._seed}/{number}: {error}")
            return False
        return True

    @property
    def _scene(self) -> Scene:
        return Scene(api=self._server.api, model=self._model, pool=self._pool, findings=self._outcome.findings)

    def _start(self, number: int) -> None:
        self._server.start(busy=self._busy or number % 2 == 1)

    def _round(self, number: int) -> None:
        seed = f"{self._seed}/{number}"
        rng = Random(seed)
        if number % 4 == 2:
            # With caches saved at a moment that the kill leaves behind.
            self._server.stop()
            self._start(number)
        traffic = Traffic(self._scene, seed)
        traffic.start()
        time.sleep(rng.uniform(0.02, LONGEST_TRAFFIC_S))
        self._kill(number, rng)
        traffic.join()
        self._outcome.kills += 1
        self._start(number)
        Inspection(self._scene, f"{seed} after the kill", rng).run()
        self._quiet_kill(number, seed, rng)

    def _kill(self, number: int, rng: Random) -> None:
        if number % 5 == 4:
            self._server.begin_stop()
            time.sleep(rng.uniform(0, 0.2))
        if number % 3 == 1:
            self._server.kill_all(rng)
        else:
            self._server.kill()

    def _quiet_kill(self, number: int, seed: str, rng: Random) -> None:
        client = CrashClient(self._scene, 0, f"{seed}/calm")
        for _ in range(CALM_CALLS):
            client.write()
        Inspection(self._scene, f"{seed} before the quiet kill", rng).run()
        asked = questions(self._model, self._pool, rng)
        before = answers(self._scene, asked)
        if number % 6 == 3:
            self._server.kill_all(rng)
        else:
            self._server.kill()
        self._outcome.quiet_kills += 1
        self._start(number + 1)
        after = answers(self._scene, asked)
        compare_answers(self._outcome.findings, asked, before, after, f"{seed} quiet kill")
        self._outcome.compared_answers += len(after)
        Inspection(self._scene, f"{seed} after the quiet kill", rng).run()


def crash(
    store: str,
    folder: Path,
    bundle: Bundle,
    *,
    kills: int,
    seed: str = "0",
    plant: str = "",
    until_found: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Run the rounds on a new store in a folder, and return what came of it."""
    outcome = Outcome(store)
    with CrashServer(store, folder, bundle.path, plant=plant) as server:
        CrashRun(server, bundle, outcome, seed, busy=bool(plant)).run(kills, say, until_found)
    return outcome


def main() -> int:
    """Run as the environment says, all stores at once, report, and return the exit status."""
    from bench_features import sample_bundle  # noqa: PLC0415 - brings torch
    from report import write_report  # noqa: PLC0415

    kills, seed = int(os.environ.get("KILLS") or 100), os.environ.get("SEED") or "0"
    plant, stores = os.environ.get("PLANT", ""), [os.environ["STORE"]] if os.environ.get("STORE") else STORES
    bundle = sample_bundle()
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(lambda store: run_and_tell(store, bundle, kills, seed, plant), stores))
    details = {one.store: {**one.figures(), "duration_s": round(one.duration_s, 1)} for one in outcomes}
    totals = {name: sum(one.figures()[name] for one in outcomes) for name in outcomes[0].figures()}
    if plant:
        say(f"with {plant} in the server: {details}")
    else:
        write_report("faults", totals, {"seed": seed, **details}, f"make test-faults KILLS={kills} SEED={seed}")
    return 1 if any(one.findings.texts for one in outcomes) else 0


def run_and_tell(store: str, bundle: Bundle, kills: int, seed: str, plant: str) -> Outcome:
    """Run on a store in a new folder, and print what was found; the folder stays if something was."""
    folder = Path(tempfile.mkdtemp(prefix="crashing-"))
    say(f"{store}: KILLS={kills} SEED={seed} PLANT={plant} in {folder}")
    outcome = crash(store, folder, bundle, kills=kills, seed=seed, plant=plant, say=say)
    if plant or not outcome.findings.texts:
        shutil.rmtree(folder)
    return outcome


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
