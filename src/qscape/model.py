"""The Python interface: agents with their environments, as in `qs.TD7("HalfCheetah-v5").learn(100_000)`."""

import copy
import dataclasses
import functools
import inspect
import signal
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, Self, TypeVar, cast, get_type_hints

import gymnasium as gym
import jax
import numpy as np

from qscape.agents import (
    BASE_HELP,
    ELSEWHERE,
    OTHER_POLICIES,
    build,
    difference,
    flatten,
    merge_settings,
    nearest,
    ours,
    preset,
    recipe_for_images,
    register_named,
    settings_of,
)
from qscape.envs import EnvAdapter
from qscape.envs import make as make_adapter
from qscape.envs.build import OWN_ARGS, training_args
from qscape.envs.lag import Lag
from qscape.errors import (
    Conflict,
    ForeignSave,
    Mismatch,
    MissingArgument,
    OutOfRange,
    RunError,
    UnfitEnv,
    UnknownField,
    WrongValue,
    describe,
)
from qscape.run import events as ev
from qscape.run import folder as folders
from qscape.run.adapters import open_evaluation
from qscape.run.evaluation import SEED
from qscape.run.plan import Plan, moot_notes, prepare, refuse_unkept
from qscape.run.programs import evaluation_key
from qscape.run.session import Session
from qscape.run.stopping import StopOnSignal
from qscape.run.training import make_session, no_update, set_up_jax
from qscape.values import NoValue, decode, encode

if TYPE_CHECKING:
    from qscape.inspect.trained_agent import TrainedAgent

KEYWORD = inspect.Parameter.KEYWORD_ONLY
HUB = "hub:"  # begins the name of a run on the hub
FOREVER = 10**9  # steps of a plan that is prepared but not run, so that no warm-up is shortened

Callback = Callable[["Model", ev.RunEvent], bool | None]
P = ParamSpec("P")
R = TypeVar("R")


def _refuse_other_names(method: Callable[P, R]) -> Callable[P, R]:
    """Wrap a method: a keyword that it does not have becomes a UsageError that names ours."""
    known = [*inspect.signature(method).parameters][1:]

    @functools.wraps(method)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        for name in keywords:
            if name not in known:
                meant = [_keyword(field) for field in ours(name, known)]
                hint = f"write {' and '.join(meant)}" if meant else nearest(name, known)
                raise UnknownField(f"{method.__name__} has no keyword '{name}'; {hint}.", field=name)
        return method(*args, **keywords)

    return call


class Model:
    """An agent with its environment.

    Args:
        recipe: base and parts, e.g. `td7`, `td3+sale+lap` or `td3+mypackage.penalty:Penalty`.
        env: a Gymnasium id, a function that makes an environment, an environment, or a vector environment.
        seed: seed of all random numbers.
        envs: sub-environments that are stepped in parallel (if `env` is an id or a function).
        env_args: arguments of the environment (if `env` is an id or a function).
        eval_env: environment of evaluations; None: made from the id or the function.
        eval_every: environment steps between evaluations; 0 switches them off.
        eval_episodes: episodes in each evaluation.
        probe: further measures of every evaluation, e.g. `["smoothness"]`, in `Evaluated.probes`.
        preset: "paper" for the settings of a paper for this environment; `settings` win over them. None: no
            preset.
        loop: "compiled" makes steps and updates in one program, which needs an environment in JAX; "host"
            steps it from Python; "auto" compiles where possible, if `env` is an id or a function.
        vectorise: how Python steps `envs` environments: "sync", one after the other; "async", a process for
            each, for which a script needs `if __name__ == "__main__":`; "envpool", EnvPool's.
        overlap: make updates while the environments step: actions come from parameters that are a step older.
        history: observations that the agent sees, stacked, with the actions between them.
        action_delay: steps after which a chosen action acts.
        observation_delay: steps after which a measurement is seen.
        observation_noise: standard deviation of noise on every entry of an observation, in its units.
        dropout: probability that a measurement is missing; then the last one is repeated.
        observe_actions: with a history or a delay: show the past actions beside the observations.
        settings: fields by part, e.g. `base={"discount": 0.98}, sale={"width": 128}`.

    Raises:
        UsageError: an unknown name, an invalid combination, or an environment that does not fit.
    """

    def __init__(
        self,
        recipe: str,
        env: str | Callable[..., gym.Env] | gym.Env | gym.vector.VectorEnv,
        seed: int = 0,
        *,
        envs: int = 1,
        env_args: Mapping[str, Any] | None = None,
        eval_env: gym.Env | None = None,
        eval_every: int = 5_000,
        eval_episodes: int = 10,
        probe: Sequence[str] = (),
        preset: str | None = None,
        loop: Literal["auto", "host", "compiled"] = "auto",
        vectorise: Literal["sync", "async", "envpool"] = "sync",
        overlap: bool = False,
        history: int = 1,
        action_delay: int = 0,
        observation_delay: int = 0,
        observation_noise: float = 0.0,
        dropout: float = 0.0,
        observe_actions: bool = True,
        **settings: Mapping[str, Any],
    ) -> None:
        set_up_jax()
        if not isinstance(recipe, str):
            raise WrongValue(
                f"recipe is {recipe!r}; write base and parts, such as 'td7' or 'td3+pave'.", field="recipe"
            )
        if not isinstance(env_args, Mapping | None):
            raise WrongValue(
                f"env_args is {env_args!r}; write a dict, such as {{'continuous': True}}.", field="env_args"
            )
        if isinstance(probe, str) or not isinstance(probe, Iterable):
            raise WrongValue(
                f"probe is {probe!r}; write a list of names, such as ['smoothness'].", field="probe"
            )
        if not isinstance(preset, str | None):
            raise WrongValue(f"preset is {preset!r}; write the name of one, such as 'paper'.", field="preset")
        if not isinstance(overlap, bool):
            raise WrongValue(f"overlap is {overlap!r}; it must be True or False.", field="overlap")
        seed, envs = _whole_number("seed", seed, 0), _whole_number("envs", envs, 1)
        eval_every = _whole_number("eval_every", eval_every, 0)
        eval_episodes = _whole_number("eval_episodes", eval_episodes, 1)
        self.lag = _read_lag(
            history=history,
            action_delay=action_delay,
            observation_delay=observation_delay,
            observation_noise=observation_noise,
            dropout=dropout,
            observe_actions=observe_actions,
        )
        self.recipe, self.seed = recipe, seed
        self.settings: Mapping[str, Mapping[str, Any]] = settings
        register_named(recipe)
        # Invalid combinations are refused before an environment is made.
        index_actions = build(recipe, settings).index_actions
        env_args = {k: v.item() if isinstance(v, np.generic) else v for k, v in (env_args or {}).items()}
        if isinstance(env, str):
            refuse_unkept(env_args)
        args = training_args(env, env_args) if isinstance(env, str) else env_args
        made, self._is_id = isinstance(env, gym.Env | gym.vector.VectorEnv), isinstance(env, str)
        if made and vectorise != "sync":
            raise Conflict(
                f"vectorise={vectorise!r} makes environments: give an id or a function.", field="vectorise"
            )
        if (made or vectorise != "sync") and loop == "auto":  # this very object is stepped
            loop = "host"
        self.adapter = make_adapter(
            env,
            envs,
            args,
            seed=seed,
            vectorise=vectorise,
            index_actions=index_actions,
            one_if_jax=loop != "host",
            alone="envs=1",
            lag=self.lag,
        )
        if self.adapter.spec.frame is not None:
            self.recipe, _ = recipe_for_images(recipe)
        self.envs = self.adapter.envs if made else envs
        self.eval_adapter: EnvAdapter | None = None
        if eval_env is not None:
            self.eval_adapter = make_adapter(eval_env, seed=SEED, index_actions=index_actions, lag=self.lag)
            self.eval_adapter.arrange(self.adapter.spaces)
            _refuse_other_spaces(self.adapter, self.eval_adapter)
        source: Any = env
        self._open_evaluation = (
            None
            if made
            else functools.partial(
                open_evaluation, source, args=env_args, index_actions=index_actions, lag=self.lag
            )
        )
        if self._open_evaluation is not None and eval_env is None and (eval_every or probe):
            self.eval_adapter = self._open_evaluation(min(eval_episodes, 10), without="eval_every=0")
        self._refuse_one_object()
        if probe and self.eval_adapter is None:
            raise MissingArgument(
                f"probe={[*probe]} measures evaluations: pass eval_env beside an environment.",
                field="eval_env",
            )
        self._asked: dict[str, Any] = {
            "eval_every": eval_every,
            "eval_episodes": eval_episodes,
            "probe": tuple(probe),
            "preset": preset,
            "loop": loop,
            "vectorise": vectorise,
            "overlap": overlap,
            **self.lag.changes,
        }
        self._env_args = env_args

        def make(envs: int = 1, seed: int = SEED, **more: Any) -> EnvAdapter:
            new = _copy_environment(env) if isinstance(env, gym.Env | gym.vector.VectorEnv) else env
            args = self._env_args | more
            adapter = make_adapter(new, envs, args, seed=seed, index_actions=index_actions, lag=self.lag)
            adapter.arrange(self.adapter.spaces)
            return adapter

        self._make = make
        plan = self._plan(FOREVER)  # refuses options of unknown names
        if preset is not None or overlap:
            prepare(plan)  # refuses a preset without settings for this environment, and what cannot overlap
        self.trainer: Session | None = None
        self._drawn = 0  # number of calls of `predict` that sampled, so that each call draws other numbers

    def _refuse_one_object(self) -> None:
        """Raise a UsageError if evaluations would step the very environment of training."""
        if self.eval_adapter is not None and not self.adapter.environments.isdisjoint(
            self.eval_adapter.environments
        ):
            raise Conflict(
                "evaluation would reset the training environment in mid-episode, as both are one object: "
                "give an id, a function that makes a new one at every call, or another one as eval_env.",
                field="eval_env",
            )

    @property
    def env_steps(self) -> int:
        """Environment steps made so far, over all sub-environments."""
        return self.trainer.env_steps if self.trainer else 0

    @property
    def trained_agent(self) -> "TrainedAgent":
        """The trained agent for `qscape.inspect`; invalid after a further call of `learn`."""
        from qscape.inspect.trained_agent import TrainedAgent

        trainer = self.trainer or self._untrained()
        policy = "current" if trainer.kept is None else "kept"
        return TrainedAgent(self.recipe, trainer.agent, trainer.best, self._make, trainer.env_steps, policy)

    def _plan(self, steps: int) -> Plan:
        """Return the plan of a run of `steps` steps, before `prepare`."""
        return Plan(
            recipe=self.recipe,
            env=self.adapter.env_id,
            steps=steps,
            seed=self.seed,
            envs=self.envs,
            env_args=self._env_args if self._is_id else self._describe_args(),
            settings=self.settings,
            **self._asked,
        )

    @_refuse_other_names
    def learn(
        self, steps: int, callback: Callback | Iterable[Callback] = (), progress: bool = False
    ) -> "Model":
        """Train for `steps` more environment steps.

        Ctrl-C ends learning after the current step; `learn` can be called again. What parts have to say about
        their metrics comes as Python warnings, and so does the reason if no update was made.

        Args:
            steps: environment steps over all sub-environments. The first call decides what follows from the
                length of a run: a shortened warm-up or rollout, the decay of ε and the schedule of learning
                rates (see `run.plan.prepare`). `base.anneal` of on-policy agents reaches 0 at the end of
                each call. A warning in the first call names these settings; with all of them set, twenty
                calls of 300 steps are one of 6,000.
            callback: one or several functions of (model, event). If one returns False, learning ends after
                the current step.
            progress: print evaluations, and notes on the settings. Without it, a setting that does nothing is
                a Python warning, and the other notes are not shown.

        Returns:
            The model itself.

        Raises:
            UsageError: `steps` is below 1, the warm-up leaves no update, or a callback is no function.
            RunError: the environment returned NaN or raised an error.
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        steps = _whole_number("steps", steps)
        callbacks = [*callback] if isinstance(callback, Iterable) and not callable(callback) else [callback]
        if not all(map(callable, callbacks)):
            raise WrongValue(f"callback is {callback!r}; pass functions of (model, event).", field="callback")
        if self.trainer is None or not self.env_steps:  # `_untrained` makes one without these `steps`
            plan, agent, notes = prepare(self._plan(steps))
            self.trainer = None  # frees its replay before the new one is allocated
            self.trainer = make_session(plan, agent, self.adapter, self.eval_adapter)
            if why := self._describe_first_call(steps, agent):
                warnings.warn(why, stacklevel=3)
            if progress:
                print("\n".join(notes))
            for note in [] if progress else moot_notes(agent.moot_fields(), plan.typed or {}):
                warnings.warn(note, stacklevel=3)
        elif steps < 1:
            raise OutOfRange(f"learn({steps}): a run needs at least one environment step.", field="steps")
        self.trainer.stop(False)  # asked in a call that an error or a second Ctrl-C ended before it could
        # An interrupt inside a compiled program would lose the arrays that were donated to it.
        with StopOnSignal(signal.SIGINT) as interrupt:
            interrupt.attach(self.trainer)
            for event in self.trainer.events(self.trainer.env_steps + steps):
                if progress and isinstance(event, ev.Started) and event.notes:
                    print("\n".join(event.notes))
                if progress and isinstance(event, ev.Evaluated):
                    success = "" if event.success is None else f"success {event.success:>4.0%}  "
                    print(f"step {event.step:>9,}  {success}return {event.mean:>10,.1f}  ({event.policy})")
                for warning in event.warnings if isinstance(event, ev.Logged) else ():
                    warnings.warn(warning, stacklevel=3)
                answers = [tell(self, event) for tell in callbacks]  # calls all of them, even after a False
                if any(isinstance(answer, bool | np.bool_) and not answer for answer in answers):
                    self.trainer.stop()
        if interrupt.asked:
            raise KeyboardInterrupt
        if why := no_update(self.trainer):
            warnings.warn(why, stacklevel=3)
        return self

    @_refuse_other_names
    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_mask: Any = None,
    ) -> tuple[np.ndarray, Any]:
        """Return actions in the environment's units for one observation or a batch of observations.

        Of a model with a history or delays, the observation is one that the world shows now, which lags by
        itself, and `state` holds the older ones and the past actions.

        Args:
            observation: as the environment returns it (a dict of arrays for Dict spaces), with or without a
                leading batch axis.
            state: the second result of the previous call; None in the first one.
            episode_start: `[batch]`, True where an episode starts, which resets the state; None: no start.
            deterministic: True: the mode of the policy; False: an action with exploration, as in training.
            action_mask: `[N]` or `[batch, N]`, which actions are valid, for environments that mask theirs;
                None: the observation's own mask, and without one all actions are valid.

        Returns:
            (action, state); pass the state to the next call.

        Raises:
            UsageError: an argument does not fit the environment or the number of observations.
        """
        counter = 0
        if not deterministic:
            counter, self._drawn = self.env_steps + self._drawn, self._drawn + 1
        return self._policy().predict(observation, state, episode_start, deterministic, counter, action_mask)

    def _policy(self) -> "Policy":
        """Return the best policy so far; an untrained one if `learn` was not called."""
        trainer = self.trainer or self._untrained()
        return Policy(self.adapter, trainer.learner.programs, trainer.best, trainer.env_steps)

    def _describe_first_call(self, steps: int, agent: Any) -> str:
        """Return a sentence on the settings that the first `learn(steps)` decides for good; "" if none.

        `agent`: the agent that was prepared for these steps.
        """
        long, own = prepare(self._plan(FOREVER)).agent.base, build(self.recipe, self.settings).base
        now, advice = [], []
        for field in dataclasses.fields(agent.base):
            here, there, given = (getattr(base, field.name) for base in (agent.base, long, own))
            if here == there:
                continue
            if field.name in own.scale_to_run(steps):
                now.append(f"base.{field.name} = {here:,.0f}")
                share = (
                    "all steps, times base.updates_per_step" if given is None else f"{given:g} of all steps"
                )
                advice.append(f"base.{field.name} = {share}")
            else:
                now.append(f"base.{field.name} = {here:,} instead of {there:,}")
                advice.append(f"base.{field.name} = {there:,}")
        found = []
        if now:
            found.append(
                f"learn({steps}) decides for all later calls too: {'; '.join(now)}. To learn in several "
                f"calls as in one, set these yourself: {'; '.join(advice)}."
            )
        if getattr(agent, "follows_progress", False):
            found.append(f"What anneals ends with every call of learn, this one after {steps} steps.")
        return " ".join(found)

    def _describe_args(self) -> dict[str, Any]:
        """Return the arguments of an environment's function as run.json describes them.

        A load is given that function again, so they may be anything. An id that makes the same needs none.
        """
        described = {}
        for name, value in self._env_args.items():
            if self.adapter.env_id in gym.registry and name not in OWN_ARGS:
                continue
            try:
                described[name] = decode(encode(value))
            except TypeError:
                described[name] = NoValue(repr(value))
        return described

    def _untrained(self) -> Session:
        """Make and keep a trainer that has made no step, to predict, evaluate or save before `learn`."""
        plan, agent, _ = prepare(self._plan(FOREVER))
        self.trainer = make_session(plan, agent, self.adapter, self.eval_adapter)
        return self.trainer

    @_refuse_other_names
    def evaluate(self, episodes: int = 10) -> list[float]:
        """Run whole episodes with the deterministic policy in the evaluation environment.

        Returns:
            The undiscounted return of each episode.

        Raises:
            UsageError: the model was given an environment and no `eval_env`.
        """
        from qscape.run.evaluation import evaluate

        episodes = _whole_number("episodes", episodes, 1)
        if self.eval_adapter is None and self._open_evaluation is not None:  # of `eval_every=0`
            opened = self._open_evaluation(
                min(episodes, 10), without="to save the model and load it to evaluate"
            )
            opened.arrange(self.adapter.spaces)
            self.eval_adapter = opened
            self._refuse_one_object()
        if self.eval_adapter is None:
            raise MissingArgument(
                "this model was given an environment, not its id: pass eval_env to evaluate.",
                field="eval_env",
            )
        trainer = self.trainer or self._untrained()
        return [e.ret for e in evaluate(trainer.learner.programs, trainer.best, self.eval_adapter, episodes)]

    @_refuse_other_names
    def save(self, path: str | Path) -> Path:
        """Write a run folder that `qs.load`, `qscape evaluate` and `qscape resume` read.

        A run that is in this folder is replaced, with its learning curves, once the new one is written.

        Returns:
            The folder.

        Raises:
            UsageError: the folder holds something that is no run. RunError: it cannot be written.
        """
        folder = Path(path)
        folders.replace(folder, self.trainer or self._untrained())
        return folder


class Policy:
    """A policy in the environment's own units; made by `Model.predict`.

    Args:
        adapter: converts observations and actions.
        programs: compiled programs that choose actions.
        acting: the acting state.
        step: environment steps of training.
    """

    def __init__(self, adapter: EnvAdapter, programs: Any, acting: Any, step: int) -> None:
        self.adapter, self.programs, self.acting, self.step = adapter, programs, acting, step

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        counter: int = 0,
        action_mask: Any = None,
    ) -> tuple[np.ndarray, Any]:
        """Return (action, state); see `Model.predict`.

        `counter`: the number that selects the random numbers of a call without `state`; later calls count on.
        """
        obs, batched = self.adapter.observations(observation, action_mask)
        n = len(obs)
        first = np.zeros(n, bool)
        if episode_start is not None:
            if np.size(episode_start) not in (1, n):
                raise Mismatch(
                    f"episode_start has {np.size(episode_start)} entries for {n} observations.",
                    field="episode_start",
                )
            first[:] = np.ravel(episode_start)
        mode, held, stack = "evaluate" if deterministic else "explore", None, self.adapter.stack
        memory = self.programs.init_noise(n)
        if stack is not None:
            memory = memory, np.zeros((n, stack.width), obs.dtype)
        if state is None:
            first = np.ones(n, bool)
        else:
            counter, memory = _check_memory(state, memory, n)
        if stack is not None:
            memory, past = memory
            obs, held = stack.see(obs, past, first)
        action, _, memory = self.programs.act(
            self.acting, memory, obs, first, np.int32(counter), evaluation_key(), mode=mode
        )
        native = self.adapter.actions(np.asarray(action))
        if stack is not None:
            memory = memory, stack.remember(held, native)
        return (native if batched else native[0]), (counter + 1, memory)


def _check_memory(state: Any, begun: Any, n: int) -> tuple[Any, Any]:
    """Return the state that `predict` returned for `n` observations; a UsageError if it is none.

    `begun`: what a policy remembers of them at the start of an episode.
    """
    if not isinstance(state, tuple) or len(state) != 2:
        raise WrongValue("state is not what predict returned; pass None in the first call.", field="state")
    if rows := {len(leaf) for leaf in jax.tree.leaves(state[1]) if np.ndim(leaf)} - {n}:
        raise Mismatch(
            f"state is of {rows.pop()} observations, not {n}: pass None if other environments are observed.",
            field="state",
        )
    if jax.tree.structure(state[1]) != jax.tree.structure(begun) or any(
        np.shape(one) != np.shape(other)
        for one, other in zip(jax.tree.leaves(state[1]), jax.tree.leaves(begun), strict=True)
    ):
        raise Mismatch(
            "state is what predict of another policy returned; pass None in the first call.", field="state"
        )
    return state


def load(
    path: str | Path,
    env: str | Callable[..., gym.Env] | gym.Env | gym.vector.VectorEnv | None = None,
    eval_env: gym.Env | None = None,
    other_spaces: bool = False,
) -> Model:
    """Load the model in a run folder, to predict, evaluate or continue learning.

    Parts of other packages are not imported: call `qs.register` for them first, unless an installed package
    declares them (see `qscape.agents.plugins`). A warning says why if the environment starts a new episode.

    Args:
        path: a run folder, or a group with one seed; "hub:OWNER/NAME" or "hub:OWNER/NAME@REVISION" fetches
            one from the Hugging Face hub.
        env: replaces the run's environment; it must have the same spaces, and be in JAX if the run was
            compiled as a whole with its environment. None: the run's own.
        eval_env: as for `Model`.
        other_spaces: whether the environment may have other bounds, keys or dtypes than that of the training.

    Raises:
        UsageError: there is no run, a part is not loaded, the run's environment was an object and `env` is
            None, `env` is not in JAX and the run's had to be, or its spaces are others.
        RunError: there is no readable save, or it does not fit `env`.
    """
    set_up_jax()
    if isinstance(path, str) and path.startswith(HUB):
        from qscape.export.hub import download_run

        path = download_run(path.removeprefix(HUB))
    folder = folders.one_run(Path(path))
    plan = folders.read_plan(folder)
    newest, notes = folders.choose_save(folder)
    if newest is None:
        raise folders.no_save(folder)
    build(plan.recipe, plan.settings)  # refuses a part that is not loaded; `Model` below would import it
    if env is None:
        folders.refuse_unmakeable(folder, plan)
    model = Model(
        plan.recipe,
        plan.env if env is None else env,
        plan.seed,
        envs=plan.envs,
        env_args=plan.env_args if env is None else None,
        eval_env=eval_env,
        eval_every=plan.evals_every,
        eval_episodes=plan.eval_episodes,
        probe=plan.probe,
        preset=plan.preset if env is None else None,  # its settings are those of the plan
        loop=plan.loop,
        vectorise=plan.vectorise if env is None else "sync",
        overlap=plan.overlap,
        **plan.lag.changes,
        **cast(dict[str, Any], plan.settings),
    )
    if plan.loop == "compiled" and model.adapter.jax_env is None:
        raise Mismatch(
            f"{folder} was trained in one program with its environment in JAX, and its save fits no other "
            f"kind of loop; {model.adapter.env_id} is not in JAX. Load the run without env: its `predict` "
            "takes the observations of any environment with the same spaces.",
            field="env",
        )
    trained_in = plan.env
    plan = dataclasses.replace(plan, env=model.adapter.env_id, env_args=model._env_args)
    folders.fit(model.adapter, newest, other_spaces)
    model.trainer = make_session(plan, build(plan.recipe, plan.settings), model.adapter, model.eval_adapter)
    try:
        notes += folders.load_into(model.trainer, newest, other_spaces=other_spaces)
    except RunError as problem:
        if env is None:
            raise
        raise ForeignSave(
            f"The run does not fit {model.adapter.env_id}, whose observations or actions may be others than "
            f"those of {trained_in}: {problem}"
        ) from problem
    for note in notes:
        warnings.warn(note, stacklevel=2)
    if not model.env_steps and plan.typed is not None:
        # Saved untrained: `learn` will fit to the length of the run what was not typed.
        of_preset = preset(plan.preset, plan.recipe, trained_in)[0] if plan.preset and env is not None else {}
        model.settings = merge_settings(of_preset, plan.typed)
    return model


def _copy_environment(env: gym.Env | gym.vector.VectorEnv) -> Any:
    """Copy the environment that a model trains in, so that a measurement does not step, reset or close it.

    Returns:
        For one environment a function that makes copies; a vector environment is copied as it is.

    Raises:
        UsageError: it cannot be copied.
    """
    try:
        first = copy.deepcopy(env)
    except Exception as problem:  # any: a window, a process or a handle of the environment's own
        raise UnfitEnv(
            f"the environment cannot be copied ({describe(problem)}), and measuring in it would disturb "
            "training: give the model an id or a function that makes a new environment."
        ) from problem
    return first if isinstance(env, gym.vector.VectorEnv) else lambda: copy.deepcopy(first)


def _refuse_other_spaces(adapter: EnvAdapter, other: EnvAdapter) -> None:
    """Raise a UsageError if `other`, the evaluation environment, has other observations or actions."""
    if adapter.form != other.form:
        raise Mismatch(
            f"eval_env has observations {other.form}, and env has {adapter.form}; wrap both alike.",
            field="eval_env",
        )
    there, here = ((of.spec.action_size, of.spec.index_sizes) for of in (other, adapter))
    if there != here:
        raise Mismatch("eval_env takes other actions than env; wrap both alike.", field="eval_env")


def _read_lag(**fields: Any) -> Lag:
    """Return how sensors and actuators lag, by the keyword arguments of a `Model`.

    Raises:
        UsageError: one is of another type, or out of its range.
    """
    for field in dataclasses.fields(Lag):
        name, value = field.name, fields[field.name]
        if type(field.default) is int:
            fields[name] = _whole_number(name, value)
        elif type(field.default) is bool:
            if not isinstance(value, bool):
                raise WrongValue(f"{name} is {value!r}; it must be True or False.", field=name)
        elif not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
            raise WrongValue(f"{name} is {value!r}; it must be a number.", field=name)
        else:
            fields[name] = float(value)
    return Lag(**fields)


def _whole_number(name: str, value: Any, least: int | None = None) -> int:
    """Return an argument as an int.

    Args:
        name: name of the argument, for the error.
        value: a whole number of Python or NumPy; 3.0 counts as 3.
        least: the smallest allowed value; None: no bound.

    Raises:
        UsageError: the value is no whole number, or below `least`.
    """
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not float(value).is_integer():
        raise WrongValue(f"{name} is {value!r}; it must be a whole number.", field=name)
    whole = int(value)
    if least is not None and whole < least:
        raise OutOfRange(f"{name} is {whole}; it must be {least} or more.", field=name)
    return whole


class NamedModel(Model):
    """A model whose recipe is one agent without further parts: base class of `TD3`, `SAC` and the others.

    The fields of the agent's base are keyword arguments: `TD3(env, discount=0.98)` is
    `Model("td3", env, base={"discount": 0.98})`. The signature and the docstring of a subclass list them with
    their types, defaults and meanings.
    """

    base_name: ClassVar[str]  # the recipe
    base_fields: ClassVar[frozenset[str]]

    def __init_subclass__(cls, agent: str) -> None:
        super().__init_subclass__()
        made = build(agent)
        fields = dataclasses.fields(made.base)
        cls.base_name, cls.base_fields = agent, frozenset(field.name for field in fields)
        hints = get_type_hints(type(made.base))
        arguments = [p for p in inspect.signature(Model).parameters.values() if p.name != "recipe"]
        further = [
            inspect.Parameter(f.name, KEYWORD, default=getattr(made.base, f.name), annotation=hints[f.name])
            for f in fields
        ]
        further += [
            inspect.Parameter(name, KEYWORD, default={}, annotation=Mapping[str, Any])
            for name, part in made.parts.items()
            if dataclasses.fields(cast(Any, part))
        ]
        cls.__signature__ = inspect.Signature([*arguments[:-1], *further])
        lines = [f"    {f.name}: {f.metadata['help']}" for f in fields if "help" in f.metadata]
        lines += [f"    {p.name}: fields of this part." for p in further[len(fields) :]]
        about = f"{BASE_HELP[agent]}\n\nKeyword arguments, beside those of `Model`:"
        cls.__doc__ = "\n".join([about, *lines])

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        """Refuse a policy's name, which `__init__` would take for the environment, and that for the seed."""
        for value in (*args[:1], keywords.get("policy")):
            if isinstance(value, str) and value in OTHER_POLICIES:
                raise UnknownField(
                    f"{cls.__name__} takes no '{value}', as networks follow from agent and task: write "
                    f"{cls.__name__}(env), and actor_hidden=... and critic_hidden=... for their widths."
                )
        return super().__new__(cls)

    def __init__(
        self,
        env: str | Callable[..., gym.Env] | gym.Env | gym.vector.VectorEnv,
        seed: int = 0,
        **keywords: Any,
    ) -> None:
        self._refuse_unknown(keywords)
        base = {name: keywords.pop(name) for name in [*keywords] if name in self.base_fields}
        if base:
            keywords["base"] = {**keywords.get("base", {}), **base}
        super().__init__(self.base_name, env, seed, **keywords)

    def _refuse_unknown(self, keywords: Mapping[str, Any]) -> None:
        """Raise a UsageError for an unknown keyword; it names the keyword that is probably meant."""
        known = [*inspect.signature(type(self)).parameters, "base"]
        settings = settings_of(build(self.base_name))
        for name, value in keywords.items():
            # A mapping may be settings of a part that the agent has not: `Model` names the recipe for it.
            if name not in known and name not in settings and not isinstance(value, Mapping):
                found = ours(name, [*known, *flatten(settings)])
                meant = " and ".join(map(_keyword, found)) + difference(name, found)
                hint = f"write {meant}" if found else ELSEWHERE.get(name) or nearest(name, known)
                raise UnknownField(f"{type(self).__name__} has no keyword '{name}'; {hint}.", field=name)


def _keyword(field: str) -> str:
    """Format a field `part.field` as the keyword argument of a named agent that sets it."""
    part, _, name = field.rpartition(".")
    return f"{name}=..." if part in ("", "base") else f"{part}={{{name!r}: ...}}"


class TD3(NamedModel, agent="td3"):
    pass


class SAC(NamedModel, agent="sac"):
    pass


class DQN(NamedModel, agent="dqn"):
    pass


class TD7(NamedModel, agent="td7"):
    pass


class REINFORCE(NamedModel, agent="reinforce"):
    pass


class A2C(NamedModel, agent="a2c"):
    pass


class PPO(NamedModel, agent="ppo"):
    pass


class TRPO(NamedModel, agent="trpo"):
    pass
