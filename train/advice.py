"""Said before training: learning rates that do not fit, and what the serving engine will not load.

Sources: LoRA Without Regret (Thinking Machines, 2025): LoRA takes about ten times the rate of full tuning; its sizes and
Tinker's sweep give the ranges below. Refusals: vLLM's PEFT reader and its list of ranks, as `ft serve` checks them.
"""

from tunegate.core.methods import WEIGHTLESS
from tunegate.serve.served_model import LORA_RANKS
from tunegate.train.config import TrainConfig

# Parameters up to which it holds (1e9), LoRA's range; full tuning takes a tenth.
RATES = ((3.5, 3e-4, 1e-3), (20.0, 2e-4, 5e-4), (float("inf"), 1e-4, 3e-4))
UNTESTED_B = 1.0  # below this size the sources have no measurement
FULL_SHARE = 0.1


def usual_rates(method: str, params_b: float) -> tuple[float, float]:
    """Lowest and highest usual learning rate for a model of this size (1e9 parameters), LoRA's at a scale of 1."""
    _, low, high = next(row for row in RATES if params_b <= row[0])
    share = FULL_SHARE if method == "full" else 1.0
    return low * share, high * share


def warnings(config: TrainConfig, params_b: float | None = None) -> list[str]:
    """Words of caution. params_b: the model's size in 1e9 parameters where it is known."""
    if config.method in WEIGHTLESS:
        return []
    found = []
    rate = f"learning rate {config.learning_rate:g}"
    if config.method in ("lora", "qlora") and config.learning_rate < 5e-5:
        found.append(f"{rate} is a full-tuning rate: LoRA usually needs about ten times as much (2e-4 to 1e-3)")
    elif config.method == "full" and config.learning_rate > 1e-4:
        found.append(f"{rate} is a LoRA rate: full tuning usually needs a tenth (1e-5 to 1e-4)")
    elif params_b is not None:
        low, high = usual_rates(config.method, params_b)
        if not low / 3 <= effective_rate(config) <= high * 3:
            found.append(f"{rate} is far from what is usual for {params_b:.2g}B parameters: {low:g} to {high:g}")
    return found + engine_refusals(config)


def effective_rate(config: TrainConfig) -> float:
    """The rate as it would act at a LoRA scale of 1: alpha / r (alpha / sqrt(r) with rsLoRA) multiplies it."""
    if config.method == "full":
        return config.learning_rate
    scale = config.alpha / (config.rank**0.5 if config.use_rslora else config.rank)
    return config.learning_rate * scale


def rate_note(config: TrainConfig, params_b: float) -> str:
    """One line on the learning rate for a model of this size."""
    low, high = usual_rates(config.method, params_b)
    scale = effective_rate(config) / config.learning_rate
    acts = f", which acts like {effective_rate(config):g} at the adapter's scale of {scale:g}" if scale != 1 else ""
    small = "; below 1B there is no published evidence: try two or three" if params_b < UNTESTED_B else ""
    return f"learning rate {config.learning_rate:g}{acts}; usual for {params_b:.2g}B parameters: {low:g} to {high:g}{small}"


def engine_refusals(config: TrainConfig) -> list[str]:
    """What vLLM will not serve as an adapter, and what to do: such a run has to be merged."""
    if config.method == "full":
        return []
    kinds = [("DoRA", config.use_dora), ("modules_to_save", bool(config.modules_to_save))]
    kinds.append((f"a rank above {LORA_RANKS[-1]}", config.rank > LORA_RANKS[-1]))
    return [
        f"vLLM does not serve an adapter with {name}: merge the run (ft merge RUN --out RELEASE) and serve the release"
        for name, chosen in kinds
        if chosen
    ]
