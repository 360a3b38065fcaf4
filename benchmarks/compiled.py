"""Measure runs that are one compiled program: steps a second, seeds in one program, seconds to compile.

    python benchmarks/compiled.py loops       # compiled against --loop host: TD3, SAC
    python benchmarks/compiled.py ppo         # PPO on CartPole against rejax
    python benchmarks/compiled.py sac         # SAC and TD3 on Brax against Brax and rejax
    python benchmarks/compiled.py seeds       # five seeds in one program against one after the other
    python benchmarks/compiled.py processes   # five seeds in one program against two processes on two cores
    python benchmarks/compiled.py compile     # seconds to compile a chunk, beside update and step alone

Contenders of a case live in one process and take turns. What they compile is made before the first turn and
recorded apart. A turn records wall and processor seconds; ratios are of steps a processor second, since other
work on the machine does not change them much. Every turn is a line of benchmarks/results/compiled/*.jsonl.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("NPROC", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

RESULTS = Path(__file__).resolve().parent / "results" / "compiled"
PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "gymnasium", "brax", "gymnax", "rejax", "flax")
CAPACITY, WARM_UP, SEED = 16_384, 1_024, 3


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self.begun = time.perf_counter(), time.process_time()

    def __call__(self) -> dict[str, float]:
        wall, processor = self.begun
        return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


class Contender:
    """Something that makes environment steps. `first` is what its first steps took, compiling included."""

    seeds = 1
    updates_per_step = 0.0

    def steps(self, count: int) -> dict[str, float]:
        """Make about `count` steps of one seed; returns steps of all seeds, and seconds."""
        raise NotImplementedError

    def close(self) -> None:
        pass


# --- qscape ------------------------------------------------------------------------------------------


def make_trainer(
    recipe: str, env: str, envs: int, settings: dict[str, Any], loop: str = "auto", seeds: int = 1
) -> Any:
    """Make the loop of a run, or of several seeds in one program, without evaluations, log and saves."""
    from qscape.run import training
    from qscape.run.adapters import open_adapter
    from qscape.run.plan import Plan, prepare
    from qscape.run.seeds import CompiledSeeds, RolloutSeeds

    rare = {"log_every": 10**9, "eval_every": 0, "save_every": 10**9}
    plans = [
        Plan(recipe, env, 10**9, seed=SEED + k, envs=envs, settings=settings, loop=loop, **rare)
        for k in range(seeds)
    ]
    fits = [prepare(plan) for plan in plans]
    plans, agent = [fit[0] for fit in fits], fits[0][1]
    adapters = [open_adapter(plan, agent) for plan in plans]
    if seeds == 1:
        return training.make_session(plans[0], agent, adapters[0])
    kind: Any = RolloutSeeds if recipe.startswith("ppo") else CompiledSeeds
    return kind(plans, agent, adapters)


class QScape(Contender):
    """A run of the library: what `qscape train` does, without evaluations, log and saves."""

    def __init__(self, *args: Any, **options: Any) -> None:
        clock = Clock()
        self.trainer = make_trainer(*args, **options)
        self.seeds = options.get("seeds", 1)
        base = self.trainer.agent.base
        self.updates_per_step = getattr(base, "updates_per_step", 0.0)
        self.steps(max(getattr(base, "warmup", 0), getattr(base, "rollout", 0)))
        self.steps(max(8 * self.trainer.envs, getattr(base, "rollout", 0)))
        self.first = clock()

    def steps(self, count: int) -> dict[str, float]:
        import jax

        before, clock = self.trainer.env_steps, Clock()
        for _ in self.trainer.events(before + count):
            pass
        jax.block_until_ready(self.trainer.learner.state)
        return {"steps": self.seeds * (self.trainer.env_steps - before), **clock()}


def off_policy(hidden: int, updates_per_step: float = 1.0, **more: Any) -> dict[str, Any]:
    """Settings of TD3 and SAC: batches of 256, two hidden layers."""
    widths = {"actor_hidden": (hidden, hidden), "critic_hidden": (hidden, hidden)}
    base = {"batch_size": 256, "replay_capacity": CAPACITY, "warmup": WARM_UP, **widths}
    return {"base": base | {"updates_per_step": updates_per_step} | more}


def on_policy(rollout: int, batch: int, passes: int, hidden: int = 64) -> dict[str, Any]:
    """Settings of PPO."""
    widths = {"actor_hidden": (hidden, hidden), "critic_hidden": (hidden, hidden)}
    return {"base": {"rollout": rollout, "batch_size": batch, "passes": passes, **widths}}


# --- peers -------------------------------------------------------------------------------------------


class Rejax(Contender):
    """rejax; a turn continues its train state by a fixed number of steps, without evaluations."""

    def __init__(self, name: str, steps: int, hidden: int, updates_per_step: float = 0.0, **config: Any):
        import jax
        import rejax

        clock = Clock()
        self.updates_per_step, self.count = updates_per_step, steps
        shared = {"learning_rate": 3e-4, "skip_initial_evaluation": True}
        kind = getattr(rejax, name)
        algorithm = kind.create(total_timesteps=steps, eval_freq=steps, **shared, **config)
        algorithm = algorithm.replace(eval_callback=lambda *_: 0.0)
        if name == "TD3":  # it takes no widths
            wide = {"hidden_layer_sizes": (hidden, hidden), "activation": jax.nn.relu}
            algorithm = algorithm.replace(
                actor=algorithm.actor.clone(**wide), critic=algorithm.critic.clone(**wide)
            )
        self.state = jax.jit(algorithm.init_state)(jax.random.PRNGKey(SEED))
        self.state = jax.tree.map(lambda x: x.copy(), self.state)  # each array in a buffer of its own
        self.train = jax.jit(lambda state: algorithm.train(train_state=state)[0], donate_argnums=0)
        self.steps(steps)
        self.first = clock()

    def steps(self, count: int) -> dict[str, float]:
        import jax

        clock = Clock()
        before = int(self.state.global_step)
        self.state = jax.block_until_ready(self.train(self.state))
        return {"steps": int(self.state.global_step) - before, **clock()}


class BraxSAC(Contender):
    """Brax's SAC. Its `train` runs in a thread that waits before each epoch; evaluations are left out.

    It reads the time before and after an epoch, which is where it waits and where the turn ends.
    """

    def __init__(self, env: str, envs: int, hidden: int, updates_per_step: float, steps: int) -> None:
        import brax.envs
        import jax
        import jax.numpy as jnp
        from brax.training import acting
        from brax.training.agents.sac import networks, train

        if not hasattr(jax, "device_put_replicated"):  # removed in newer versions of JAX
            jax.device_put_replicated = lambda tree, devices: jax.tree.map(
                lambda x: jnp.stack([x] * len(devices)), tree
            )
        self.updates_per_step, self.count = updates_per_step, steps
        self.reads, self.seconds = 0, {}
        self.go, self.ready = threading.Semaphore(0), threading.Semaphore(0)
        self.closed = False
        clock = Clock()
        train.time = SimpleNamespace(time=self.read)
        acting.Evaluator = lambda *_, **__: SimpleNamespace(run_evaluation=lambda *_, **__: {})
        width = {"hidden_layer_sizes": (hidden, hidden)}
        epochs = 10_000
        arguments = {
            "num_timesteps": WARM_UP + epochs * steps,
            "num_evals": epochs + 1,
            "episode_length": 1000,
            "num_envs": envs,
            "num_eval_envs": 1,
            "learning_rate": 3e-4,
            "discounting": 0.99,
            "seed": SEED,
            "batch_size": 256,
            "min_replay_size": WARM_UP,
            "max_replay_size": CAPACITY,
            "grad_updates_per_step": max(1, round(envs * updates_per_step)),
            "network_factory": lambda *a, **k: networks.make_sac_networks(*a, **k, **width),
            "max_devices_per_host": 1,
        }
        simulator = brax.envs.get_environment(env.removeprefix("brax/"))
        self.problem: BaseException | None = None

        def run() -> None:
            try:
                train.train(simulator, **arguments)
            except BaseException as problem:
                self.problem = problem
                self.ready.release()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        self.wait()
        self.steps(steps)
        self.first = clock()

    def read(self) -> float:
        """Stands for `time.time` in Brax's file: 2 reads around the first steps, then 2 for each epoch."""
        self.reads += 1
        if self.reads > 2 and self.reads % 2:
            self.ready.release()
            self.go.acquire()
            if self.closed:
                raise SystemExit
            self.clock = Clock()
        elif self.reads > 2:
            self.seconds = self.clock()
        return time.time()

    def wait(self) -> None:
        self.ready.acquire()
        if self.problem is not None:
            raise self.problem

    def steps(self, count: int) -> dict[str, float]:
        self.go.release()
        self.wait()
        return {"steps": self.count, **self.seconds}

    def close(self) -> None:
        self.closed = True
        self.go.release()
        self.thread.join()


# --- turns -------------------------------------------------------------------------------------------


class Record:
    """The file of results, a JSON line for each of `write`'s calls; the first says where they were made."""

    def __init__(self, part: str, core: int | None) -> None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        self.path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{part}.jsonl"
        self.part = part
        self.write(about(core))

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"part": self.part, **line}) + "\n")


def about(core: int | None) -> dict[str, Any]:
    """Command, machine, versions and commit."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    processor = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "command": " ".join(["python", "benchmarks/compiled.py", *sys.argv[1:]]),
        "processor": processor,
        "cores": os.cpu_count(),
        "pinned to core": core,
        "NPROC": os.environ["NPROC"],
        "XLA_FLAGS": os.environ["XLA_FLAGS"],
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "versions": versions,
        "seed": SEED,
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
    }


def play(
    record: Record,
    case: dict[str, Any],
    makers: dict[str, Callable[[], Contender]],
    rounds: int,
    seconds: float,
) -> dict[str, float]:
    """Give the contenders of a case turns, one after the other; return steps a processor second of each.

    The first two turns find out how many steps fit into a turn, and are not counted.
    """
    contenders: dict[str, Contender] = {}
    for name, make in makers.items():
        contenders[name] = make()
        record.write({"case": case, "contender": name, "first": contenders[name].first})
    counts = {}
    for name, one in contenders.items():
        count = 256
        for _ in range(3 if isinstance(one, QScape) else 1):
            trial = one.steps(count)
            rate = trial["steps"] / one.seeds / max(trial["processor"], 1e-3)
            count = max(256, int(rate * seconds))
        counts[name] = count
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            turn = contenders[name].steps(counts[name])
            turns[name].append(turn)
            record.write({"case": case, "contender": name, "round": number, **turn})
    rates = {}
    print(", ".join(f"{k} {v}" for k, v in case.items()), flush=True)
    for name, made in turns.items():
        per = {c: [t["steps"] / t[c] for t in made] for c in ("processor", "wall")}
        rates[name] = statistics.median(per["processor"])
        first = contenders[name].first
        updates = rates[name] * contenders[name].updates_per_step
        low, high = min(per["processor"]), max(per["processor"])
        print(
            f"  {name:24}{rates[name]:12,.0f} steps/s ({low:,.0f} to {high:,.0f}), wall "
            f"{statistics.median(per['wall']):,.0f}"
            + (f", {updates:,.0f} updates/s" if updates else "")
            + f", first {first['processor']:.1f} s",
            flush=True,
        )
        contenders[name].close()
    ours = next(iter(rates))
    ratios = {name: rates[ours] / rates[name] for name in list(rates)[1:]}
    print("  ratio: " + ", ".join(f"{k} {v:.2f}" for k, v in ratios.items()), flush=True)
    record.write({"case": case, "steps a processor second": rates, "ratio": ratios})
    return rates


# --- parts -------------------------------------------------------------------------------------------


def loops(record: Record, options: argparse.Namespace) -> None:
    """TD3 and SAC, compiled against the host loop."""
    cases = [
        (env, envs, recipe, hidden, updates)
        for hidden in options.hidden or (64, 256)
        for recipe in options.recipe or ("td3", "sac")
        for env in options.env or ("gymnax/Pendulum-v1", "brax/inverted_pendulum")
        for envs in options.envs or (16, 64)
        for updates in options.updates_per_step or (1.0, 1 / 16)
    ]
    for env, envs, recipe, hidden, updates in cases:
        settings = off_policy(hidden, updates)

        def make(loop: str, args: tuple = (recipe, env, envs, settings)) -> Contender:
            return QScape(*args, loop=loop)

        case = {"env": env, "envs": envs, "recipe": recipe, "hidden": hidden, "updates_per_step": updates}
        makers = {"compiled": lambda m=make: m("compiled"), "host": lambda m=make: m("host")}
        play(record, case, makers, options.rounds, options.seconds)


def ppo(record: Record, options: argparse.Namespace) -> None:
    """PPO on CartPole: qscape and rejax at equal settings."""
    for envs, rollout, batch, passes in ((8, 2048, 64, 10), (64, 4096, 256, 4)):
        count = rollout * max(1, round(40_960 / rollout))
        rejax = {
            "env": "CartPole-v1",
            "num_envs": envs,
            "num_steps": rollout // envs,
            "num_epochs": passes,
            "num_minibatches": rollout // batch,
            "max_grad_norm": 0.5,
            "ent_coef": 0.0,
            "agent_kwargs": {"activation": "tanh"},
        }
        settings = on_policy(rollout, batch, passes)
        makers: dict[str, Callable[[], Contender]] = {
            "qscape ppo": lambda e=envs, s=settings: QScape("ppo", "gymnax/CartPole-v1", e, s),
            "rejax PPO": lambda c=count, r=rejax: Rejax("PPO", c, 64, **r),
        }
        case = {"envs": envs, "rollout": rollout, "batch": batch, "passes": passes, "hidden": 64}
        play(record, case, makers, options.rounds, options.seconds)


def sac(record: Record, options: argparse.Namespace) -> None:
    """SAC and TD3 on Brax: qscape, Brax and rejax at equal settings."""
    for env in options.env or ("brax/inverted_pendulum",):
        for envs in options.envs or (64,):
            for hidden in options.hidden or (64, 256):
                for updates in options.updates_per_step or (1.0,):
                    _sac(record, options, env, envs, hidden, updates)


def _sac(record: Record, options: argparse.Namespace, env: str, envs: int, hidden: int, ups: float) -> None:
    count = envs * max(1, round((8 if hidden > 64 else 32) / ups * 64 / envs))
    rejax = {
        "env": env,
        "num_envs": envs,
        "num_epochs": max(1, round(ups * envs)),
        "batch_size": 256,
        "buffer_size": CAPACITY,
        "fill_buffer": WARM_UP,
    }
    settings = off_policy(hidden, ups)
    wide = {"hidden_layer_sizes": (hidden, hidden)}
    sac: dict[str, Callable[[], Contender]] = {
        "qscape sac": lambda: QScape("sac", env, envs, settings),
        "Brax SAC": lambda: BraxSAC(env, envs, hidden, ups, count),
        "rejax SAC": lambda: Rejax("SAC", count, hidden, ups, **rejax, **wide),
    }
    td3: dict[str, Callable[[], Contender]] = {
        "qscape td3": lambda: QScape("td3", env, envs, settings),
        "rejax TD3": lambda: Rejax("TD3", count, hidden, ups, **rejax, policy_delay=2),
    }
    case = {"env": env, "envs": envs, "hidden": hidden, "updates_per_step": ups}
    for recipe, makers in (("sac", sac), ("td3", td3)):
        if recipe in (options.recipe or ("sac", "td3")):
            play(record, {"recipe": recipe, **case}, makers, options.rounds, options.seconds)


def seed_cases(options: argparse.Namespace) -> Iterator[tuple[str, str, int, int, dict[str, Any]]]:
    """Recipe, environment, number of environments, width and settings."""
    for hidden in options.hidden or (64, 256):
        for recipe in options.recipe or ("td3", "ppo"):
            if recipe == "ppo":
                yield recipe, "gymnax/CartPole-v1", 8, hidden, on_policy(2048, 64, 10, hidden)
            else:
                yield recipe, "gymnax/Pendulum-v1", 1, hidden, off_policy(hidden)


def seeds(record: Record, options: argparse.Namespace) -> None:
    """Five seeds in one program against one program for one seed after the other."""
    for recipe, env, envs, hidden, settings in seed_cases(options):
        args = recipe, env, envs, settings
        makers: dict[str, Callable[[], Contender]] = {
            "five in one program": lambda a=args: QScape(*a, seeds=5),
            "one after the other": lambda a=args: QScape(*a),
        }
        case = {"recipe": recipe, "env": env, "envs": envs, "hidden": hidden}
        play(record, case, makers, options.rounds, options.seconds)


def processes(record: Record, options: argparse.Namespace) -> None:
    """Five seeds in one program (one thread, two threads) against two processes of one thread each.

    Steps of all processes a wall second, and the sum of their steps a processor second: the latter is what
    processes of one thread make a second if each has a core to itself. Each process waits until its turn.
    """
    for recipe, env, envs, hidden, settings in seed_cases(options):
        args = [recipe, env, envs, settings]
        layout = {
            "two processes": [(args, 1, 1, [0]), (args, 1, 1, [1])],
            "five in one program, one thread": [(args, 5, 1, [1])],
            "five in one program, two threads": [(args, 5, 2, [0, 1])],
        }
        workers = {name: [Worker(*one) for one in members] for name, members in layout.items()}
        case = {"recipe": recipe, "env": env, "envs": envs, "hidden": hidden}
        print(", ".join(f"{k} {v}" for k, v in case.items()), flush=True)
        rates: dict[str, list[float]] = {name: [] for name in workers}
        free: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(options.rounds):
            for name, members in workers.items():
                for worker in members:
                    worker.ask(options.seconds)
                answers = [worker.answer() for worker in members]
                longest = max(answer["wall"] for answer in answers)
                rates[name].append(sum(a["steps"] for a in answers) / longest)
                free[name].append(sum(a["steps"] / a["processor"] for a in answers))
                record.write({"case": case, "contender": name, "round": number, "answers": answers})
        for members in workers.values():
            for worker in members:
                worker.close()
        medians = {name: statistics.median(values) for name, values in rates.items()}
        for name, rate in medians.items():
            low, high = min(rates[name]), max(rates[name])
            print(
                f"  {name:34}{rate:12,.0f} steps/s of wall time ({low:,.0f} to {high:,.0f}), "
                f"{statistics.median(free[name]):,.0f} steps a processor second, summed over processes",
                flush=True,
            )
        record.write({"case": case, "steps a second": medians})


class Worker:
    """A process of this script that trains when it is asked."""

    def __init__(self, args: list[Any], seeds: int, threads: int, cores: list[int]) -> None:
        flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
        environment = {**os.environ, "NPROC": str(threads), "XLA_FLAGS": flags}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "worker", json.dumps([args, seeds, cores])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.answer()

    def ask(self, seconds: float) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a worker ended with code {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def work(task: str) -> None:
    """Train for as many seconds as each line of the input says."""
    args, seeds, cores = json.loads(task)
    os.sched_setaffinity(0, cores)
    args[3] = {
        k: {n: tuple(x) if isinstance(x, list) else x for n, x in v.items()} for k, v in args[3].items()
    }
    one = QScape(*args, seeds=seeds)
    count = 256
    for _ in range(3):
        trial = one.steps(count)
        rate = trial["steps"] / seeds / max(trial["processor"], 1e-3)
        count = max(256, int(rate))
    print(json.dumps(trial), flush=True)
    for line in sys.stdin:
        print(json.dumps(one.steps(int(count * float(line)))), flush=True)


def compiling(record: Record, options: argparse.Namespace) -> None:
    """Seconds to trace and compile a chunk, an update alone, and the step of the environments alone."""
    cases = (
        ("td3", "gymnax/Pendulum-v1", 16, off_policy(256)),
        ("td3", "brax/inverted_pendulum", 16, off_policy(256)),
        ("ppo", "gymnax/CartPole-v1", 8, on_policy(2048, 64, 10)),
        ("ppo", "brax/inverted_pendulum", 16, on_policy(2048, 64, 10)),
    )
    for recipe, env, envs, settings in cases:
        if recipe not in (options.recipe or ("td3", "ppo")) or env not in (options.env or (env,)):
            continue
        programs = list_programs(recipe, env, envs, settings)
        seconds: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
        for number in range(options.rounds):
            for name, (make, arguments) in programs.items():
                clock = Clock()
                lowered = make().lower(*arguments)
                traced = clock()
                lowered.compile()
                both = clock()
                seconds[name].append({"trace": traced["processor"], "both": both["processor"]})
                line = {"contender": name, "round": number, "trace": traced, "trace and compile": both}
                record.write({"case": {"recipe": recipe, "env": env, "envs": envs}, **line})
        print(f"recipe {recipe}, env {env}, envs {envs}", flush=True)
        both = {name: statistics.median(t["both"] for t in values) for name, values in seconds.items()}
        for name, values in seconds.items():
            trace = statistics.median(t["trace"] for t in values)
            print(f"  {name:24}{both[name]:8.2f} s, of which tracing {trace:.2f}", flush=True)
        print(f"  chunk / (update + step)  {both['chunk'] / (both['update'] + both['step']):.2f}", flush=True)


def list_programs(recipe: str, env: str, envs: int, settings: dict[str, Any]) -> dict[str, Any]:
    """For each program a function that makes it anew, and its arguments."""
    from functools import partial

    import jax
    import numpy as np

    from qscape.envs.world import reset_world, step_world
    from qscape.run import scan, scan_rollouts

    trainer = make_trainer(recipe, env, envs, settings)
    agent, sim, key = trainer.agent, trainer.env, trainer.learner.seeds.key
    world = jax.eval_shape(partial(reset_world, sim, envs), key)
    zero = np.int32(0)
    action = jax.ShapeDtypeStruct((envs, agent.task.action_size), np.float32)

    def fresh(function: Callable[..., Any], **jit: Any) -> Callable[[], Any]:
        """Return a maker of the jitted function, with nothing traced before."""

        def make() -> Any:
            jax.clear_caches()
            return jax.jit(lambda *args: function(*args), **jit)

        return make

    def step(sim: Any, world: Any, action: Any, steps: Any, key: Any) -> Any:
        return step_world(sim, world, scan.to_env_action(agent, sim, action), steps, key)

    step_arguments = sim, world, action, zero, key
    if recipe == "ppo":
        run = jax.eval_shape(partial(scan_rollouts.start, agent, sim, envs=envs), key)
        acting = agent.acting(run.state)
        collect = partial(scan_rollouts.collect, agent)
        rollout = jax.eval_shape(collect, sim, acting, run.world, zero, key)[1]
        metrics = jax.ShapeDtypeStruct(trainer.metrics.shape, np.float32)
        chunk = partial(scan_rollouts.run_chunk, agent, room=65_536)
        chunk_arguments = sim, run, metrics, key, zero, np.float32(1)
        return {
            "chunk": (fresh(chunk, donate_argnums=(1, 2)), chunk_arguments),
            "update": (fresh(agent.update, donate_argnums=0), (run.state, rollout, np.float32(0), key)),
            "step": (fresh(step, donate_argnums=1), step_arguments),
            "rollout": (fresh(collect), (sim, acting, run.world, zero, key)),
        }
    run = jax.eval_shape(partial(scan.start, agent, sim, envs=envs), key)
    chunk = partial(scan.run_chunk, agent, room=65_536)
    chunk_arguments = sim, run, key, np.zeros(1024, np.int32), zero, zero
    carry, layout = run.carry, agent.layout(envs)
    from qscape.offpolicy import cycle

    def update(state: Any, storage: Any, replay: Any, key: Any) -> Any:
        return agent.update(layout, state, storage, replay, key)

    updated = carry.state, carry.storage, carry.replay_state, key

    def learn(carry: Any, updates: Any, steps: Any, key: Any) -> Any:
        return cycle.learn(agent, layout, carry, updates, steps, key)

    def choose(carry: Any, steps: Any, key: Any, warm_up: Any) -> Any:
        return cycle.choose(agent, carry, steps, key, warm_up)

    return {
        "chunk": (fresh(chunk, donate_argnums=1), chunk_arguments),
        "update": (fresh(update, donate_argnums=(0, 2)), updated),
        "step": (fresh(step, donate_argnums=1), step_arguments),
        "learn": (fresh(learn, donate_argnums=0), (carry, zero, zero, key)),
        "choose": (fresh(choose, donate_argnums=0), (carry, zero, key, np.bool_(True))),
    }


PARTS: dict[str, tuple[Callable[[Record, argparse.Namespace], None], int, float]] = {
    "loops": (loops, 3, 1.5),
    "ppo": (ppo, 5, 1.5),
    "sac": (sac, 5, 2.0),
    "seeds": (seeds, 5, 1.5),
    "processes": (processes, 5, 2.0),
    "compile": (compiling, 3, 0.0),
}


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["worker"]:
        return work(arguments[1])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--env", nargs="+", help="only these environments")
    parser.add_argument("--recipe", nargs="+", help="only these recipes")
    parser.add_argument("--envs", nargs="+", type=int, help="only these numbers of environments")
    parser.add_argument("--hidden", nargs="+", type=int, help="only these widths of networks")
    parser.add_argument("--updates-per-step", nargs="+", type=float)
    parser.add_argument("--rounds", type=int, help="turns of each contender")
    parser.add_argument("--seconds", type=float, help="processor seconds of a turn, about")
    parser.add_argument("--core", type=int, help="pin this process to a core")
    options = parser.parse_args(arguments)
    run, rounds, seconds = PARTS[options.part]
    options.rounds = rounds if options.rounds is None else options.rounds
    options.seconds = seconds if options.seconds is None else options.seconds
    if options.core is not None:
        os.sched_setaffinity(0, [options.core])
    record = Record(options.part, options.core)
    if options.part != "compile":  # programs that differ in nothing are compiled once
        import jax

        cache = tempfile.TemporaryDirectory()
        jax.config.update("jax_compilation_cache_dir", cache.name)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    run(record, options)
    print(f"written: {record.path}")


if __name__ == "__main__":
    main(sys.argv[1:])
