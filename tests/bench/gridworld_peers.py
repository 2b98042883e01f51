"""Steps a second of gymnax's FrozenLake and navix's Empty-8x8: one figure for each line read, one line a question.

Run by gridworld.py under a Python that has them: `gymnax 16384 1.0` on stdin (who, how many envs, seconds).
"""

import os
import sys
import time

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
import jax

UNROLL = 64  # steps of one compiled call, so that Python's share vanishes


def gymnax_rollout(num_envs: int):
    """State only: the observation, which is the state, is not kept."""
    import gymnax

    env, params = gymnax.make("FrozenLake-misc", map_name="8x8")
    keys = jax.random.split(jax.random.key(0), num_envs)
    _, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)

    def step(carry, action):
        key, state = carry
        key, draw = jax.random.split(key)
        _, state, reward, done, _ = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
            jax.random.split(draw, num_envs), state, action, params
        )[:5]
        return (key, state), (reward, done)

    return step, (jax.random.key(1), state), env.num_actions


def navix_rollout(num_envs: int):
    import navix

    env = navix.make("Navix-Empty-8x8-v0", observation_fn=navix.observations.none)
    timestep = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), num_envs))

    def step(timestep, action):
        timestep = jax.vmap(env.step)(timestep, action)
        return timestep, (timestep.reward, timestep.step_type)

    return step, timestep, len(env.action_set)


def compiled(who: str, num_envs: int):
    step, carry, num_actions = {"gymnax": gymnax_rollout, "navix": navix_rollout}[who](num_envs)
    actions = jax.random.randint(jax.random.key(2), (UNROLL, num_envs), 0, num_actions)

    @jax.jit
    def rollout(carry):
        carry, (reward, done) = jax.lax.scan(step, carry, actions)
        return carry, reward.sum(), done.sum()

    for _ in range(2):  # the first result's types differ from a fresh state's: it is compiled twice
        carry = jax.block_until_ready(rollout(carry))[0]
    return rollout, carry


def main() -> None:
    kept = {}
    for line in sys.stdin:
        who, num_envs, seconds = line.split()
        question = who, int(num_envs)
        rollout, carry = kept.get(question) or compiled(*question)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < float(seconds):
            carry = jax.block_until_ready(rollout(carry))[0]
            count += UNROLL * int(num_envs)
        kept[question] = rollout, carry
        print(count / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
