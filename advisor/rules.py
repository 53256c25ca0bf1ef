"""The rules that choose a method: what each says, when it applies, on what evidence, and what contradicts it.

A rule that fires votes for methods; the votes of all that fire are added. A weight says how strong the evidence and how
direct its bearing is: about 3 for controlled evidence that decides, 1 for guidance. Nothing else is hidden in the
choice: `ftadvise recommend --why` prints every rule that fired with its votes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tunegate.advisor.constraints import Constraints
from tunegate.advisor.data_profile import DataProfile

METHODS = ("prompt", "few_shot", "rag", "lora", "qlora", "full", "rag_lora", "hosted_api")
TUNED = ("lora", "qlora", "full", "rag_lora")
ARTICLE = "the decision framework this project set out from"
SMALL_B = 1.0  # 1e9 parameters below which a base is called small
FEW_EXAMPLES = 1000
SCARCE_EXAMPLES = 100
MANY_EXAMPLES = 100_000
QUANTIZATION_PAYS_B = 3.0


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What the rules look at. base_b: size of the base in 1e9 parameters when it is fixed (by the user, or because
    nothing larger runs on the hardware named), else None. cpu_only: the hardware named is a CPU. fits_16bit: whether a
    16-bit LoRA of the base fits the hardware named; None when neither is fixed. large_budget: a one-off budget that pays
    for full tuning of a large model. api_cheaper: at the load that was stated an API, prompted, takes less a month than a
    tuned base on machines rented for it."""

    constraints: Constraints
    profile: DataProfile | None = None
    base_b: float | None = None
    cpu_only: bool = False
    fits_16bit: bool | None = None
    large_budget: bool = False
    api_cheaper: bool = False

    @property
    def examples(self) -> int:
        """Rows at hand."""
        return self.constraints.examples

    @property
    def strict_format(self) -> bool:
        """A format must be met: it was asked for, or nearly all answers in the data are JSON."""
        return self.constraints.wants("format") or bool(self.profile and self.profile.strict_format)

    @property
    def small_base(self) -> bool:
        """The base is fixed and below 1e9 parameters."""
        return self.base_b is not None and self.base_b < SMALL_B

    @property
    def cost_at_scale(self) -> bool:
        """Cost is a need, and not one that an API meets better at the load stated."""
        return self.constraints.wants("cost") and not self.api_cheaper

    @property
    def reason_to_tune(self) -> bool:
        """One of the article's four reasons (format or style, latency, cost at scale, privacy), or quality."""
        c = self.constraints
        other = c.wants("format", "style", "latency", "quality", "privacy") or self.cost_at_scale or self.strict_format
        return other or c.quality == "max" or c.domain == "far" or c.privacy == "no-egress"


Votes = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule. when: whether it applies to a Situation. votes: points by method: our own judgement, no study gives them.
    grade: of the evidence: A controlled and with several models, B one study, C guidance, F a fact (dated, or arithmetic).
    conflicts: ids of rules, or published results, that say otherwise. note: where the rule is wrong or dated."""

    id: str
    says: str
    when: Callable[[Situation], bool]
    source: str
    grade: str
    scope: str
    votes: Votes = field(default_factory=dict)
    conflicts: tuple[str, ...] = ()
    note: str = ""


def _all(methods: tuple[str, ...], points: float) -> dict[str, float]:
    return dict.fromkeys(methods, points)


PROMPTED = ("prompt", "few_shot")
ADAPTERS = ("lora", "qlora")

ARTICLE_RULES = (
    Rule(
        id="article-four-reasons",
        says="Fine-tune only for format, latency, cost at scale or privacy; with none of them, do not.",
        when=lambda s: not s.reason_to_tune,
        source=ARTICLE,
        grade="C",
        scope="any task a strong model already does by prompt",
        votes={**_all(TUNED, -6.0), "prompt": 2.0, "few_shot": 1.0},
        note="Quality on a narrow labelled task is a fifth reason (narrow-task-adapters).",
    ),
    Rule(
        id="article-few-examples",
        says="Fewer than 1,000 examples: prompt or few-shot.",
        when=lambda s: s.examples < FEW_EXAMPLES,
        source=ARTICLE,
        grade="C",
        scope="a base that follows instructions well",
        votes={"prompt": 2.0, "few_shot": 3.0},
        conflicts=("style-1000-examples", "small-base-cannot-be-prompted"),
        note="Too high as a general bar: 100-1,000 curated examples do teach a format; what counts is whether the base can "
        "be prompted at all, and what a prompt costs per call.",
    ),
    Rule(
        id="article-latency-first",
        says="Latency first: QLoRA on a 7B model, served by vLLM.",
        when=lambda s: s.constraints.priority == "latency" and s.examples >= SCARCE_EXAMPLES,
        source=ARTICLE,
        grade="C",
        scope="answers that a 7B model can give",
        votes={"qlora": 2.5, "lora": 1.0},
        note="QLoRA saves training memory, not latency: the adapter is merged and served in 16 bits, FP8 or AWQ.",
    ),
    Rule(
        id="article-cost-first",
        says="Cost first: QLoRA on 7B or 13B, self-hosted.",
        when=lambda s: s.constraints.priority == "cost" and s.cost_at_scale and s.examples >= SCARCE_EXAMPLES,
        source=ARTICLE,
        grade="C",
        scope="traffic that keeps a GPU busy",
        votes={"qlora": 2.5, "lora": 1.0},
        conflicts=("hosted open-weight APIs at $0.05-0.9 per 1e6 tokens: see break_even", "api-costs-less-here"),
        note="Self-hosting rarely undercuts a hosted open-weight API; the break-even is computed, not assumed.",
    ),
    Rule(
        id="article-privacy",
        says="Privacy: a fine-tuned open model of your own takes the place of the API that may not be asked.",
        when=lambda s: s.constraints.privacy == "no-egress" and s.examples >= FEW_EXAMPLES,
        source=ARTICLE,
        grade="C",
        scope="tasks for which 1,000 examples are at hand",
        votes={"qlora": 2.5, "lora": 2.5},
        conflicts=("many-shot-rival",),
        note="Privacy asks for open weights on machines of your own; that they be tuned follows only where the base falls short.",
    ),
    Rule(
        id="article-maximum-quality",
        says="Maximum quality and the budget for it: full tuning of a large model.",
        when=lambda s: (
            (s.constraints.quality == "max" or s.constraints.priority == "quality")
            and s.large_budget
            and s.examples >= FEW_EXAMPLES
        ),
        source=ARTICLE,
        grade="C",
        scope="budgets that pay for several 80 GB GPUs",
        votes={"full": 7.0},
        conflicts=("lora-equals-full",),
        note="Controlled comparisons find LoRA equal to full tuning at SFT sizes (lora-equals-full): buy the larger base first.",
    ),
    Rule(
        id="article-simple-operations",
        says="Operational simplicity: a hosted API.",
        when=lambda s: s.constraints.ops == "low" and s.constraints.privacy == "public",
        source=ARTICLE,
        grade="C",
        scope="data that may leave",
        votes={"hosted_api": 9.0, **_all(TUNED, -4.0)},
        conflicts=("facts-need-retrieval",),
        note="With changing facts the API is given retrieved passages in its prompt: the documents are yours to keep either "
        "way, the servers are not.",
    ),
    Rule(
        id="article-domain-shift",
        says="A dramatic domain shift with more than 100,000 examples: full tuning.",
        when=lambda s: s.constraints.domain == "far" and s.examples > MANY_EXAMPLES,
        source=ARTICLE,
        grade="C",
        scope="new language or notation, tokens in the billions",
        votes={"full": 4.0},
        conflicts=("lora-equals-full",),
    ),
)

EVIDENCE_RULES = (
    Rule(
        id="prompt-first",
        says="With fewer than about 100 examples a prompt or few-shot beats training; a prompt is worth hundreds of examples.",
        when=lambda s: s.examples < SCARCE_EXAMPLES,
        source="Le Scao & Rush 2021, arXiv 2103.08493; OpenAI's fine-tuning guide (50-100 examples)",
        grade="B",
        scope="classification with BERT-size models; guidance for larger ones",
        votes={"prompt": 2.0, "few_shot": 2.0, **_all(TUNED, -3.0)},
    ),
    Rule(
        id="many-shot-rival",
        says="With hundreds of examples, many-shot prompting with a cached prefix is a rival; cost grows with the shots.",
        when=lambda s: SCARCE_EXAMPLES <= s.examples < 5000,
        source="Bertsch et al. 2024, arXiv 2405.00200; Agarwal et al. 2024, arXiv 2404.11018",
        grade="A",
        scope="long-context models of 7B and more",
        votes={"few_shot": 1.0},
        conflicts=("small-base-cannot-be-prompted",),
        note="Price decides: the shots are paid for in every call.",
    ),
    Rule(
        id="small-base-cannot-be-prompted",
        says="Models below 1B make little use of instructions and examples in the prompt: they follow a format after training.",
        when=lambda s: s.small_base and s.examples >= SCARCE_EXAMPLES,
        source="Brown et al. 2020, arXiv 2005.14165, figures 1.2 and 1.3 (what examples in the prompt gain grows with size)",
        grade="B",
        scope="one family of untuned bases; that small instruction-tuned ones behave alike is our extrapolation",
        votes={**_all(PROMPTED, -3.0), **_all(ADAPTERS, 2.0)},
        conflicts=("article-few-examples",),
        note="The paper calls figure 1.3 no rigorous benchmark. Measure few-shot on your own task: --evidence outvotes this.",
    ),
    Rule(
        id="style-1000-examples",
        says="About 1,000 curated examples teach a style or a format.",
        when=lambda s: s.examples >= 300 and (s.strict_format or s.constraints.wants("style")),
        source="Zhou et al. 2023 (LIMA), arXiv 2305.11206",
        grade="B",
        scope="65B base, curated rows; we apply it from 300 rows when the format is strict",
        votes=_all(ADAPTERS, 2.0),
    ),
    Rule(
        id="narrow-task-adapters",
        says="A narrow labelled task: an adapter on a 7-8B base gains 34 points over the base and 10 over GPT-4.",
        when=lambda s: (
            s.examples >= (500 if s.small_base else FEW_EXAMPLES)
            and s.reason_to_tune
            and (
                s.strict_format
                or bool(s.profile and s.profile.narrow)
                or s.constraints.wants("latency", "quality")
                or s.cost_at_scale
                or s.constraints.quality == "max"
            )
        ),
        source="Zhao et al. 2024 (LoRA Land), arXiv 2405.00732: 310 adapters, 31 tasks",
        grade="A",
        scope="bases of 2-8B, 4-bit QLoRA, tasks with a checkable answer and mostly thousands of rows",
        votes=_all(ADAPTERS, 2.5),
    ),
    Rule(
        id="facts-need-retrieval",
        says="New or changing facts: retrieval, not fine-tuning; training on unknown facts is slow and raises hallucination.",
        when=lambda s: s.constraints.facts == "changing",
        source="Gekhman et al. 2024, arXiv 2405.05904; Ovadia et al. 2023, arXiv 2312.05934",
        grade="A",
        scope="knowledge that can be looked up",
        votes={
            "rag": 6.0,
            "rag_lora": 4.0,
            "hosted_api": 1.0,
            **_all(("lora", "qlora", "full"), -4.0),
            "prompt": -2.0,
            "few_shot": -2.0,
        },
    ),
    Rule(
        id="domain-and-facts",
        says="A domain or format to learn and facts to look up: both; the gains add (6 points tuning, 5 more retrieval).",
        when=lambda s: (
            s.constraints.facts == "changing"
            and s.examples >= 300
            and (s.constraints.wants("format", "style") or s.constraints.domain == "far")
        ),
        source="Balaguer et al. 2024, arXiv 2401.08406",
        grade="B",
        scope="agriculture questions, GPT-4 and Llama-2-13B",
        votes={"rag_lora": 5.0},
    ),
    Rule(
        id="lora-equals-full",
        says="LoRA equals full tuning while the adapter can hold the data set: all linear layers, learning rate 10 times full's.",
        when=lambda s: SCARCE_EXAMPLES <= s.examples <= MANY_EXAMPLES,
        source="Schulman et al. 2025, LoRA Without Regret (Thinking Machines); PEFT's MetaMathQA runs: full 0.472, LoRA 0.474-0.513",
        grade="A",
        scope="SFT; capacity about 2 bits per adapter parameter against 1 bit per loss token",
        votes={**_all(ADAPTERS, 0.5), "full": -1.5},
        conflicts=("lora-learns-less",),
    ),
    Rule(
        id="lora-learns-less",
        says="LoRA underperforms full tuning in code and mathematics, and forgets less.",
        when=lambda s: s.constraints.domain == "far" and s.examples > 20_000,
        source="Biderman et al. 2024 (LoRA Learns Less and Forgets Less), arXiv 2405.09673",
        grade="B",
        scope="continued pretraining with 0.25-20e9 tokens; their adapters: rank 16-256, mostly attention",
        votes={"full": 1.5},
        conflicts=("lora-equals-full",),
        note="The two results differ in target modules and learning rate: neither is hidden here.",
    ),
    Rule(
        id="quantize-when-it-saves",
        says="NF4 with double quantization trains as well as 16 bits: take it where it saves a larger GPU, from 3B up.",
        when=lambda s: (
            s.fits_16bit is not True and (s.base_b is None or s.base_b >= QUANTIZATION_PAYS_B) and not s.cpu_only
        ),
        source="Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, table 3",
        grade="A",
        scope="bases of 3B and more: embeddings stay in 16 bits, so smaller ones save little",
        votes={"qlora": 1.0},
    ),
    Rule(
        id="no-quantization-needed",
        says="Where 16-bit LoRA fits, quantizing the base only adds time per step (35 % at 2,000 tokens, 5 % at 8,000).",
        when=lambda s: s.fits_16bit is True,
        source="QwenLM/Qwen finetuning profile (measured.csv, rows qwen-*)",
        grade="B",
        scope="one GPU, or a CPU",
        votes={"lora": 1.0},
        conflicts=("article-latency-first", "article-cost-first"),
    ),
    Rule(
        id="small-base-saves-little",
        says="Quantizing a base below 3B saves little memory (embeddings stay in 16 bits) and costs time.",
        when=lambda s: s.cpu_only or (s.base_b is not None and s.base_b < QUANTIZATION_PAYS_B),
        source="arithmetic on the architecture: ftadvise estimate train --sweep",
        grade="F",
        scope="bases below 3e9 parameters, and CPUs",
        votes={"qlora": -3.0, "lora": 0.5},
    ),
    Rule(
        id="bigger-base",
        says="A larger base helps more than a larger rank.",
        when=lambda s: s.constraints.wants("quality") or s.constraints.quality != "normal",
        source="Zhang et al. 2024, arXiv 2402.17193",
        grade="A",
        scope="1-16B, translation and summarization",
    ),
    Rule(
        id="int4-serving",
        says="4-bit weights suit chat and classification; take FP8 or bf16 for code (-8 points HumanEval, under 2 MMLU-Pro).",
        when=lambda s: s.constraints.wants("cost", "latency"),
        source="AIMultiple's Qwen3-32B quantization benchmark, H100 (secondary source)",
        grade="C",
        scope="Qwen3-32B",
    ),
    Rule(
        id="api-costs-less-here",
        says="At the calls a day stated, an API costs less than machines and engineering of your own: cost is no reason to tune.",
        when=lambda s: s.constraints.wants("cost") and s.api_cheaper,
        source="arithmetic on dated prices: ftadvise breakeven",
        grade="F",
        scope="loads that leave a rented GPU idle; offers about as good as a tuned 7-14B base",
        votes=_all(PROMPTED, 1.0),
        conflicts=("article-cost-first",),
        note="Article-cost-first does not count then. Without a stated load it does.",
    ),
    Rule(
        id="own-servers-for-private-data",
        says="Data that may not leave: open weights on machines of your own.",
        when=lambda s: s.constraints.privacy == "no-egress",
        source="a constraint, not a finding",
        grade="F",
        scope="any",
        votes={"hosted_api": -20.0},
    ),
    Rule(
        id="few-shot-when-prompted",
        says="A prompted model with examples at hand: show it some.",
        when=lambda s: s.examples >= 3 and not s.small_base,
        source="Brown et al. 2020, arXiv 2005.14165, section 3",
        grade="B",
        scope="bases of 1B and more",
        votes={"few_shot": 1.0},
    ),
    Rule(
        id="provider-lifecycle",
        says="A provider's fine-tuning can close: OpenAI's is closed to new users, so it is no option to start on.",
        when=lambda s: s.constraints.privacy == "public",
        source="OpenAI platform documentation, fine-tuning page (read 2026-11)",
        grade="F",
        scope="hosted fine-tuning",
    ),
)

RULES: tuple[Rule, ...] = ARTICLE_RULES + EVIDENCE_RULES


def fired(situation: Situation) -> list[Rule]:
    """Rules that apply, in the order of the table."""
    return [rule for rule in RULES if rule.when(situation)]


def scores(situation: Situation) -> dict[str, float]:
    """Votes for each method, added up."""
    totals = dict.fromkeys(METHODS, 0.0)
    for rule in fired(situation):
        for method, points in rule.votes.items():
            totals[method] += points
    return totals
