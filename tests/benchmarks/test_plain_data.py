import torch
from torch.utils.data import DataLoader

from benchmarks.plain_data import PrefixDataset, materialise_prefixes
from pipeline.sequences import FlatSequences, training_targets

LENGTHS = [3, 4, 12, 7, 5, 8]
MAX_LEN = 5


def build_users():
    random = torch.Generator().manual_seed(0)
    return [
        list(
            zip(
                torch.randint(1, 99, (length,), generator=random).tolist(),
                torch.randint(1, 10**9, (length,), generator=random).sort().values.tolist(),
                strict=True,
            )
        )
        for length in LENGTHS
    ]


def flatten(users):
    items, stamps = zip(*(event for events in users for event in events), strict=True)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    return FlatSequences(torch.tensor(items), torch.tensor(stamps), offsets)


def test_rows_are_the_samples_of_the_flat_arrays():
    users = build_users()
    sequences = flatten(users)
    rows = materialise_prefixes(users, held_out=2)
    targets_at = training_targets(sequences.offsets_U, torch.full((len(users),), 2))
    assert len(rows) == len(targets_at) == sum(n - 3 for n in LENGTHS)
    loader = DataLoader(PrefixDataset(rows, MAX_LEN), batch_size=len(rows))
    plain = next(iter(loader))
    ours = sequences.gather(targets_at, MAX_LEN, "leaked")
    assert torch.equal(plain["items"], ours.items_BL)
    assert torch.equal(plain["timestamps"], ours.timestamps_BL)
    assert torch.equal(plain["length"], ours.lengths_B)
    assert torch.equal(plain["target"], ours.targets_B)
    assert torch.equal(plain["user"], ours.users_B)
