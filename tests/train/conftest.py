"""What tests of training share."""

import os

import pytest


@pytest.fixture
def poisoned_model(tiny_model, tmp_path):
    """The embedding of one token, `~`, is not a number."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer("~")["input_ids"][0]] = float("nan")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.02)
    model.save_pretrained(tmp_path / "poisoned")
    tokenizer.save_pretrained(tmp_path / "poisoned")
    return tmp_path / "poisoned"


@pytest.fixture
def stopped(monkeypatch):
    """Send a signal before step 4 of the next run, from inside."""
    from tunegate.train import sft

    make = sft.make_trainer

    def ask(*numbers):
        from transformers import TrainerCallback

        class Act(TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                if state.global_step == 3:
                    for number in numbers:
                        os.kill(os.getpid(), number)

        def acting(**options):
            monkeypatch.setattr(sft, "make_trainer", make)
            return make(**{**options, "callbacks": [*options["callbacks"], Act()]})

        monkeypatch.setattr(sft, "make_trainer", acting)

    return ask
