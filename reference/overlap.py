"""A run with `--overlap` in one file: which parameters choose which action.

While the environments make step t, the learner makes the updates that were due after step t - 1. So these
cannot choose the action of step t: it comes from the parameters after the updates due up to step t - 2.
Nothing else differs from a usual run. An update sees every transition up to the step after which it was due,
and what counts steps, such as the warm-up, counts those that were made.

The loop waits for everything, because only the order is its subject. What it calls may be any agent's, for
example the functions of `td3.py`.
"""


def train(environments, parameters, replay, steps, choose, insert, updates_due, learn):
    """Make `steps` steps of E environments side by side; return the parameters and the replay after them.

    Args:
        environments: have an `observation` [E, S] and a `step` that takes actions [E, A].
        parameters: the agent's parameters before its first update.
        replay: an empty replay.
        steps: how many steps to make, each of all environments.
        choose: takes parameters, observations and the number of the step; returns actions.
        insert: takes a replay, actions and what `step` returned of them; returns the new replay.
        updates_due: takes the number of a step; returns how many updates are due after it.
        learn: takes parameters, a replay and the number of the step after which the update is due; makes one
            update and returns both anew, as priorities are part of a replay.
    """
    after = {-2: parameters, -1: parameters}  # by step: the parameters after the updates due up to it
    for t in range(steps):
        action = choose(after[t - 2], environments.observation, t)
        replay = insert(replay, action, environments.step(action))
        after[t] = after[t - 1]
        for _ in range(updates_due(t)):
            after[t], replay = learn(after[t], replay, t)
    return after[steps - 1], replay
