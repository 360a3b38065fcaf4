"""Relabels the episodes of a run with goals that they achieved, on the host, as the agent's part says.

An episode is relabelled when it has ended, and its relabelled rows enter replay before the next step of the
environments: a goal of the future is known no earlier, and the rewards come from the environment's own
`compute_reward`, which no compiled program can call. So every replay, and all that reads it, sees rows only.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Float

from qscape.envs import EnvAdapter
from qscape.envs.goals import GoalEpisode
from qscape.errors import OutOfRange
from qscape.offpolicy.cycle import Carry
from qscape.offpolicy.relabelling import Relabelled, relabel
from qscape.run.programs import Program, Programs
from qscape.sealed import read_json

LEAST = 16  # rows that a program writes; more are a power of two, so that few programs are compiled


class Success:
    """What is known of success in a seed's environments: whether it ends episodes, and its least reward.

    An environment without `compute_terminated` does not say which goals would have ended an episode. So it is
    read from what happened: a goal counts as reached if its reward is at least what the same step would give
    if it were met exactly, or less by no more than it was when a real goal was reached (the reward may hold
    costs that no goal changes); and reaching it ends an episode if it always did.

    Attributes:
        ends: whether a real goal that was reached ended the episode; None: none was reached yet.
        shortfall: the most by which the reward of a real goal that was reached was less than an exact one's.
        is_reported: whether any episode reported success.
    """

    def __init__(self) -> None:
        self.ends: bool | None = None
        self.shortfall = 0.0
        self.is_reported = False

    def observe(
        self,
        episode: GoalEpisode,
        real: Float[np.ndarray, " L"],
        exact: Float[np.ndarray, " L"],
    ) -> Bool[np.ndarray, " L"]:
        """Return in which steps the real goal was reached.

        Args:
            episode: the episode.
            real: the reward of each step by `compute_reward`.
            exact: what it would be if the goal were met exactly.
        """
        reported = ~np.isnan(episode.success)
        reached = np.where(reported, episode.success >= 0.5, self.allows(real, exact))
        if reached.any():
            self.shortfall = max(self.shortfall, float((exact - real)[reached].max()))
            self.ends = self.ends is not False and bool(episode.terminated[reached].all())
        return reached

    def allows(
        self, reward: Float[np.ndarray, " N"], exact: Float[np.ndarray, " N"]
    ) -> Bool[np.ndarray, " N"]:
        """Return which rewards are those of a goal that is reached; `exact`: if it were met exactly."""
        return exact - reward <= self.shortfall


class Hindsight:
    """The relabelled rows of a run, of one seed or of several.

    Attributes:
        goals: the goals of the environments of each seed.
        success: what is known of success, for each seed.
    """

    def __init__(self, programs: Programs, adapters: Sequence[EnvAdapter], numbers: Sequence[int]) -> None:
        """Begin to follow the goals of environments, before their first reset.

        Args:
            programs: those of all seeds.
            adapters: the environments of each seed.
            numbers: the seeds.

        Raises:
            UsageError: an episode with its relabelled rows does not fit into replay.
        """
        self.programs, self.numbers = programs, numbers
        self.part, self.layout = programs.agent.relabelling, programs.layout
        self.goals = [adapter.follow_goals() for adapter in adapters]
        self.success = [Success() for _ in adapters]
        self._program: Program | None = None
        limit = adapters[0].time_limit
        copies = len(self.part.draw_goals(np.random.default_rng(0), 1))
        if limit is not None and not self._fits(limit, copies):
            raise OutOfRange(
                f"base.replay_capacity is {self.layout.capacity:,}, and each environment needs room for an "
                f"episode of {limit:,} steps with {copies} relabelled copies; set it to "
                f"{self.layout.envs * self._rows(limit, copies):,} or more.",
                part="base",
                field="replay_capacity",
            )

    def notes(self) -> list[str]:
        """Return sentences for the user on how rewards are computed."""
        return self.goals[0].notes()

    def judge(self, success: float | None) -> tuple[float | None, bool]:
        """Return the success by which a policy is judged after an episode; is it the first report?

        The success is None as long as no episode reported any: some environments do when it is reached, only.
        Policies are judged in runs of one seed only, as updates of several seeds come at the same steps.
        """
        known = self.success[0]
        first = success is not None and not known.is_reported
        known.is_reported |= first
        return (float(success or 0.0) if known.is_reported else None), first

    def insert(self, carry: Carry, env_steps: int) -> Carry:
        """Relabel the episodes that ended in the last step, and write the rows into replay.

        Until then a save has the episodes themselves.

        Args:
            carry: the carry, whose replay has the rows of these episodes.
            env_steps: environment steps so far; with the seed and the environment they draw the goals.
        """
        rows: list[dict[int, Relabelled]] = []
        for k, goals in enumerate(self.goals):
            made = {
                episode.env: self._relabel(k, episode, [self.numbers[k] % 2**32, env_steps, episode.env])
                for episode in goals.take_finished()
            }
            rows.append({env: of_env for env, of_env in made.items() if of_env is not None})
        most = max((len(of_env.back) for of in rows for of_env in of.values()), default=0)
        if not most:
            return carry
        length = 1 << max(most - 1, LEAST - 1).bit_length()
        each = [self._pack(of, length) for of in rows]
        packed = each[0]
        if self.programs.seeds.shape:
            packed = Relabelled(*map(np.stack, zip(*each, strict=True)))
        return self._compiled()(carry, packed)

    def _compiled(self) -> Program:
        if self._program is None:
            agent = self.programs.agent
            changes = ("storage", "replay_state") + (("state",) if agent.normalises else ())
            function = partial(relabel, agent, self.layout, self.goals[0].first)
            self._program = Program(self.programs.map(function, 0), changes, ())
        return self._program

    def _pack(self, of_env: Mapping[int, Relabelled], length: int) -> Relabelled:
        """Return the rows of all environments of a seed, of one length; those added are not valid."""
        envs, size = self.layout.envs, self.goals[0].size
        packed = Relabelled(
            back=np.zeros((length, envs), np.int32),
            goal=np.zeros((length, envs, size), np.float32),
            reward=np.zeros((length, envs), np.float32),
            terminated=np.zeros((length, envs), bool),
            truncated=np.zeros((length, envs), bool),
            valid=np.zeros((length, envs), bool),
        )
        for env, rows in of_env.items():
            for column, values in zip(packed, rows, strict=True):
                column[: len(values), env] = values
        return packed

    def _relabel(self, seed: int, episode: GoalEpisode, entropy: Sequence[int]) -> Relabelled | None:
        """Return the relabelled rows of an episode; None: there are none. `entropy` seeds its goals."""
        length = len(episode.achieved)
        copies = self.part.draw_goals(np.random.default_rng(entropy), length)
        while copies and not self._fits(length, len(copies)):
            copies.pop()
            self.goals[seed].crowded = self.goals[seed].crowded or length
        if not copies:
            return None
        steps = np.concatenate(copies)
        at = np.tile(np.arange(length), len(copies))
        goal = episode.achieved[steps]
        achieved, infos = episode.achieved[at], [episode.infos[t] for t in at]
        reward = self.goals[seed].rewards[episode.env](achieved, goal, infos)
        self.goals[seed].note_rewards(reward)
        terminated = self._find_terminal(seed, episode, at, goal, reward)
        last = np.append(steps[1:] != steps[:-1], True) | (at == length - 1)
        return Relabelled(
            back=length - 1 - at,
            goal=goal.reshape(len(goal), -1),
            reward=reward,
            terminated=terminated,
            truncated=last & ~terminated,
            valid=np.ones(len(at), bool),
        )

    def _find_terminal(
        self, seed: int, episode: GoalEpisode, at: np.ndarray, goal: np.ndarray, reward: np.ndarray
    ) -> Bool[np.ndarray, " N"]:
        """Return which rows are terminal: copies of the steps `at`, with other goals and their rewards."""
        goals, env, known = self.goals[seed], episode.env, self.success[seed]
        achieved, infos = episode.achieved, episode.infos
        if goals.ends is not None:
            by_goal = goals.ends[env](achieved, episode.desired, infos) > 0
            of_copy = goals.ends[env](achieved[at], goal, [infos[t] for t in at]) > 0
        else:
            real, exact = (goals.rewards[env](achieved, g, infos) for g in (episode.desired, achieved))
            by_goal = known.observe(episode, real, exact) & (known.ends is not False)
            of_copy = known.allows(reward, exact[at]) & (known.ends is True)
        return of_copy | (episode.terminated & ~by_goal)[at]  # what ended for another reason ends here too

    def _rows(self, length: int, copies: int) -> int:
        """Return the most rows of a ring that an episode with relabelled copies of it takes."""
        each = 1 if self.layout.stores_next else 2  # every row may end a stretch, behind which lies a pad
        return length + 2 + each * length * copies

    def _fits(self, length: int, copies: int) -> bool:
        """Return whether an episode with relabelled copies of it fits into a ring."""
        return self._rows(length, copies) <= self.layout.ring

    # --- saving and resuming ------------------------------------------------------------------------

    def to_bytes(self, seed: int) -> np.ndarray:
        """Return the goals of a seed's running episodes, and what is known of success, as bytes of JSON.

        Episodes differ in length and infos in kind, so they have no place among the numbers of a save.
        """
        known = self.success[seed]
        about = {"ends": known.ends, "shortfall": known.shortfall, "is_reported": known.is_reported}
        text = json.dumps({"success": about, "goals": self.goals[seed].to_json()})
        return np.frombuffer(text.encode(), np.uint8)

    def restore(self, saved: Sequence[np.ndarray], goes_on: bool) -> None:
        """Go on with what `to_bytes` returned of each seed; `goes_on`: in the same episodes, else in new."""
        for goals, known, text in zip(self.goals, self.success, saved, strict=True):
            data = read_json(np.asarray(text).tobytes())
            if goes_on:
                goals.restore(data["goals"])
            about = data["success"]
            known.ends, known.is_reported = about["ends"], about["is_reported"]
            known.shortfall = about.get("shortfall", 0.0)  # 0.3.0 saved the least reward

    def forget(self) -> None:
        """Drop the steps of episodes so far, which are not in replay."""
        for goals in self.goals:
            goals.forget()
