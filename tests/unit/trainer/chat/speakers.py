"""Small tokenizers without a single merge, with the turn markers of the known families; made in milliseconds."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from tunemill_trainer.data.dataset import Features

GEMMA = ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"]
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PLAIN = ["</s>"]

EVERYTHING = Features(system=True, tools=True, calls=True, responses=True, reasoning=True)

GEMMA_TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}
{{- message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""
"""As Gemma 2 has it: no system role, no tools."""

CHATML_TEMPLATE = """{%- if tools %}{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- '# Tools\n<tools>' }}
{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}{{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}
{%- if message.reasoning_content %}{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}{{- '\n<tool_call>\n' }}{{- call.function | tojson }}{{- '\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
"""In the manner of Qwen: carries tools in Hermes' tags, and marks nothing."""


def a_speaker(special, *, template=None, tags=(), **names):
    """A byte-level tokenizer with special tokens, plain tags and, if given, a chat template."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(sorted(alphabet))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    known = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"} if special is GEMMA else {}
    known |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} if special is CHATML else {}
    known |= {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"} if special is LLAMA3 else {}
    known |= {"eos_token": "</s>"} if special is PLAIN else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(known | names))
    fast.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast.add_tokens([AddedToken(token, special=False, normalized=False) for token in tags])
    fast.chat_template = template
    return fast
