"""Train an agent, save it, load it, act with it, train it further and evaluate it.

This is the Python interface that most programs need: `qs.Model` and `qs.load`.

    python examples/quickstart.py
    python examples/quickstart.py --recipe td7 --env HalfCheetah-v5 --steps 30000
"""

import argparse

import gymnasium as gym

import qscape as qs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="td3")
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--out", default="runs/quickstart")
    args = parser.parse_args()

    model = qs.Model(args.recipe, args.env, seed=0, eval_every=1_000)
    model.learn(args.steps, progress=True)
    model.save(args.out)

    # A loaded model can predict, evaluate and train further. Its actions are in the environment's units.
    model = qs.load(args.out)
    env = gym.make(args.env)
    observation, _ = env.reset(seed=7)
    total, done = 0.0, False
    while not done:
        action, _ = model.predict(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, done = total + float(reward), terminated or truncated
    print(f"one episode by hand: {total:.1f}")
    model.learn(args.steps // 10)
    returns = model.evaluate(episodes=10)
    print(f"after {model.env_steps} steps: mean return {sum(returns) / len(returns):.1f} over 10 episodes")


if __name__ == "__main__":
    main()
