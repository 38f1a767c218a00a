"""transformers' Trainer with optimc.torch: losses as with torch's class, a bfloat16 checkpoint, an exact resume."""

import pytest
from page_programs import program

transformers = pytest.importorskip("transformers", exc_type=ImportError)
torch, adapter = pytest.importorskip("torch"), pytest.importorskip("optimc.torch")

STEPS = 8


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders with one tiny model as float32 and as bfloat16."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=64, max_position_embeddings=16, num_labels=2,
                                     hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model, folders = transformers.BertForSequenceClassification(config), {}
    for dtype in (torch.float32, torch.bfloat16):
        folders[dtype] = tmp_path_factory.mktemp("checkpoint")
        model.to(dtype).save_pretrained(folders[dtype])
    return folders


class Data(torch.utils.data.Dataset):
    """Rows of words; the label says whether the first is small."""

    def __init__(self):
        self.words = torch.randint(0, 64, (64, 12), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.words)

    def __getitem__(self, i):
        return {"input_ids": self.words[i], "labels": int(self.words[i, 0] < 32)}


def train(folder, checkpoint, cls, resume=False, **arguments):
    """Trains from a checkpoint; returns the model and the losses."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint)
    optimizer = cls(model.parameters(), lr=2e-3, weight_decay=0.01)
    trainer = transformers.Trainer(
        model=model, train_dataset=Data(), optimizers=(optimizer, None), args=transformers.TrainingArguments(
            str(folder), max_steps=STEPS, per_device_train_batch_size=16, use_cpu=True, report_to=[], logging_steps=1,
            save_steps=STEPS // 2, disable_tqdm=True, **arguments))
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS // 2}") if resume else None)
    return model, torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def difference(first, second):
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


def test_losses_are_those_of_torchs_class(checkpoints, tmp_path):
    checkpoint = checkpoints[torch.float32]
    model, losses = train(tmp_path / "a", checkpoint, adapter.AdamW, gradient_accumulation_steps=2)
    reference, expected = train(tmp_path / "b", checkpoint, torch.optim.AdamW, gradient_accumulation_steps=2)
    torch.testing.assert_close(losses, expected, atol=2e-4, rtol=0)
    assert difference(model, reference) < 1e-4 and losses[-1] < losses[0]


def test_a_bfloat16_checkpoint_trains_and_resumes_exactly(checkpoints, tmp_path):
    checkpoint = checkpoints[torch.bfloat16]
    model, losses = train(tmp_path / "a", checkpoint, adapter.AdamW)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    _, expected = train(tmp_path / "b", checkpoint, torch.optim.AdamW)
    torch.testing.assert_close(losses, expected, atol=0.05, rtol=0)
    resumed, _ = train(tmp_path / "a", checkpoint, adapter.AdamW, resume=True)
    assert difference(model, resumed) == 0


@pytest.mark.parametrize("part", ["optimizers=", "optimizer_cls_and_kwargs="])
def test_the_programs_of_the_page_run(part, checkpoints, tmp_path):
    arguments = transformers.TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to=[],
                                               disable_tqdm=True, save_strategy="no")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoints[torch.bfloat16])
    names = {"model": model, "arguments": arguments, "data": Data()}
    exec(program(part), names)
    assert isinstance(names["trainer"].optimizer.optimizer, adapter.AdamW)
