"""accelerate with optimc.torch: accumulation, clipping and a saved state as with torch's class."""

import pytest
from page_programs import program

accelerate = pytest.importorskip("accelerate", exc_type=ImportError)
torch, adapter = pytest.importorskip("torch"), pytest.importorskip("optimc.torch")


def train(cls, folder):
    """Weights after ten batches and after two more, and after the two again from the saved state."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    data = torch.utils.data.TensorDataset(torch.randn(48, 8), torch.randn(48, 1))
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, loader = accelerator.prepare(
        model, cls(model.parameters(), lr=0.01), torch.utils.data.DataLoader(data, batch_size=4))
    batches = list(loader)

    def run(some):
        for x, y in some:
            with accelerator.accumulate(model):
                accelerator.backward(torch.nn.functional.mse_loss(model(x), y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    first = run(batches[:10])
    accelerator.save_state(folder)
    second = run(batches[10:])
    accelerator.load_state(folder)
    return first, second, run(batches[10:])


@pytest.mark.filterwarnings("ignore")           # accelerate's own
def test_weights_are_those_of_torchs_class(tmp_path):
    first, second, again = train(adapter.AdamW, tmp_path / "a")
    expected = train(torch.optim.AdamW, tmp_path / "b")
    assert (first - expected[0]).abs().max() < 1e-5 and (second - expected[1]).abs().max() < 1e-5
    assert torch.equal(second, again) and not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore")
def test_the_program_of_the_page_runs(tmp_path):
    model = torch.nn.Linear(8, 1)
    before, data = model.weight.detach().clone(), torch.utils.data.TensorDataset(torch.randn(8, 8), torch.randn(8, 1))
    loader = torch.utils.data.DataLoader(data, 2)
    exec(program("Accelerator("), {"model": model, "loader": loader, "folder": tmp_path})
    assert not torch.equal(before, model.weight) and list(tmp_path.iterdir())
