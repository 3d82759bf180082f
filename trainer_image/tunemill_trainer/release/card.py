"""The model card (README.md): introduction, evaluation, usage, serving, training and limitations.

The repository may be public while the training data is not. The card therefore contains the digest and the statistics
of the data, but no rows and no bucket, and names a data set only when it is public on the Hub.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from tunemill_api import gates
from tunemill_api.constants import PUBLIC_HUB
from tunemill_api.local_files import is_local, local_path
from tunemill_api.run_spec import RunSpec
from tunemill_api.status import EvaluationFacts, GateFacts, MetricFacts, PreparedFacts, ServingFacts, TrainedFacts
from tunemill_api.training import Turns

from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.judge.report import Report
from tunemill_trainer.prepared import BaseModel, Tokens
from tunemill_trainer.release import labels
from tunemill_trainer.release.contract import Launch
from tunemill_trainer.release.local_releases import path_of

_HUB_DATA = "hf://"


@dataclass(frozen=True)
class ReleaseFacts:
    """The content of the model card.

    Attributes:
        run: the run.
        base: the base model and its commit.
        tokens: the changes of the vocabulary.
        prepared: the facts that prepare reports about the data.
        trained: the facts that train reports.
        evaluation: the metrics of base and tuned model.
        report: the report of evaluate.
        gates: the result of each gate.
        repository: the repository to which the card belongs.
        whole: whether the repository holds a full model instead of an adapter.
        multimodal: whether the base model has other parts than its language model.
        gguf: the name of the GGUF file, when the repository holds one.
        image: the container image with its tag, when it holds the model.
        serving: the serving contract.
        launch: how the contract starts the served model; None when there is none.
        with_page: whether report.html is in the repository.
        license: license, license_name and license_link from the base model's card.
        public_dataset: the id of the data set when it is public on the Hub; see `hub_dataset`.
        adapter: the adapter from which training started; None for the base model.
    """

    run: RunSpec
    base: BaseModel
    tokens: Tokens
    prepared: PreparedFacts
    trained: TrainedFacts
    evaluation: EvaluationFacts
    report: Report
    gates: tuple[GateFacts, ...]
    repository: str
    whole: bool = False
    multimodal: bool = False
    gguf: str = ""
    image: str = ""
    serving: ServingFacts | None = None
    launch: Launch | None = None
    with_page: bool = False
    license: dict[str, str] = field(default_factory=dict)
    public_dataset: str = ""
    adapter: BaseModel | None = None

    @property
    def name(self) -> str:
        """The model's name: the repository without its owner."""
        return self.repository.rsplit("/", 1)[-1]

    @property
    def draft(self) -> bool:
        """Whether a gate failed, so that this is a draft and not a release."""
        return not gates.passed(self.gates)

    @property
    def revision(self) -> str:
        """The tag or branch that users load. The card is written before the commit exists, so it cannot name that."""
        return self.run.spec.publish.tag or self.run.spec.publish.branch


def hub_dataset(uri: str) -> str:
    """Return the Hub data set id (owner/name) of an hf:// URI; empty for other URIs."""
    if not uri.startswith(_HUB_DATA):
        return ""
    owner, name = uri.removeprefix(_HUB_DATA).removeprefix("datasets/").split("/")[:2]
    return f"{owner}/{name.partition('@')[0]}"


def model_card(facts: ReleaseFacts) -> str:
    """Return the text of README.md."""
    sections = [
        _front_matter(facts),
        _introduction(facts),
        _evaluation(facts),
        _usage(facts),
        *_serving(facts),
        _training(facts),
        _limits(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: ReleaseFacts) -> str:
    data = ModelCardData(
        model_name=facts.name,
        base_model=None if is_local(facts.base.id) else facts.base.id,
        base_model_relation="finetune" if facts.whole else "adapter",
        datasets=[facts.public_dataset] if facts.public_dataset else None,
        library_name="gguf" if facts.gguf else "transformers" if facts.whole else "peft",
        pipeline_tag="text-generation",
        tags=[
            "function-calling",
            "tool-use",
            *([] if facts.whole else [_method(facts).lower()]),
            "tunemill",
            *(["draft"] * facts.draft),
        ],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                task_name="Function calling",
                dataset_type="held-out",
                dataset_name="Held-out rows of the training data",
                metric_type=metric.name,
                metric_name=labels.METRICS.get(metric.name, metric.name),
                metric_value=float(metric.tuned),
            )
            for metric in facts.evaluation.metrics
            if metric.tuned
        ],
        license=facts.license.get("license"),
        license_name=facts.license.get("license_name"),
        license_link=facts.license.get("license_link"),
    )
    return f"---\n{data.to_yaml()}\n---"


def _method(facts: ReleaseFacts) -> str:
    return facts.run.spec.adapter.method.value


def _introduction(facts: ReleaseFacts) -> str:
    named = _named(facts.base, facts.run)
    what = (
        f"{named}, fine-tuned for function calling"
        if facts.whole
        else f"A {_method(facts)} adapter that fine-tunes {named} for function calling"
    )
    if facts.adapter:
        what += f". Training continued from the adapter {_named(facts.adapter, facts.run)}"
    introduction = f"""# {facts.name}

{what}. Tunemill trained it, evaluated it against its base model,
{"pushed it as a draft" if facts.draft else "published it"} and verified that it loads."""
    if not facts.draft:
        return introduction
    missed = "\n".join(f"> - `{gate.gate}` ({gate.message})" for gate in facts.gates if not gate.passed)
    return f"""{introduction}

> **This is a draft, not a release.** These gates failed:
>
{missed}"""


def _named(model: BaseModel, run: RunSpec) -> str:
    """Return a model or adapter with a link to its page on the Hub."""
    if is_local(model.id):
        return f"`{model.place}`"
    page = f"{run.spec.hub.endpoint.rstrip('/') or PUBLIC_HUB}/{model.id}"
    return f"[{model.id}]({page}) (commit `{model.revision[:12]}`)"


def _evaluation(facts: ReleaseFacts) -> str:
    report, right = facts.report, facts.report.right
    metrics = [metric for metric in facts.evaluation.metrics if metric.tuned]
    rows = "\n".join(_metric_line(metric, report, with_adapter=facts.adapter is not None) for metric in metrics)
    lines = [f"- `{gate.gate}`: {'passed' if gate.passed else 'failed'} ({gate.message})" for gate in facts.gates]
    models = (
        "Base model, the adapter that training started from, and tuned model"
        if facts.adapter
        else "Base and tuned model"
    )
    text = f"""## Evaluation

{models} were evaluated on the same {report.cases} cases of {report.rows} held-out rows. A case is one
assistant turn. Decoding: {report.settings.decoding}, at most {report.settings.max_new_tokens} new tokens. Calls are
parsed as vLLM's `{report.settings.reply_format}` parser does. `exact_match` requires equal arguments.

| | base |{" adapter |" if facts.adapter else ""} tuned | 95 % interval | cases |
|---|---:|{"---:|" if facts.adapter else ""}---:|---:|---:|
{rows}

![Base and tuned model](scores.png)

The base model answers {right.base} cases correctly, the tuned model {right.tuned} (p = {right.p_value:.2g}, McNemar's
exact test)."""
    parts = [text, *_suites(facts.evaluation)]
    if lines:
        parts += [f"Gates of this {'draft' if facts.draft else 'release'}:", "\n".join(lines)]
    if facts.with_page:
        parts.append(
            "`report.html` in this repository has the full report: metrics per tool, confused tools, and each mistake."
        )
    return "\n\n".join(parts)


def _suites(evaluation: EvaluationFacts) -> list[str]:
    """Return the results on further data sets. The card has their names in the spec, and not where they are."""
    if not evaluation.suites:
        return []
    rows = "\n".join(
        f"| {suite.name} | {labels.JUDGES[suite.judge]} | {suite.base} | **{suite.tuned}** | {suite.difference} | "
        f"{suite.cases} |"
        for suite in evaluation.suites
    )
    text = "Other data sets, of which no row was used for training, show what the model has kept or lost:"
    return [text, f"| data set | measure | base | tuned | difference | cases |\n|---|---|---:|---:|---:|---:|\n{rows}"]


def _metric_line(metric: MetricFacts, report: Report, *, with_adapter: bool) -> str:
    # Only shares of cases have a confidence interval; the mean F1 over tools has none.
    measured = report.metrics.get(metric.name)
    share = measured.tuned if measured else None
    interval = f"{share.low:.3f} to {share.high:.3f}" if share else ""
    label = f"{labels.metric(metric.name)} (`{metric.name}`)"
    others = f"{metric.base} | {metric.adapter}" if with_adapter else metric.base
    return f"| {label} | {others} | **{metric.tuned}** | {interval} | {metric.cases} |"


def _gguf_usage(facts: ReleaseFacts) -> str:
    number_format = facts.gguf.removesuffix(".gguf").rpartition("-")[2]
    if is_local(facts.repository):
        commands = f"llama-server --jinja -m {path_of(local_path(facts.repository), facts.revision) / facts.gguf}"
    else:
        commands = (
            f"hf download {facts.repository} {facts.gguf} --revision {facts.revision} --local-dir .\n"
            f"llama-server --jinja -m {facts.gguf}"
        )
        if facts.revision == "main":
            commands = f"llama-server --jinja -hf {facts.repository}:{number_format}"
    text = f"""## Use

With llama.cpp:

```sh
{commands}
```

OpenAI clients receive calls as `tool_calls`. Set `temperature` to 0, as in the evaluation. The file contains the
tokenizer, the chat template and the stop tokens of the evaluated model."""
    if number_format == "Q8_0":
        return f"{text} Its weights are quantized to 8 bits, with which the model was not evaluated."
    return text


def _image_usage(facts: ReleaseFacts) -> str:
    name = ReplyFormat(facts.report.settings.reply_format).vllm_parser
    flags = "--chat-template-content-format, string"
    flags += f", --enable-auto-tool-choice, --tool-call-parser, {name}" if name else ""
    return f"""## Use

As an image volume of a pod, which Kubernetes mounts read-only (beta since 1.33, enabled by default since 1.35):

```yaml
apiVersion: v1
kind: Pod
metadata:
  name: {facts.run.name}
spec:
  containers:
  - name: server
    image: vllm/vllm-openai:latest
    args: [--model, /mnt/models, --served-model-name, {facts.name}, {flags}]
    volumeMounts:
    - {{name: model, mountPath: /mnt}}
  volumes:
  - name: model
    image: {{reference: "{facts.image}"}}
```"""


def _usage(facts: ReleaseFacts) -> str:
    if facts.gguf:
        return _gguf_usage(facts)
    if facts.image:
        return _image_usage(facts)
    stops = list(facts.tokens.stop_token_ids)
    if facts.whole:
        library, loader = "transformers", "AutoModelForMultimodalLM" if facts.multimodal else "AutoModelForCausalLM"
    else:
        library, loader = "peft", "AutoPeftModel" if facts.multimodal else "AutoPeftModelForCausalLM"
    imports = (
        f"from transformers import {loader}, AutoTokenizer"
        if facts.whole
        else f"from {library} import {loader}\nfrom transformers import AutoTokenizer"
    )
    place, arguments = (
        f'repository, revision = "{facts.repository}", "{facts.revision}"',
        "repository, revision=revision",
    )
    if is_local(facts.repository):
        place, arguments = f'folder = "{path_of(local_path(facts.repository), facts.revision)}"', "folder"
    return f"""## Use

```python
{imports}

{place}
tokenizer = AutoTokenizer.from_pretrained({arguments})
model = {loader}.from_pretrained({arguments}, dtype="auto")

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

The model was evaluated with the tools of its training data only."""


def _serving(facts: ReleaseFacts) -> list[str]:
    serving = facts.serving
    if serving is None:
        return []
    if not serving.command:
        return [f"## Serving\n\n{serving.target} cannot load this adapter: {serving.reason}."]
    served, _, revision = serving.model.partition("@")
    text = ["## Serving"]
    if served != facts.repository:
        where = f"{served}, at `{revision}`"
        if is_local(served):
            where = f"in `{path_of(local_path(served), revision)}`"
        text.append(f"{serving.target} cannot load this adapter: {serving.reason}. The merged model is {where}.")
    text.append(f"```sh\n{serving.command}\n```")
    name = f"{served}@{revision}" if serving.target == "Transformers" else served.rsplit("/", 1)[-1]
    text.append(
        f"""OpenAI clients receive calls as `tool_calls`. The model's name is `{name}`. Set `temperature` to 0,
as in the evaluation. `serving.json` has the same settings as JSON."""
        if serving.tool_call_parser
        else f"{serving.target} has no parser for this call format: parse the calls from the text of the reply."
    )
    text.append("`serving.yaml` has the same for Kubernetes: with KServe, and as a plain Deployment of vLLM.")
    return ["\n\n".join(text)]


def _training(facts: ReleaseFacts) -> str:
    data, training = facts.prepared.dataset, facts.run.spec.training
    length = "" if training.max_steps else f"{labels.epochs(training.epochs)}, "
    turns = ", last turn of each row" if training.turns is Turns.LAST else ""
    left_out, quantization = labels.left_out(data), facts.run.spec.base_model.quantization
    rows = [
        ("Base model", f"{facts.base.place} at `{facts.base.revision}`{labels.as_trained(quantization)}"),
        ("Data", f"{data.rows} rows ({data.format}), {data.tools} tools; sha256 `{facts.prepared.dataset_digest}`"),
        ("Rows", f"{labels.trained_rows(data)} for training, {labels.judged_rows(data)}; left out: {left_out}"),
        ("Longest row", f"{data.longest_row_tokens} tokens, limit {training.max_length}"),
        ("Loss on", f"{training.loss_on.value}{turns}; {data.supervised_token_percent} % of the tokens"),
        ("Vocabulary", f"{facts.tokens.mode}, {len(facts.tokens.added)} tokens added"),
        (_method(facts), _settings(facts) or "all weights"),
        ("Learning rate", labels.learning_rate(training, facts.trained)),
        ("Duration", f"{length}{facts.trained.steps} steps of {training.batch_size} rows, seed {training.seed}"),
        ("Trained on", f"{facts.trained.device}, {facts.trained.train_seconds} s"),
        ("Training loss", f"from {facts.trained.first_loss} to {facts.trained.loss}"),
    ]
    if training.preference and facts.trained.preference:
        rows.insert(-2, ("Preference training", labels.preference(training.preference, facts.trained.preference)))
    if augmentation := facts.run.spec.dataset.augmentation:
        rows.insert(3, ("Augmentation", f"{labels.augmentation(augmentation)}; {data.added_rows} rows added"))
    if facts.adapter:
        rows.insert(1, ("Continued from", f"{facts.adapter.place} at `{facts.adapter.revision}`"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"## Training\n\n| | |\n|---|---|\n{table}\n\n![Training loss](loss.png)"


def _settings(facts: ReleaseFacts) -> str:
    """Return the settings of the method: the fields of its block in spec.adapter."""
    blocks: dict[str, Any] = facts.run.spec.adapter.model_dump(mode="json", by_alias=True)
    settings: dict[str, Any] = next((own for name, own in blocks.items() if name.lower() == _method(facts).lower()), {})
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()
    )


def _limits(facts: ReleaseFacts) -> str:
    return f"""## Limitations

- The metrics hold for requests like those of the training data. Other tools and languages were not evaluated.
- A call with valid syntax may still be wrong. Validate arguments before you act on them.
- The license and the limitations of {facts.base.place} also apply to this model."""
