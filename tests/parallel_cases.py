"""What several ranks do together and one process does alone; run as a script it is one of the ranks.

Each case is given `mine`, which takes this process's share of what all of them learn from, and returns tensors.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from stated import stated
from torch import Tensor
from transitions import transition

from gen_lab.models.autoencoder import Moments
from gen_lab.models.gan.networks import dcgan_generator
from gen_lab.models.likelihoods import Bernoulli
from gen_lab.models.pixelcnnpp.network import PixelCNNPP
from gen_lab.models.vqvae import vq_decoder, vq_encoder
from gen_lab.networks.causal.heads import softmax
from gen_lab.types import Spec as ImageSpec
from rl_lab import losses
from rl_lab.agents import ppo as policies
from rl_lab.agents.a2c import Acted
from rl_lab.core import distributed
from rl_lab.core.run import Run
from rl_lab.loops.training import train
from rl_lab.networks import torsos as networks
from rl_lab.types import Spec, Transition

A2C = stated("agent/a2c")
ActorCritic = stated("agent/actor_critic", entropy_coef=0.0, zero_heads=False)
MDPEnv = stated("env/base/tabular")
PPO = stated("agent/ppo")
QLearning = stated("agent/q_learning", normalise=False, zero_head=False)
gridworld = stated("env/base/gridworld", "mdp")

CPU, SPEC = torch.device("cpu"), Spec((3,), torch.float32, ("a", "b"))
NET, SGD = partial(networks.mlp, hidden=(8,), activation="Tanh"), partial(torch.optim.SGD, lr=0.3, momentum=0.5)
UPDATES, T, N = 10, 4, 6
LEARNING = dict(gamma=0.9, lambda_=0.9, rollout_length=T, max_grad_norm=0.4)
ACTOR = LEARNING | dict(value_coef=0.5, entropy_coef=0.01, standardise=True, decay_steps=400)
Mine = Callable[..., Tensor]
Case = dict[str, Tensor]


def rollouts(mine: Mine) -> list[list[Transition]]:
    """UPDATES times T transitions of N envs: episodes end and are cut off, and one half of the envs is unlike the other."""
    rng, found = torch.Generator().manual_seed(0), []
    for _ in range(UPDATES):
        obs = torch.randn(T + 1, N, 3, generator=rng) * torch.linspace(0.3, 2, N)[:, None]
        reward = torch.randn(T, N, generator=rng) + torch.linspace(-1, 2, N)
        action = torch.randint(2, (T, N), generator=rng)
        last, discount = (torch.rand(T, N, generator=rng) < p for p in (0.2, 0.9))
        parts = [mine(x) for x in (obs[:-1], action, reward, (discount | ~last).float(), last, obs[1:])]
        found.append([transition(*(x[t] for x in parts)) for t in range(T)])
    return found


def stacked(rollout: list[Transition]) -> list[Tensor]:
    return [torch.stack([t[i] for t in rollout]) for i in range(len(Transition._fields))]


def learned(agent, learn: Callable, mine: Mine) -> Case:
    """What the parameters became, and each metric of each update, averaged as a row would be."""
    seen = [distributed.averaged(learn(agent, rollout)) for rollout in rollouts(mine)]
    found = {f"metric {name}": torch.stack([torch.as_tensor(m[name]).double() for m in seen]) for name in seen[0]}
    return found | parameters(agent) | {"steps": torch.tensor(getattr(agent, "steps", 0))}


def parameters(learner) -> Case:
    parts = {name: getattr(learner, name) for name in learner.saved}
    return {f"{name} {k}": x.clone() for name, part in parts.items() if isinstance(part, torch.nn.Module)
            for k, x in part.state_dict().items()}  # fmt: skip


def a2c(mine: Mine) -> Case:
    def learn(agent, rollout):
        done = [agent.network(t.obs) for t in rollout]
        return agent.learn([(Acted(losses.pick(log_probs, t.action), losses.entropy(log_probs), value), t)
                            for (log_probs, value), t in zip(done, rollout, strict=True)])  # fmt: skip

    return learned(A2C(SPEC, CPU, 0, network=NET, optimizer=SGD, **ACTOR), learn, mine)


def ppo(mine: Mine, **changes) -> Case:
    @torch.no_grad()
    def acted(agent, t):
        log_probs, value = agent.network(t.obs)
        return policies.Acted(t.obs, losses.pick(log_probs, t.action), value)

    def learn(agent, rollout):
        return agent.learn([(acted(agent, t), t) for t in rollout])

    knobs = dict(epochs=3, minibatches=1, clip=0.05, decay_clip=True, value_clip=0.3) | changes
    return learned(PPO(SPEC, CPU, 0, network=NET, optimizer=SGD, **ACTOR | knobs), learn, mine)


def q_learning(mine: Mine, **changes) -> Case:
    def learn(agent, rollout):
        agent.decay.to(agent.steps)
        agent.count_steps(rollout[0].reward.numel() * T)
        obs, action, reward, discount, last, next_obs, duration = stacked(rollout)
        value = agent.worth(next_obs.flatten(0, 1)).view_as(reward)
        return agent.learn(obs, action, reward, discount, last, duration, value)

    knobs = LEARNING | dict(network=NET, optimizer=SGD, epsilon=lambda steps: 0.1, epochs=2, decay_steps=400)
    return learned(QLearning(SPEC, CPU, 0, **knobs | changes), learn, mine)


def actor_critic(mine: Mine) -> Case:
    def learn(agent, rollout):
        obs, action, reward, discount, last, next_obs, duration = stacked(rollout)
        value = agent.worth(next_obs.flatten(0, 1)).view_as(reward)
        return agent.learn(obs, action, reward, discount, last, duration, value)

    knobs = dict(actor=NET, critic=NET, actor_optimizer=SGD, critic_optimizer=SGD, entropy_coef=0.01)
    return learned(ActorCritic(SPEC, CPU, 0, **LEARNING | knobs), learn, mine)


def standardised(mine: Mine) -> Case:
    """What a network takes of its first frames, of all ranks."""
    eyes, rng = networks.StandardFrames((4, 3, 3)), torch.Generator().manual_seed(0)
    frames = torch.randint(256, (UPDATES, 12, 4, 3, 3), generator=rng) // torch.arange(1, 13).view(-1, 1, 1, 1)
    for obs in mine(frames.byte()):
        eyes.gather(obs)
    return eyes.state_dict()


def images(mine: Mine, size: int = 4) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [mine(torch.bernoulli(torch.linspace(0.1, 0.9, N)[:, None, None, None].expand(N, 1, size, size),
                                 generator=rng).byte(), 0) for _ in range(UPDATES)]  # fmt: skip


def updated(model, mine: Mine, size: int = 4) -> Case:
    for x in images(mine, size):
        model.update(x)
    return parameters(model)


def pixelcnnpp(mine: Mine, dropout: float = 0.0) -> Case:
    """Its first kernels are scaled by the first batch."""
    network = partial(PixelCNNPP, channels=4, blocks=1, resolutions=2, dropout=dropout)
    model = stated("model/pixelcnn", network=network, head=softmax, average=0.9,
                   optimizer=partial(torch.optim.SGD, lr=0.01))(ImageSpec((1, 4, 4), 2), CPU, 0)  # fmt: skip
    model.part_ways(distributed.rank())
    return updated(model, mine)


def codebook(mine: Mine) -> Case:
    torch.manual_seed(0)
    book, z = stated("model/vqvae", "codebook", codes=3, decay=0.9, dead_below=0)(2), torch.randn(UPDATES, 12, 2)
    for part in mine(z):
        book.follow(part, book.nearest(part), torch.Generator())
    return book.state_dict()


def moments(mine: Mine) -> Case:
    codes = Moments(2)
    for part in mine(torch.randn(UPDATES, 12, 2, generator=torch.Generator().manual_seed(0))):
        codes.follow(part)
    return codes.state_dict()


def vqvae(mine: Mine) -> Case:
    """Whose codes start, and start anew, at vectors of one rank."""
    coder = {"channels": 6, "halvings": 1, "blocks": 1}
    network = partial(PixelCNNPP, channels=4, blocks=1, resolutions=1, dropout=0.5)
    settings = {
        "encoder": partial(vq_encoder, **coder),
        "decoder": partial(vq_decoder, **coder),
        "codebook": stated("model/vqvae", "codebook", codes=5, dead_below=2),
        "prior": stated("model/pixelcnn", network=network, head=softmax, optimizer=SGD),
        "likelihood": Bernoulli,
        "optimizer": SGD,
    }
    vqvae = stated("model/vqvae", **settings, dimensions=2, autoencoder_steps=UPDATES)
    model = vqvae(ImageSpec((1, 4, 4), 2), CPU, 0)
    model.part_ways(distributed.rank())
    return updated(model, mine)


def gan(mine: Mine) -> Case:
    """Running averages of batch statistics are each rank's own."""
    adam = partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999))
    settings = {
        "generator": partial(dcgan_generator, channels=4),
        "discriminator": stated("model/dcgan", "discriminator", channels=4),
        "generator_optimizer": adam,
        "discriminator_optimizer": adam,
    }
    model = stated("model/dcgan", **settings, latents=3, average=0.9)(ImageSpec((1, 8, 8), 2), CPU, 0)
    model.part_ways(distributed.rank())
    return {name: x for name, x in updated(model, mine, 8).items() if "running_" not in name}


def whole_run(folder: Path) -> Case:
    """A2C from first step to last, in envs of this rank's own."""
    env, eval_env = (MDPEnv(gridworld("S.G\n..X", noise=0.2), num_envs=3, time_limit=5) for _ in range(2))
    agent = partial(A2C, network=NET, optimizer=SGD, **ACTOR)
    with Run(folder, 0, "cpu", names={"name": "test"}, config={}, checkpoint_every=0.0) as run:
        agent = train(env, agent, run, eval_env=eval_env, total_steps=1_200, eval_every=600, eval_episodes=3, eval_drawn=0,
                      stop_at=None,
                      log_every=120)  # fmt: skip
    streams = {"own env": env.rng.get_state(), "own actions": agent.rng.get_state()}
    return parameters(agent) | streams | {"steps": torch.tensor(agent.steps)}


EQUAL = {  # to the joined batch in one process
    "a2c": a2c, "ppo": ppo, "q_learning": q_learning, "q_huber": partial(q_learning, loss="huber"),
    "table": partial(q_learning, network=networks.linear, normalise=True, max_grad_norm=1e9, optimizer=partial(torch.optim.SGD, lr=0.5)),
    "actor_critic": actor_critic, "pixelcnnpp": pixelcnnpp, "codebook": codebook, "moments": moments,
    "standardised": standardised,
}  # fmt: skip
ALIKE = {  # in all ranks
    "ppo_minibatches": partial(ppo, minibatches=4), "pqn": partial(q_learning, minibatches=4),
    "dropout": partial(pixelcnnpp, dropout=0.5), "vqvae": vqvae, "gan": gan,
}  # fmt: skip


def share(x: Tensor, dim: int = 1) -> Tensor:
    return x.chunk(distributed.size(), dim)[distributed.rank()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with distributed.joined():
        found = {name: case(share) for name, case in {**EQUAL, **ALIKE}.items()}
        found["run"] = whole_run(folder / "run")
        torch.save(found, folder / f"{distributed.rank()}.pt")
