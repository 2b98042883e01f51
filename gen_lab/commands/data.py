"""Which data sets are at hand, what is missing of them, and where to get it; all of it checked."""

from collections.abc import Sequence
from pathlib import Path

from gen_lab.data.cache import Source, cache
from gen_lab.data.cifar import CIFAR10, cifar_arrays
from gen_lab.data.idx import FASHION, MNIST, STATIC, amat_arrays, idx_arrays
from gen_lab.data.published import Reader, sought
from rl_lab.core.errors import UserError, pasted
from rl_lab.core.room import sized

PUBLISHED: list[tuple[str, Source, Reader]] = [
    ("data=mnist", MNIST, idx_arrays),
    ("data=mnist data.protocol=static", STATIC, amat_arrays),
    ("data=fashion_mnist", FASHION, idx_arrays),
    ("data=cifar10", CIFAR10, cifar_arrays),
]


def data(runs: Sequence[Path] = (), *, root: str | None) -> int:
    """Looks through the folder that `data.root` names; returns 2 where a file in it is damaged. Raises UserError."""
    if runs:
        raise UserError(f"{runs[0]} is a folder; to look through it type {pasted(f'root={runs[0]}')}")
    if root is not None and not cache(root).is_dir():
        is_there = "is a file, and the sets lie in a folder" if cache(root).exists() else "is not there"
        raise UserError(f"root={root} {is_there}; name a folder, or leave root= out for {cache(None)}")
    print(f"looked through {cache(root)} (another folder: root=<folder>; of a run data.root=<folder>)")
    faulty: list[str] = []
    for choice, source, read in PUBLISHED:
        parts, faults = sought(source, root, read)
        missing = [i for i, part in enumerate(source.parts) if part.name not in parts]
        places = sorted({found.where for found in parts.values()})
        if not missing:
            print(f"\n{choice}: there, its sha256 right", *places, sep="\n  ")
            continue
        one_each = len(source.files) == len(source.parts)
        files = [source.files[i] for i in missing] if one_each else source.files
        names = ", ".join(source.parts[i].name for i in missing)
        print(f"\n{choice}: missing {names} ({sized(sum(file.size for file in files))})", *places, sep="\n  ")
        print(f"  from {source.mirrors[0]}: {' '.join(file.name for file in files)}",
              "  fetched by the first run; or put them there yourself, packed or not", sep="\n")  # fmt: skip
        faulty += faults
    if faulty:
        print("\nnot what they should be:", *dict.fromkeys(faulty), sep="\n  ")
    return 2 if faulty else 0
