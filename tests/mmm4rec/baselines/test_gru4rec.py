from dataclasses import replace

import torch
from torch import nn
from torch.testing import assert_close


def test_user_vectors_are_those_of_cells_run_one_by_one(build, batch):
    model = build("gru4rec", "model.num_layers=2")
    cells = []
    for layer in range(2):
        cell = nn.GRUCell(16, 16, bias=False, dtype=torch.float64)
        parts = {part: getattr(model.gru, f"weight_{part}_l{layer}") for part in ("ih", "hh")}
        cell.load_state_dict({f"weight_{part}": weight for part, weight in parts.items()})
        cells.append(cell)
    items_ID = model.item_matrix()
    for row, length in enumerate(batch.lengths_B.tolist()):
        states = [torch.zeros(1, 16, dtype=torch.float64)] * 2
        for item in batch.items_BL[row, :length].tolist():
            states[0] = cells[0](items_ID[item][None], states[0])
            states[1] = cells[1](states[0], states[1])
        expected = states[1] @ model.out_proj.weight.T + model.out_proj.bias
        assert_close(model(batch)[row], expected[0], rtol=0, atol=1e-10)


def test_the_cell_is_the_paper_s(build, batch):
    # Equations 1 to 4 on histories of one item, whose state before is 0: no reset gate.
    model = build("gru4rec")
    x_BD = model.item_matrix()[batch.items_BL[:, 0]]
    _, update_DD, candidate_DD = model.gru.weight_ih_l0.chunk(3)
    z_BD = torch.sigmoid(x_BD @ update_DD.T)
    state_BD = (1 - z_BD) * torch.tanh(x_BD @ candidate_DD.T)
    single = replace(batch, lengths_B=torch.ones_like(batch.lengths_B))
    assert_close(model(single), model.out_proj(state_BD), rtol=0, atol=1e-10)
