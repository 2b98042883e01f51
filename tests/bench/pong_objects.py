"""Do an autoencoder's reconstructions of Pong keep the ball and the paddles? Small things weigh little in pixels.

rl-lab record env=atari env.game=pong frames=true frame_size=64x64 steps=8_000 out=<recording>
gen-lab train data=recorded data.path=<recording> data.what=frames data.size=null data.grey=false data.levels=256 \
    model=vae_world_models
gen-lab train experiment=vae_recorded data.path=<recording>
python tests/bench/pong_objects.py <run folder> ...

Square frames of any size. An object is what differs from the median frame, by the columns where only it can be. It is
recalled where the reconstruction keeps at least half of its contrast to that frame; "kept" is the mean share of contrast.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from gen_lab.trained.loading import load

DIFFERS = 0.1  # of [0, 1], the root of the mean square over colours
FIELD = 11 / 64, 58 / 64  # rows between the walls, as shares of the height
OBJECTS = {"left paddle": (6 / 64, 9 / 64), "ball": (10 / 64, 54 / 64), "right paddle": (55 / 64, 59 / 64)}  # columns
AT_ONCE = 200


def contrast_kept(x: Tensor, y: Tensor, still: Tensor, columns: tuple[float, float]) -> Tensor:
    """For each frame of x [B, C, S, S] that shows the object, the share of its contrast to `still` that y has, [K]."""
    window = ..., *(slice(*(round(share * x.shape[-1]) for share in part)) for part in (FIELD, columns))
    true, made = (x - still)[window], (y - still)[window]
    shown = true.square().mean(1, keepdim=True).sqrt() > DIFFERS
    there = shown.flatten(1).any(1)
    weight = true * shown
    return ((weight * made).flatten(1).sum(1) / weight.square().flatten(1).sum(1).clamp(min=1e-9))[there]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    for folder in parser.parse_args().runs:
        fitted = load(folder, "cpu")
        data, scaled = fitted.data, fitted.data.spec.scaled
        still = scaled(data.train[::20]).median(0).values
        kept = {name: [] for name in OBJECTS}
        for pixels, _ in data.tested(AT_ONCE):
            x, y = scaled(pixels), fitted.model.reconstruct(pixels)
            for name, columns in OBJECTS.items():
                kept[name].append(contrast_kept(x, y, still, columns))
        print(f"{folder.parent.name}, {fitted.step:,} updates, {len(data.test):,} held-out frames")
        for name, parts in kept.items():
            share = torch.cat(parts)
            print(f"  {name:<13} in {len(share):>5,} frames: recalled {(share > 0.5).float().mean():6.1%}, "
                  f"kept {share.mean():6.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
