"""The model card: what the model is, how good it was measured to be, how it was made, how it is used, where it ends.

The card says nothing of the training data but its digest and figures: the repository may be public, the rows are not.
"""

from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData
from tunemill_api.run_spec import RunSpec
from tunemill_api.status import EvaluationFacts, GateFacts, MetricFacts, PreparedFacts, TrainedFacts

from tunemill_trainer.judge.report import Report
from tunemill_trainer.prepared import BaseModel, Tokens

_METRICS = {
    "tool_name_accuracy": "Right tools",
    "exact_match": "Right tools and arguments",
    "valid_call_rate": "Calls that can be parsed",
    "missed_call_rate": "No call where one is wanted (lower is better)",
    "abstention_accuracy": "No call where none is wanted",
    "hallucinated_tool_rate": "Calls a tool that was not offered (lower is better)",
    "finished_rate": "Ends its turn",
}
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes."""


@dataclass(frozen=True)
class ReleaseFacts:
    """All that the card tells.

    Attributes:
        run: the wish.
        base: the base model and its commit.
        tokens: what was done to the vocabulary.
        prepared: what was found in the data.
        trained: how the training went.
        evaluation: how good both models are.
        report: the full report of evaluate.
        gates: how the gates were decided.
    """

    run: RunSpec
    base: BaseModel
    tokens: Tokens
    prepared: PreparedFacts
    trained: TrainedFacts
    evaluation: EvaluationFacts
    report: Report
    gates: tuple[GateFacts, ...]


def model_card(facts: ReleaseFacts) -> str:
    """Return README.md."""
    sections = [
        _front_matter(facts),
        _introduction(facts),
        _evaluation(facts),
        _usage(facts),
        _serving(facts),
        _training(facts),
        _limits(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: ReleaseFacts) -> str:
    repository = facts.run.spec.publish.repository
    data = ModelCardData(
        model_name=repository.split("/")[1],
        base_model=facts.base.id,
        base_model_relation="adapter",
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["function-calling", "tool-use", "lora", "tunemill"],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                task_name="Function calling",
                dataset_type="held-out",
                dataset_name="Held-out rows of the training data",
                metric_type=metric.name,
                metric_name=_METRICS.get(metric.name, metric.name),
                metric_value=float(metric.tuned),
            )
            for metric in facts.evaluation.metrics
            if metric.tuned
        ],
    )
    return f"---\n{data.to_yaml()}\n---"


def _introduction(facts: ReleaseFacts) -> str:
    name = facts.run.spec.publish.repository.split("/")[1]
    base, commit = facts.base.id, facts.base.revision[:12]
    page = f"{facts.run.spec.hub.endpoint.rstrip('/') or 'https://huggingface.co'}/{base}"
    return f"""# {name}

A LoRA adapter that teaches [{base}]({page}) (commit `{commit}`) to call tools. It was trained,
measured against its base, published and proven to load by Tunemill."""


def _evaluation(facts: ReleaseFacts) -> str:
    report, right = facts.report, facts.report.right
    rows = "\n".join(_metric_line(metric, report) for metric in facts.evaluation.metrics if metric.tuned)
    gates = [f"- `{gate.gate}`: {'passed' if gate.passed else 'not passed'} ({gate.message})" for gate in facts.gates]
    text = f"""## Evaluation

Base and tuned model answered the same {report.cases} cases of {report.rows} held-out rows, {report.settings.decoding},
with at most {report.settings.max_new_tokens} tokens. A case is one turn of the assistant. Calls are read as strictly as
vLLM's `hermes` parser reads them; arguments must be equal to the letter.

| | base | tuned | 95 % interval | cases |
|---|---:|---:|---:|---:|
{rows}

![Base and tuned model](scores.png)

The base has {right.base} cases right, the tuned model {right.tuned}. If both were equally good, a change as uneven as
this would have a probability of {right.p_value:.2g} (McNemar's exact test)."""
    return "\n\n".join([text, "The gates of this release:", "\n".join(gates)] if gates else [text])


def _metric_line(metric: MetricFacts, report: Report) -> str:
    share = report.metrics[metric.name].tuned
    interval = f"{share.low:.3f} to {share.high:.3f}" if share else ""
    label = _METRICS.get(metric.name, metric.name)
    return f"| {label} (`{metric.name}`) | {metric.base} | **{metric.tuned}** | {interval} | {metric.cases} |"


def _usage(facts: ReleaseFacts) -> str:
    publish = facts.run.spec.publish
    stops = list(facts.tokens.stop_token_ids)
    return f"""## Use

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

repository, revision = "{publish.repository}", "{publish.tag or publish.branch}"
tokenizer = AutoTokenizer.from_pretrained(repository, revision=revision)
model = AutoPeftModelForCausalLM.from_pretrained(repository, revision=revision, dtype="auto")

tools = [
    {{
        "type": "function",
        "function": {{
            "name": "get_weather",
            "description": "Current weather of a city",
            "parameters": {{"type": "object", "properties": {{"city": {{"type": "string"}}}}, "required": ["city"]}},
        }},
    }}
]
messages = [{{"role": "user", "content": "What is the weather in Oslo?"}}]
prompt = tokenizer.apply_chat_template(
    messages, tools=tools, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
reply = model.generate(**prompt, max_new_tokens=256, do_sample=False, eos_token_id={stops})
print(tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :]))
```

Use the tools that it was trained with. A call comes as `<tool_call>{{"name": …, "arguments": {{…}}}}</tool_call>`."""


def _serving(facts: ReleaseFacts) -> str:
    repository = facts.run.spec.publish.repository
    name = repository.split("/")[1]
    options = "--enable-auto-tool-choice --tool-call-parser hermes"
    if facts.tokens.added:
        added = ", ".join(f"`{token.token}`" for token in facts.tokens.added)
        return f"""## Serving

The adapter has trained rows for {len(facts.tokens.added)} new tokens ({added}), which vLLM does not load as an adapter.
Merge it first, from the `model` and the `tokenizer` above, and serve the folder:

```python
model.merge_and_unload().save_pretrained("{name}-merged")
tokenizer.save_pretrained("{name}-merged")
```
```sh
vllm serve {name}-merged {options}
```"""
    rank = next(rank for rank in _VLLM_RANKS if rank >= facts.run.spec.adapter.lora.rank)
    return f"""## Serving

```sh
hf download {repository} chat_template.jinja --local-dir .
vllm serve {facts.base.id} --revision {facts.base.revision} --enable-lora --max-lora-rank {rank} \\
    --lora-modules {name}={repository} --tokenizer {repository} --chat-template chat_template.jinja \\
    {options}
```"""


def _training(facts: ReleaseFacts) -> str:
    data, training, lora = facts.prepared.dataset, facts.run.spec.training, facts.run.spec.adapter.lora
    length = "" if training.max_steps else f"{training.epochs} epoch(s), "
    left_out = f"{data.invalid_rows} invalid, {data.overlong_rows} too long, {data.duplicate_rows} duplicate"
    rows = [
        ("Base model", f"{facts.base.id} at `{facts.base.revision}`"),
        ("Data", f"{data.rows} rows ({data.format}), {data.tools} tools; sha256 `{facts.prepared.dataset_digest}`"),
        ("Rows", f"{data.train_rows} for training, {data.evaluation_rows} held out; left out: {left_out}"),
        ("Longest row", f"{data.longest_row_tokens} tokens of {training.max_length}"),
        ("Loss", f"on {training.loss_on.value}: {data.supervised_token_percent} % of the tokens"),
        ("Vocabulary", f"{facts.tokens.mode}, {len(facts.tokens.added)} tokens added"),
        ("LoRA", f"rank {lora.rank}, alpha {lora.alpha}, dropout {lora.dropout}, on {', '.join(lora.target_modules)}"),
        ("Learning rate", f"{training.learning_rate}, {training.scheduler.value}, warm-up {training.warmup_ratio}"),
        ("Length", f"{length}{facts.trained.steps} steps of {training.batch_size} rows, seed {training.seed}"),
        ("Where", f"{facts.trained.device}, {facts.trained.train_seconds} s"),
        ("Training loss", f"from {facts.trained.first_loss} to {facts.trained.loss}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"## Training\n\n| | |\n|---|---|\n{table}\n\n![Training loss](loss.png)"


def _limits(facts: ReleaseFacts) -> str:
    return f"""## Limits

- The figures are for rows like those of the training data. Other tools, languages and ways to ask were not measured.
- A call that can be parsed may still be wrong: check arguments before acting on them.
- The licence and the limits of {facts.base.id} apply to this adapter, too."""
