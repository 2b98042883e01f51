"""What the loop of gen_lab can be told whatever the model is: rates, averages, parts of a batch, when to end."""

import json
import math
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from stated import stated
from stopping import StopsAt, equal

from gen_lab.__main__ import COMMANDS
from gen_lab.data import Images
from gen_lab.losses import pieces
from gen_lab.networks.averaging import Averages, weights
from gen_lab.networks.best import learned
from gen_lab.networks.compiling import as_they_are, compile_networks
from rl_lab.core import checkpoint
from rl_lab.core.errors import UserError
from rl_lab.core.interrupts import Halted
from rl_lab.core.launching import cli
from rl_lab.core.run import Run, Stopped
from rl_lab.core.schedules import share

digits, fit = stated("data/digits"), stated("loop/fit", judge=stated("judge/none"), iwae_samples=0)
vae, autoencoder, gan = stated("model/vae"), stated("model/autoencoder"), stated("model/gan_mlp")
CPU = torch.device("cpu")
of_torch_itself = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method:DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning"
)


@pytest.fixture(scope="module")
def data() -> Images:
    whole = digits(protocol="binarised")
    return whole._replace(train=whole.train[:300], train_labels=whole.train_labels[:300])


def kept(data: Images) -> Images:
    """With the last hundred of its images to validate on."""
    return data._replace(train=data.train[:200], validation=data.train[200:], validation_labels=data.train_labels[200:],
                         train_labels=data.train_labels[:200])  # fmt: skip


def fitted(folder: Path, data: Images, model=vae, **settings):
    usual = {"batch_size": 50, "total_steps": 12, "eval_every": 4, "pictured": 0}
    with Run(folder, 0, "cpu", names={"name": "test"}, config={}, checkpoint_every=math.inf) as run:
        return fit(data, model, run, **usual | settings)


def rows(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: x for k, x in row.items() if k != "seconds"} for row in found]


@pytest.mark.parametrize(
    ("schedule", "settings", "shares"),
    [
        ("constant", {}, [1, 1, 1, 1, 1]),
        ("constant", {"warm_up": 4}, [0.25, 0.5, 0.75, 1, 1]),
        ("cosine", {}, [1, 0.9755, 0.9045, 0.7939, 0.6545]),  # of 10 updates: (1 + cos(pi t / 10)) / 2
        ("cosine", {"warm_up": 2}, [0.5, 1, 1, 0.9619, 0.8536]),
        ("linear", {}, [1, 0.9, 0.8, 0.7, 0.6]),
        ("step", {"step_every": 2, "step_factor": 0.1}, [1, 1, 0.1, 0.1, 0.01]),
    ],
)
def test_rates_follow_the_updates_number(schedule, settings, shares):
    found = [share(schedule, step, 10, **settings) for step in range(5)]
    assert found == pytest.approx(shares, abs=5e-5)
    assert share("cosine", 10, 10) == share("linear", 10, 10) == 0


@pytest.mark.parametrize("model", [vae, autoencoder, gan], ids=["vae", "autoencoder", "gan"])
def test_the_rates_of_all_optimizers_fall(tmp_path, data, model):
    learner = fitted(tmp_path, data, model, schedule="linear", warm_up=2)
    optimizers = [x for x in vars(learner).values() if isinstance(x, torch.optim.Optimizer)]
    assert [group["lr"] for x in optimizers for group in x.param_groups] == pytest.approx([1e-4] * len(optimizers))


def test_averages_are_of_all_weights_and_shown_in_their_place(data):
    learner = vae(data.spec, CPU, seed=0)
    averages, expected = Averages(learner, 0.5), [p.detach().clone() for p in weights(learner)]
    for updates in 1, 2, 3:
        learner.update(data.train[:50])
        averages.follow()
        decay = min(0.5, (1 + updates) / (10 + updates))
        expected = [decay * a + (1 - decay) * p.detach() for a, p in zip(expected, weights(learner), strict=True)]
    trained = [p.detach().clone() for p in weights(learner)]
    with averages.shown():
        assert all(torch.allclose(p, a, atol=1e-6) for p, a in zip(weights(learner), expected, strict=True))
    assert equal([p.detach() for p in weights(learner)], trained) and len(trained) == 8


SETTINGS = {"schedule": "cosine", "warm_up": 3, "average": 0.9, "best": True, "accumulate": 2}


@pytest.mark.parametrize("at", [3, 9])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, data, at):
    class Stopping(StopsAt, vae(data.spec, CPU, seed=0).__class__):
        pass

    def stopping(*args, **knobs):
        made = vae(*args, **knobs)
        made.__class__, made.left = Stopping, at
        return made

    fitted(tmp_path / "whole", kept(data), **SETTINGS)
    with pytest.raises(Stopped):
        fitted(tmp_path / "parts", kept(data), stopping, **SETTINGS)
    fitted(tmp_path / "parts", kept(data), **SETTINGS)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    one, two = (checkpoint.read(tmp_path / name / "checkpoint.pt") for name in ("parts", "whole"))
    assert all(equal(one[name], two[name]) for name in ("model", "average", "best"))


def test_parts_of_a_batch_are_learned_as_the_whole(data):
    assert [(len(x), label, part) for x, label, part in pieces(data.train[:5], None, 2)] == [
        (3, None, 0.6),
        (2, None, 0.4),
    ]
    whole, parts = (autoencoder(data.spec, CPU, seed=0) for _ in range(2))
    parts.in_parts = 4
    for start in 0, 50:
        one, other = (x.update(data.train[start : start + 50]) for x in (whole, parts))
        assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in other.items()}, rel=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(whole), weights(parts), strict=True))


def small(name: str, **sizes):
    """A model with a network of these sizes, whose rate falls by itself."""
    return stated(name, network=stated(name, "network", **sizes), decay=0.99)


@pytest.mark.parametrize("name", ["model/vae", "model/vae_iwae", "model/autoencoder", "model/pixelcnn"])
def test_who_takes_a_batch_in_parts(tmp_path, data, name):
    model = small(name, channels=4, blocks=1) if "pixelcnn" in name else stated(name)
    learner = fitted(tmp_path, data, model, accumulate=3, total_steps=2)
    assert learner.in_parts == 3


@pytest.mark.slow
@of_torch_itself
def test_compiled_networks_learn_as_plain_ones_and_are_judged_as_they_are(tmp_path, data):
    network = stated("model/pixelcnnpp", "network", channels=2, blocks=1, resolutions=1, dropout=0.0)
    whole = stated("model/pixelcnnpp", network=network, head=stated("model/head/softmax"))
    compiled, plain = (whole(data.spec, device=CPU, seed=0) for _ in range(2))
    compile_networks(compiled)
    for start in 0, 50, 100:  # the first sets gains and biases from its batch
        one, other = (x.update(data.train[start : start + 50]) for x in (compiled, plain))
        assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in other.items()}, rel=1e-3)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    with as_they_are():
        compiled.score(data.test[:7], torch.Generator())
        compiled.network(data.test[:7])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@of_torch_itself
def test_a_compiled_run_comes_to_what_a_plain_one_does(tmp_path, data, capsys):
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    fitted(tmp_path / "compiled", data, compile=True)
    assert "loop.compile=true: the first updates wait" in capsys.readouterr().err
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    fitted(tmp_path / "plain", data)
    for one, other in zip(rows(tmp_path / "compiled"), rows(tmp_path / "plain"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (stated("model/independent"), "Independent has no network to compile"),
        (stated("model/gan_mlp", penalty=10.0, loss="wasserstein"), "a gradient penalty differentiates twice"),
    ],
)
def test_what_cannot_be_compiled(tmp_path, data, model, words):
    with pytest.raises(UserError, match=words):
        fitted(tmp_path, data, model, compile=True)


def test_compiling_without_a_compiler(tmp_path, data, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        fitted(tmp_path, data, compile=True)


def test_best_keeps_what_did_best_and_the_last_evaluation_is_of_it(tmp_path, data):
    scores = iter([5.0, 3.0, 4.0, 6.0])

    class Rising(vae(data.spec, CPU, seed=0).__class__):
        def score(self, x, generator, iwae_samples=0, label=None):
            return {"nll_bound_nats": torch.full((len(x),), next(scores, 9.0))}

    def rising(*args, **knobs):
        made = vae(*args, **knobs)
        made.__class__ = Rising
        return made

    learner = fitted(tmp_path, kept(data), rising, best=True)
    state = checkpoint.read(tmp_path / "checkpoint.pt")
    assert (state["best"]["step"], state["best"]["score"], state["best"]["worse"]) == (4, 3.0, 2)
    assert not equal(state["best"]["learned"]["encoder"], state["model"]["encoder"])
    assert equal(learned(learner)["encoder"], state["model"]["encoder"])  # what is resumed is what it learned last


def test_the_last_weights_may_be_the_best(tmp_path, data, capsys):
    fitted(tmp_path, kept(data), best=True)
    state = checkpoint.read(tmp_path / "checkpoint.pt")
    assert (state["best"]["step"], state["best"]["worse"]) == (12, 0)
    assert equal(state["best"]["learned"]["encoder"], state["model"]["encoder"])
    assert "the last evaluation is of update 12, which did best" in capsys.readouterr().err


def test_the_last_row_has_the_test_images_and_the_validation_images_by_the_best_weights(tmp_path, data):
    fitted(tmp_path, kept(data), best=True)
    found, best = rows(tmp_path), checkpoint.read(tmp_path / "checkpoint.pt")["best"]
    names = [f"eval/bits_per_dim_bound[{data.name}]", f"eval/bits_per_dim_bound[{data.name}-validation]"]
    assert set(names) <= found[-1].keys() and found[-1][names[1]] == pytest.approx(best["score"])


def test_the_weighing_of_the_last_weights_is_interrupted_and_done_on_resuming(tmp_path, data):
    """Nothing of the updates before it is lost, and the end is that of a run at one go."""

    class Halting(vae(data.spec, CPU, seed=0).__class__):
        def score(self, x, generator, iwae_samples=0, label=None):
            if self.halts and self.seen == 12:
                self.halts.clear()
                raise Halted(signal.SIGINT)
            return super().score(x, generator, iwae_samples, label)

        def update(self, x, label=None):
            self.seen += 1
            return super().update(x, label)

    def halting(*args, **knobs):
        made = vae(*args, **knobs)
        made.__class__, made.halts, made.seen = Halting, [True], 0
        return made

    with pytest.raises(Stopped):
        fitted(tmp_path / "cut", kept(data), halting, best=True)
    assert checkpoint.read(tmp_path / "cut/checkpoint.pt")["step"] == 12
    fitted(tmp_path / "cut", kept(data), best=True)
    fitted(tmp_path / "whole", kept(data), best=True)
    assert rows(tmp_path / "cut")[-1] == rows(tmp_path / "whole")[-1]
    cut, whole = (checkpoint.read(tmp_path / f"{name}/checkpoint.pt")["best"] for name in ("cut", "whole"))
    assert equal(cut, whole)


def test_a_prior_that_has_not_begun_ends_no_run(tmp_path, data):
    """Before it does, the likelihood of a VQ-VAE rests on codes that nobody models, and may only grow worse."""
    vqvae = partial(stated("model/vqvae"), autoencoder_steps=8)
    fitted(tmp_path, kept(data), vqvae, total_steps=12, eval_every=1, patience=1)
    assert checkpoint.read(tmp_path / "checkpoint.pt")["best"]["step"] >= 8


@pytest.mark.parametrize("name", ["independent", "bernoulli_mixture"])
@pytest.mark.parametrize(
    ("settings", "words"), [({"schedule": "cosine"}, "has no learning rate"), ({"average": 0.9}, "learns no weights")]
)
def test_rates_and_averages_are_refused_where_nothing_descends(tmp_path, data, name, settings, words):
    with pytest.raises(UserError, match=f"would be ignored, as .* {words}"):
        fitted(tmp_path, data, stated(f"model/{name}"), **settings)


def test_a_judge_sees_the_test_set_once_where_others_validate(tmp_path, data):
    judges = []

    def judge(data, say):
        def judged(model, rng):
            judges.append(len(data.test))
            return {}

        judged.about = "samples"
        return judged

    fitted(tmp_path / "kept", kept(data), judge=judge)
    assert judges == [len(data.test)]
    fitted(tmp_path / "plain", data, judge=judge)
    assert len(judges) == 1 + 4


def test_patience_ends_a_run(tmp_path, data):
    """Counting pixels is done in an epoch."""
    still = stated("model/independent")
    learner = fitted(tmp_path / "counts", kept(data), still, patience=2, total_steps=400, eval_every=5)
    ended = json.loads((tmp_path / "counts/summary.json").read_text())
    assert ended["state"] == "finished" and ended["step"] < 400 and learner.counts.sum() > 0
    last = rows(tmp_path / "counts")[-1]
    assert last["step"] == ended["step"] and "eval/nll_nats[digits-binarised]" in last


def test_epochs_in_place_of_updates(tmp_path, data):
    fitted(tmp_path, data, epochs=3, batch_size=70)
    assert json.loads((tmp_path / "summary.json").read_text())["step"] == 3 * 4  # of 300 images, 20 left over


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"best": True}, "set data.validation"),
        ({"patience": 2}, "set data.validation"),
        ({"best": True, "eval_every": None}, "loop.eval_every=null leaves one alone"),
        ({"schedule": "step"}, "belong together"),
        ({"step_every": 5}, "belong together"),
        ({"accumulate": 51}, "loop.accumulate=51 must be at most loop.batch_size=50"),
        ({"warm_up": 13}, "loop.warm_up=13 is longer than the run of 12 updates"),
        ({"warm_up": 4, "epochs": 1, "batch_size": 100}, "longer than the run of 3 updates"),
        ({"schedule": "step", "step_every": 12}, "leaves the rates as they are in a run of 12 updates"),
    ],
)
def test_settings_that_lack_something(tmp_path, data, settings, words):
    with pytest.raises(UserError, match=words):
        fitted(tmp_path, data, **settings)


def test_one_image_has_a_score_and_no_standard_error(tmp_path, data):
    fitted(tmp_path, data, eval_images=1, total_steps=1)
    first, last = (row for row in rows(tmp_path) if any(name.startswith("eval/") for name in row))
    assert "_se[" in " ".join(last) and "_se[" not in " ".join(first)


def test_a_weight_that_rises_for_longer_than_the_run_is_said(tmp_path, data, capsys):
    fitted(tmp_path, data, stated("model/vae", warm_up=48))
    assert (
        "model.warm_up=48 is longer than the run of 12 updates: it ends with a weight of 0.25"
        in capsys.readouterr().err
    )


def test_a_prior_that_never_learns_is_said(tmp_path, data, capsys):
    fitted(tmp_path, data, stated("model/vqvae", autoencoder_steps=48))
    said = "model.autoencoder_steps=48 are all of this run: the prior, from which images are sampled, learns nothing"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("gan_mlp", {"accumulate": 2}, "needs a batch whole"),
        ("gan_mlp", {"average": 0.9}, "model.average=0"),
        ("pixelcnn", {"schedule": "cosine"}, "model.decay=1"),
        ("pixelcnn", {"warm_up": 5}, "model.decay=1"),
        ("pixelcnn", {"average": 1.0}, "loop.average=1 would stay at the first weights"),
        ("gan_mlp", {"best": True}, "has none"),
        ("vqvae", {"schedule": "cosine"}, "need model.prior.decay=1: it is 0.9"),
        ("vqvae", {"average": 0.9}, "needs model.prior.average=0: it is 0.5"),
    ],
)
def test_settings_that_the_model_contradicts(tmp_path, data, model, settings, words):
    prior = {"prior": stated("model/vqvae", "prior", decay=0.9, average=0.5)} if model == "vqvae" else {}
    plain = model in ("gan_mlp", "vqvae")
    model = stated(f"model/{model}", **prior) if plain else small(f"model/{model}", channels=4, blocks=1)
    with pytest.raises(UserError, match=words):
        fitted(tmp_path, kept(data), model, **settings)


def test_the_line_of_an_epoch(capsys):
    from rl_lab.core.progress import Progress

    progress = Progress("x")
    progress.an_epoch = 50.0
    progress.begin(100, "updates", 0)
    assert "epoch 1.5" in progress._line("", 75, progress._start + 10, 80)


def test_what_a_person_types(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["train", "experiment=vae_digits", "tracker=none", "device=cpu", "threads=1", "loop.eval_images=50"]
    assert (
        cli.main("gen-lab", "gen", COMMANDS, [*short, "loop.epochs=1", "loop.schedule=cosine", "loop.average=0.99"])
        == 0
    )
    said = capsys.readouterr()
    assert "11/11" in said.out + said.err or json.loads(next(tmp_path.rglob("summary.json")).read_text())["step"] == 11
    assert cli.main("gen-lab", "gen", COMMANDS, [*short, "loop.step_factor=0.5"]) == 2
    assert (
        "would be ignored, as loop.schedule=constant; leave it out, or type loop.schedule=step"
        in capsys.readouterr().err
    )
    assert cli.main("gen-lab", "gen", COMMANDS, [*short, "model.average=0.99"]) == 2
    assert "loop.average" in capsys.readouterr().err
    line = "gen-lab: loop.total_steps=22 would be ignored, as loop.epochs=1 stands in its place; leave it out, or type "
    for given in [*short, "loop.epochs=1", "hydra.run.dir=none"], ["train", f"run={next(tmp_path.glob('runs/*/*'))}"]:
        assert cli.main("gen-lab", "gen", COMMANDS, [*given, "loop.total_steps=22"]) == 2
        assert capsys.readouterr().err == f"{line}loop.epochs=null too\n"
    others = {
        "model=dcgan model.noise_updates=9": "model.noise_updates=9 would be ignored, as model.noise=0.0; leave it out, or type model.noise=... too",
        "loop.pictured=0 loop.picture_every=1": "loop.picture_every=1 would be ignored, as loop.pictured=0; leave it out, or type "
        "loop.pictured=... too",
        "model=vqvae model.encoder.halvings=1": "model.decoder makes 16 x 16 of what model.encoder makes of 8 x 8; give both the same halvings",
        "data=gaussian_ring model=gan_mlp data.radius=1e39": "data.radius=1e+39 must be at most 1e+06",
    }
    for given, line in others.items():
        assert cli.main("gen-lab", "gen", COMMANDS, ["train", "tracker=none", *given.split()]) == 2
        assert capsys.readouterr().err == f"gen-lab: {line}\n"
    gan = ["train", "experiment=dcgan_digits", "tracker=none", "loop.iwae_samples=5"]
    assert cli.main("gen-lab", "gen", COMMANDS, gan) == 2
    line = "gen-lab: loop.iwae_samples=5 would be ignored: it needs model.importance_samples, and here there is none; leave it out\n"
    assert capsys.readouterr().err == line
    assert cli.main("gen-lab", "gen", COMMANDS, [*short, "model.weight_decay=0.1"]) == 2
    assert "write +model.optimizer.weight_decay=..." in capsys.readouterr().err
