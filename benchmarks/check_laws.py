"""Which laws of a loader hold, here and elsewhere: resume, ranks, each window once, lengths, shuffle. See README.md."""

import argparse
import atexit
import contextlib
import importlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from peers.laws import NotOfferedError
from report import RESULTS, bar, environment, publish

OURS = "ours"
SYSTEMS = (OURS, "guide_loom", "lit_data", "mosaic", "lance_db", "tok_bin", "torch_data", "zephon_rows")

# Windows of all ranks in a step, which every world size divides.
GLOBAL_BATCH = 36
# Remainders 0, 1 and GLOBAL_BATCH - 1.
COUNTS = (720, 721, 755)
STEPS = COUNTS[0] // GLOBAL_BATCH
# Windows per file, where there are files. The second is what 64 MB hold of windows of 1,024 + 1 tokens of uint16.
PER_FILE, MANY_PER_FILE = 60, 1 << 15
MANY, MANY_BATCH = 100_000, 28 * GLOBAL_BATCH
# As many as the memory of an order shows itself with, and what a window of it may cost: the least that numbers take.
MOST, MOST_BYTES = 500_000, 4
EPOCHS = 3
# Where states are saved: the first steps, the end of an epoch and around it, amid the second and the third.
AMID, AMID_THIRD = 11, 2 * STEPS + 8
SAVED = (1, 8, AMID, STEPS - 1, STEPS, STEPS + 6, AMID_THIRD)
SAVED_BY_WORKERS = (AMID, STEPS, AMID_THIRD)
# Orders are unlike if fewer windows than this share are at the same place; by chance it is one window.
UNLIKE = 0.1

LAWS = {
    "resume": "1: exact resume",
    "topology": "2: other ranks, workers",
    "batch": "2: other batch size",
    "once": "4: each window once",
    "equal": "5: equal lengths",
    "shuffle": "15: shuffle",
    "memory": "bounded memory",
}


def plan(workers):
    """Say what is run: a dict of names and runs. A run whose `source` is another resumes from a state of that."""
    runs = {}

    def add(name, law, ranks, num_workers, **more):
        if num_workers in workers:
            run = {"law": law, "world_size": ranks, "workers": num_workers, "batch_size": GLOBAL_BATCH // ranks}
            rest = {
                "count": COUNTS[0],
                "seed": 1,
                "epochs": 1,
                "steps": None,
                "save": (),
                "source": None,
                "alone": False,
            }
            runs[name] = {**run, **rest, **more}

    def resume(name, law, source, at, ranks, num_workers, **more):
        if source in runs:
            add(name, law, ranks, num_workers, source=(source, at), **more)

    for ranks, num_workers in ((1, 0), (1, 2), (2, 0), (2, 2), (3, 0)):
        add(f"whole, {setting(ranks, num_workers)}", None, ranks, num_workers, epochs=EPOCHS, save=SAVED)
    for ranks, num_workers in ((1, 0), (1, 2), (2, 0), (2, 2)):
        words = setting(ranks, num_workers)
        for at in SAVED_BY_WORKERS if num_workers else SAVED:
            steps = min(STEPS + 5, EPOCHS * STEPS - at)
            name = f"{words}, after batch {at}"
            resume(name, "resume", f"whole, {words}", at, ranks, num_workers, epochs=None, steps=steps)
    # Amid an epoch; after an even number of batches, where two workers have given equally many.
    for before, after in (
        ((1, 0), (2, 0)),
        ((2, 0), (1, 0)),
        ((2, 0), (3, 0)),
        ((3, 0), (2, 0)),
        ((1, 0), (1, 2)),
        ((2, 2), (2, 0)),
        ((2, 2), (1, 0)),
    ):
        at = 8 if before[1] else AMID
        resume(f"{setting(*before)} to {setting(*after)}", "topology", f"whole, {setting(*before)}", at, *after)
    for ranks, batch_size in ((1, 72), (2, 36), (2, 12)):
        name = f"{setting(ranks, 0)}, batches of {GLOBAL_BATCH // ranks} to {batch_size}"
        resume(name, "batch", f"whole, {setting(ranks, 0)}", AMID, ranks, 0, batch_size=batch_size)
    for ranks in (1, 2, 3):
        for num_workers in (0, 1, 3):
            for count in COUNTS if num_workers == 0 else COUNTS[-1:]:
                add(f"{setting(ranks, num_workers)}, {count} windows", "once", ranks, num_workers, count=count)
    add("seed 2", None, 1, 0, seed=2, epochs=2)
    add("many", None, 1, 0, count=MANY, batch_size=MANY_BATCH)
    for count in (MANY, MOST):
        add(f"first batch of {count:,}", None, 1, 0, count=count, batch_size=MANY_BATCH, steps=1, alone=True)
    return runs


def setting(ranks, workers):
    return plural(ranks, "rank") + (f" of {plural(workers, 'worker')}" if workers else "")


def plural(number, word):
    return f"{number} {word}{'' if number == 1 else 's'}"


# In the processes of the ranks.


def serve(system, run, folder, states):
    """Run a run on this rank: its epochs of batches of numbers, its states, and the length that it told."""
    peer = importlib.import_module(f"peers.laws.{system}")
    before = own_memory()
    length, epoch, save = peer.open_run(
        folder / str(run["count"]),
        run["batch_size"],
        workers=run["workers"],
        seed=run["seed"],
        rank=int(os.environ["RANK"]),
        world_size=run["world_size"],
        states=states,
    )
    epochs, saved, done, empty = [], {}, 0, 0
    # A run that resumes at the very end of an epoch may begin with an empty one.
    while len(epochs) != run["epochs"] and done != run["steps"] and empty < 2:
        batches = []
        for batch in epoch() if run["steps"] is None else islice(epoch(), run["steps"] - done):
            batches.append(batch)
            done += 1
            if done in run["save"]:
                try:
                    saved[done] = pickle.loads(pickle.dumps(save()))
                except NotOfferedError as error:
                    saved[done] = error
        empty = 0 if batches else empty + 1
        epochs.append(batches)
    return {"length": length, "epochs": epochs, "states": saved, "memory": own_memory() - before}


def own_memory():
    """Read how many bytes of memory this process has, without those of files that it maps; Linux only."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))


def serve_to_file(system, run, folder, states, file):
    try:
        result = serve(system, run, folder, states)
    except NotOfferedError as error:
        result = {"n.a.": str(error)}
    except Exception as error:
        traceback.print_exc()
        result = {"fail": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"}
    partial = file.with_name(f"{file.name} partial")
    partial.write_bytes(pickle.dumps(result))
    partial.rename(file)


def serve_and_leave(*args):
    serve_to_file(*args)
    # A forked process does not call these by itself; they remove shared memory.
    atexit._run_exitfuncs()


def be_rank(system, folder):
    """Serve this rank's part of the runs, each in a process of its own where the system can be forked."""
    peer = importlib.import_module(f"peers.laws.{system}")
    for name, run, states, port, seconds in pickle.loads((folder / "runs").read_bytes()):
        os.environ["MASTER_PORT"] = str(port)
        args = (system, run, folder, states, folder / f"{name}.{os.environ['RANK']}")
        if peer.FORKS:
            process = get_context("fork").Process(target=serve_and_leave, args=args)
            process.start()
            process.join(seconds)
            if process.is_alive():
                process.kill()
                process.join()
        else:
            serve_to_file(*args)


# In the process of a system.


def check(system, folder, seconds, only_memory):
    """Store, run all runs and judge them: what `found.json` gets."""
    try:
        peer = importlib.import_module(f"peers.laws.{system}")
    except ImportError as error:
        return {"missing": str(error)}
    for count in (MANY, MOST) if only_memory else (*COUNTS, MANY, MOST):
        (folder / str(count)).mkdir()
        peer.store(folder / str(count), count, MANY_PER_FILE if count >= MANY else PER_FILE)
    runs, results = plan(peer.WORKERS), {}
    # A process of its own each: what one has given back another has again.
    for name, run in runs.items():
        if run["alone"]:
            results.update(run_ranks(system, folder, 1, [(name, run, None)], seconds))
    told = {"name": peer.NAME, "package": peer.PACKAGE, "remarks": peer.REMARKS}
    if only_memory:
        return {**told, "found": {"memory": judge_memory(results)}}
    for resumes in (False, True):
        for world_size in (1, 2, 3):
            group = []
            for name, run in runs.items():
                if run["world_size"] == world_size and bool(run["source"]) == resumes and not run["alone"]:
                    states, why = states_of(run, results)
                    if why:
                        results[name] = [why]
                    else:
                        group.append((name, run, states))
            results.update(run_ranks(system, folder, world_size, group, seconds))
    found = judge(runs, results, peer.WRAPS)
    return {**told, "found": found}


def states_of(run, results):
    """Give the states that the ranks of its source saved, or why there are none."""
    if not run["source"]:
        return None, None
    source, at = run["source"]
    states = []
    for part in results[source]:
        state = part.get("states", {}).get(at)
        if isinstance(state, NotOfferedError):
            return None, {"n.a.": str(state)}
        if state is None:
            return None, {"fail": part.get("fail", "no state was saved")}
        states.append(state)
    return states, None


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def run_ranks(system, folder, world_size, runs, seconds):
    """Run some runs of one world size, and give the parts of all ranks: a dict of names and lists."""
    if not runs:
        return {}
    (folder / "runs").write_bytes(pickle.dumps([(*run, free_port(), seconds) for run in runs]))
    processes = []
    for rank in range(world_size):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "GLOBAL_RANK": rank, "NODE_RANK": 0}
        sizes = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "NNODES": 1, "OMP_NUM_THREADS": 1}
        told = {key: str(value) for key, value in {**ranks, **sizes}.items()}
        command = [sys.executable, __file__, "--rank-of", system, "--folder", str(folder)]
        # A process group of its own, so that its workers end with it.
        env = {**os.environ, **told, "MASTER_ADDR": "localhost"}
        processes.append(subprocess.Popen(command, env=env, start_new_session=True))
    deadline = time.monotonic() + seconds * len(runs)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(1.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    results = {}
    for name, _, _ in runs:
        files = [folder / f"{name}.{rank}" for rank in range(world_size)]
        results[name] = [
            pickle.loads(file.read_bytes()) if file.exists() else {"fail": "no answer in time"} for file in files
        ]
    return results


def broken(parts):
    """Give the verdict and the reason of parts that served nothing, or None."""
    return next(((key, part[key]) for key in ("fail", "n.a.") for part in parts if key in part), None)


def batches_of(part):
    return list(chain.from_iterable(part["epochs"]))


def windows_of(batches):
    return list(chain.from_iterable(batches))


def judge_resume(run, parts, results):
    """The batches after a resume are those of the whole run."""
    source, at = run["source"]
    for part, whole in zip(parts, results[source], strict=True):
        got, expected = batches_of(part), batches_of(whole)[at : at + run["steps"]]
        if got != expected:
            pairs = enumerate(zip(got, expected, strict=False), 1)
            first = next((i for i, (one, other) in pairs if one != other), min(len(got), len(expected)) + 1)
            return "fail", f"other batches from the {first}. on"
    return "pass", ""


def judge_once(run, parts, results, wraps):
    """All ranks serve each window once, also where others go on; what fills no batch of all workers may be left out."""
    windows = windows_of(chain.from_iterable(map(batches_of, parts)))
    before = 0
    if run["source"]:
        source, at = run["source"]
        before = at * GLOBAL_BATCH
        windows += windows_of(chain.from_iterable(batches_of(part)[:at] for part in results[source]))
    lost, repeated = run["count"] - len(set(windows)), len(windows) - len(set(windows))
    step = run["world_size"] * run["batch_size"]
    rest = (run["count"] - before) % (step * max(1, run["workers"]))
    words = [f"{plural(repeated, 'window')} repeated"] if repeated else []
    if lost > rest:
        words.append(f"{plural(lost, 'window')} lost")
    kept = lost <= rest and (not repeated or (wraps and repeated < step))
    return "pass" if kept else "fail", " and ".join(words)


def judge_equal(run, parts):
    """All ranks tell the same length, and serve exactly so many batches."""
    lengths, served = [part["length"] for part in parts], [len(batches_of(part)) for part in parts]
    if len(set(served)) > 1:
        return "fail", f"the ranks give {', '.join(map(str, served))} batches"
    if None in lengths:
        return "n.a.", "no len; the ranks give equally many batches"
    if lengths != served:
        return "fail", f"len is {', '.join(map(str, lengths))}, but {served[0]} batches come"
    return "pass", ""


def spearman(order):
    """Correlate the order of windows with their order in storage."""
    ranks = np.argsort(np.argsort(order))
    return abs(float(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1]))


def judge_shuffle(results):
    """Give the cases of the law of shuffles: no trace of storage, other orders, and resume amid the third epoch."""
    one = f"whole, {setting(1, 0)}"
    for name in ("many", one, "seed 2"):
        if why := broken(results[name]):
            return [("orders", *why)]
    many, few, other_seed = (
        [windows_of(epoch) for epoch in results[name][0]["epochs"]] for name in ("many", one, "seed 2")
    )
    rho = spearman(many[0])
    cases = [("order of storage", "pass" if rho < 0.02 else "fail", f"|Spearman| {rho:.3f} of {MANY:,} windows")]
    for what, first, second in (
        ("two epochs", few[0], few[1]),
        ("seed 1 in epoch 2, seed 2 in epoch 1", few[2], other_seed[1]),
    ):
        same = float(np.mean(np.equal(first, second))) if len(first) == len(second) else 0.0
        cases.append((what, "pass" if same < UNLIKE else "fail", f"{same:.0%} of the places are the same"))
    name = f"{setting(1, 0)}, after batch {AMID_THIRD}"
    run = {"source": (one, AMID_THIRD), "steps": EPOCHS * STEPS - AMID_THIRD}
    verdict = broken(results[name]) or judge_resume(run, results[name], results)
    return [*cases, ("resume amid the third epoch", *verdict)]


def judge_memory(results):
    """Give the case of the law of memory: what there is of it after the first batch does not grow with the windows."""
    case = f"{MANY:,} to {MOST:,} windows"
    few, most = (results[f"first batch of {count:,}"] for count in (MANY, MOST))
    if why := broken(few) or broken(most):
        return [(case, *why)]
    per_window = (most[0]["memory"] - few[0]["memory"]) / (MOST - MANY)
    return [(case, "pass" if per_window < MOST_BYTES else "fail", f"{max(per_window, 0):.0f} bytes a window")]


def judge(runs, results, wraps):
    """Give what was found: a dict of laws and lists of (case, verdict, why)."""
    found = {law: [] for law in LAWS}
    for name, run in runs.items():
        parts, law = results[name], run["law"]
        why = broken(parts)
        if law == "resume":
            found[law].append((name, *(why or judge_resume(run, parts, results))))
        elif law:
            found[law].append((name, *(why or judge_once(run, parts, results, wraps))))
        if law == "once":
            found["equal"].append((name, *(why or judge_equal(run, parts))))
    found["shuffle"] = judge_shuffle(results)
    found["memory"] = judge_memory(results)
    return found


# In the process that was started.


def ask(system, folder, seconds, only_memory, log):
    command = [sys.executable, __file__, "--system", system, "--folder", folder, "--seconds", str(seconds)]
    command += ["--only-memory"] * only_memory
    subprocess.run(command, stdout=log, stderr=log, check=False)
    file = Path(folder) / "found.json"
    return json.loads(file.read_text()) if file.exists() else {"missing": "its check broke off; --log FILE tells why"}


def verdict(cases):
    verdicts = [verdict for _, verdict, _ in cases]
    return "fail" if "fail" in verdicts else "pass" if "pass" in verdicts else "n.a."


def notes_of(answer):
    """Tell what did not pass, and what did with a remark: one note for each reason."""
    for law, cases in answer["found"].items():
        reasons = {}
        for case, verdict_, why in cases:
            if verdict_ != "pass" or (why and law not in ("shuffle", "memory")):
                reasons.setdefault((verdict_, why), []).append(case)
        for number, ((verdict_, why), named) in enumerate(reasons.items()):
            remark = f"; {answer['remarks'][law]}" if law in answer["remarks"] and not number else ""
            which = f"{len(named)} of {len(cases)} cases{', such as' if len(named) > 1 else ':'} {named[0]}"
            yield f"{answer['name']}, {LAWS[law]}: {verdict_}, {why} ({which}){remark}."


def kept(answers):
    """Add what the results have of other systems and laws, and tell when that was found: a dict of names and dates."""
    before = json.loads((RESULTS / "check_laws.json").read_text())
    dates = dict.fromkeys(before["found"], before["environment"]["date"]) | before.get("dates", {})
    asked = {answer["name"]: answer for answer in answers.values() if "found" in answer}
    for system in SYSTEMS:
        if system not in answers:
            peer = importlib.import_module(f"peers.laws.{system}")
            if peer.NAME in before["found"]:
                answers[system] = {"name": peer.NAME, "package": peer.PACKAGE, "remarks": peer.REMARKS, "found": {}}
                asked[peer.NAME] = answers[system]
    for name, answer in asked.items():
        found = {**before["found"].get(name, {}), **answer["found"]}
        if answer["found"].keys() == LAWS.keys():
            dates.pop(name, None)
        answer["found"] = {law: found[law] for law in LAWS if law in found}
    return {name: date for name, date in dates.items() if name in asked}


def tell(answers, dates, seconds):
    shown = {system: answer for system, answer in answers.items() if "found" in answer}
    packages = {system: answer["package"] for system, answer in shown.items()}
    env = environment([*packages.values(), "torch", "numpy", "pylance"])
    rows = []
    for system, answer in shown.items():
        version = env["packages"][packages[system]]
        found = answer["found"]
        rows.append([f"{answer['name']} {version}", *(verdict(found[law]) if law in found else None for law in LAWS)])
    bars = []
    if OURS in shown:
        kept = sum(verdict(cases) == "pass" for cases in shown[OURS]["found"].values())
        bars = [bar(f"laws kept by lightning-lance, all {len(LAWS)}", kept, len(LAWS))]
    notes = [
        f"{', '.join(map(str, COUNTS))} windows, {GLOBAL_BATCH} a step over all ranks, {EPOCHS} epochs; 1, 2 and 3 "
        "ranks, each a process, of 0, 1, 2 and 3 workers; lightning-lance has no workers, its batches come from a thread.",
        *chain.from_iterable(map(notes_of, shown.values())),
        *(f"{system}: left out, {answer['missing']}." for system, answer in answers.items() if "missing" in answer),
        *(f"{name}: found on {date}, but for bounded memory." for name, date in dates.items()),
        f"The whole run took {seconds:.0f} s.",
    ]
    data = {"environment": env, "dates": dates, "found": {answer["name"]: answer["found"] for answer in shown.values()}}
    publish("check_laws", "Laws of a loader", ["", *LAWS.values()], rows, bars, notes, data)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="which to check; all")
    parser.add_argument("--seconds", type=float, default=60, help="most that a run may take; 60")
    parser.add_argument("--keep", action="store_true", help="keep what the results have of others, and of other laws")
    parser.add_argument("--only-memory", action="store_true", help="check the law of memory alone; with --keep")
    parser.add_argument("--log", default=os.devnull, help="file for what the systems print; they are not heard")
    for hidden in ("--system", "--rank-of", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        be_rank(options.rank_of, Path(options.folder))
    elif options.system:
        found = check(options.system, Path(options.folder), options.seconds, options.only_memory)
        (Path(options.folder) / "found.json").write_text(json.dumps(found))
    else:
        began = time.monotonic()
        with Path(options.log).open("w") as log, tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
            folders = [Path(folder) / system for system in options.systems]
            for each in folders:
                each.mkdir()
            asked = {
                system: pool.submit(ask, system, str(each), options.seconds, options.only_memory, log)
                for system, each in zip(options.systems, folders, strict=True)
            }
            answers = {system: answer.result() for system, answer in asked.items()}
        dates = kept(answers) if options.keep else {}
        tell(dict(sorted(answers.items(), key=lambda item: SYSTEMS.index(item[0]))), dates, time.monotonic() - began)


if __name__ == "__main__":
    main()
