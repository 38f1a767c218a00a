"""Lightning with optimc.torch: weights as with torch's class, also in bf16-true and with clipping in bf16-mixed."""

import pytest
from page_programs import program

lightning = pytest.importorskip("lightning", exc_type=ImportError)
torch, adapter = pytest.importorskip("torch"), pytest.importorskip("optimc.torch")


class Net(lightning.LightningModule):
    def __init__(self, cls):
        super().__init__()
        self.cls = cls
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))

    def training_step(self, batch):
        x, y = batch
        return torch.nn.functional.mse_loss(self.layers(x.to(self.layers[0].weight.dtype)), y.to(x.dtype))

    def configure_optimizers(self):
        optimizer = self.cls(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)]


def train(cls, precision, folder):
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(64, 8), torch.randn(64, 1))
    net = Net(cls)
    lightning.Trainer(
        precision=precision, accelerator="cpu", devices=1, max_epochs=3, gradient_clip_val=0.5, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    ).fit(net, torch.utils.data.DataLoader(data, batch_size=16))
    return torch.cat([p.detach().flatten().float() for p in net.parameters()])


@pytest.mark.filterwarnings("ignore")           # Lightning's own
@pytest.mark.parametrize(("precision", "most"), [("32-true", 1e-5), ("bf16-true", 0.02), ("bf16-mixed", 0.02)])
def test_weights_are_those_of_torchs_class(precision, most, tmp_path):
    weights = train(adapter.AdamW, precision, tmp_path)
    assert (weights - train(torch.optim.AdamW, precision, tmp_path)).abs().max() < most


@pytest.mark.filterwarnings("ignore")
def test_the_program_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = torch.utils.data.TensorDataset(torch.randn(16, 8), torch.randn(16, 1))
    names = {"loader": torch.utils.data.DataLoader(data, 4)}
    exec(program("lightning.Trainer("), names)
    assert isinstance(names["trainer"].optimizers[0], adapter.AdamW)
