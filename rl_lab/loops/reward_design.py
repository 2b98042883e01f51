"""The loop of inverse reward design: read a reward as evidence, plan for what it may have meant, draw, play."""

from collections.abc import Callable

from rl_lab.agents.tabled import Tabled
from rl_lab.core.errors import UserError
from rl_lab.core.run import Run
from rl_lab.core.settings import Judged
from rl_lab.envs.abilities import Tabular
from rl_lab.looking import reward_pictures
from rl_lab.loops.judging import Judge
from rl_lab.loops.keeping import keep_arrays, keep_pictures
from rl_lab.planning.soft import dynamics, visits
from rl_lab.types import VectorEnv
from rl_lab.wanted.reward_design import Design, best_policies, letter_features


def design(env: VectorEnv, planner: Callable[..., Design], run: Run, *, eval_episodes: Judged) -> Tabled:
    """Leaves design.npz and pictures, and an agent that is judged by what the world truly pays."""
    if not isinstance(env, Tabular):
        raise UserError(f"reward_design plans in a known world, and env={run.names.get('env')} is none; "
                        "use env=lavaland")  # fmt: skip
    run.anew("designs", all((run.dir / made).is_file() for made in ("checkpoint.pt", "design.npz")))
    mdp = env.mdp.to("cpu")
    judge = Judge(env, eval_episodes, run.stream("eval"), run.say)
    with run.at_once():
        found = planner(mdp, run.stream("posterior"))
    run.begin(1, "designs")
    agent = Tabled(found.policy.to(env.device), env.states, env.device, run.stream("agent"))
    with run.at_once():
        scores = judge(agent)
    run.log({**found.metrics, **scores}, 1, keep=True)
    run.save(1, {"agent": agent})
    belief, settings = found.belief, getattr(planner, "keywords", {})
    proxy = settings["proxy"]
    keep_arrays(run, "design", {"policy": found.policy, **belief._asdict()})
    if mdp.layout is None:
        return agent
    told = belief.weights.new_tensor([float(x) for x in proxy.values()])[None]
    plans = {}
    for name, world in (("written for", settings["training"]), ("as written", mdp)):
        away = dynamics(world, float(world.gamma))
        plans[name] = (
            world,
            visits(away, best_policies(letter_features(world, list(proxy), settings["floor"]), told, away)[0]),
        )
    plans[str(settings["plan"])] = mdp, visits(dynamics(mdp, float(mdp.gamma)), found.policy)
    pictures = {"posterior": reward_pictures.posterior(list(proxy), belief), "plans": reward_pictures.plans(plans)}
    keep_pictures(run, "wanted", pictures, 1)
    return agent
