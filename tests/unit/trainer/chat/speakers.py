"""Small tokenizers without merges, with the turn markers of the known families. Creating one takes milliseconds."""

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
"""Like Qwen's: renders tools with Hermes tags, without generation blocks."""


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


LLAMA_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
{%- set role = 'ipython' if message.role == 'tool' else message.role %}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}
{%- if tools and loop.index0 == (1 if messages[0].role == 'system' else 0) %}
{{- 'Respond with a JSON object {"name": function name, "parameters": dictionary of arguments}.\n\n' }}
{%- for tool in tools %}{{- tool | tojson + '\n\n' }}{%- endfor %}{%- endif %}
{%- if message.tool_calls %}{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}' }}
{%- else %}{{- message.content | trim }}{%- endif %}{{- '<|eot_id|>' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""
"""In the manner of Llama 3: one call a turn, as JSON without marks."""

FUNCTION_GEMMA = [
    *GEMMA,
    "<start_function_declaration>",
    "<end_function_declaration>",
    "<start_function_call>",
    "<end_function_call>",
    "<start_function_response>",
    "<end_function_response>",
    "<escape>",
]
FUNCTION_GEMMA_TEMPLATE = """{{- bos_token }}
{%- macro value(item) %}{%- if item is string %}{{- '<escape>' + item + '<escape>' }}
{%- else %}{{- item | tojson }}{%- endif %}{%- endmacro %}
{%- if messages[0].role in ('system', 'developer') or tools %}{{- '<start_of_turn>developer\n' }}
{%- if messages[0].role in ('system', 'developer') %}{{- messages[0].content | trim }}{%- endif %}
{%- for tool in tools or [] %}{{- '<start_function_declaration>declaration:' + tool.function.name + '{description:' }}
{{- value(tool.function.description) + ',parameters:{' }}
{%- for name, schema in tool.function.parameters.properties.items() %}{{- name + ':' + value(schema.type) + ',' }}
{%- endfor %}{{- '}}<end_function_declaration>' }}{%- endfor %}{{- '<end_of_turn>\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.previtem.role == 'tool' %}{{- '<start_function_response>' }}{%- endif %}
{{- 'response:' + (message.name or 'f') + '{value:' + value(message.content) + '}<end_function_response>' }}
{%- elif message.role not in ('system', 'developer') %}
{%- if loop.index0 == 0 or loop.previtem.role != 'tool' %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\n' }}{%- endif %}
{{- message.content | trim }}
{%- for call in message.tool_calls or [] %}{{- '<start_function_call>call:' + call.function.name + '{' }}
{%- for name, item in call.function.arguments.items() %}
{{- (',' if not loop.first else '') + name + ':' + value(item) }}
{%- endfor %}{{- '}<end_function_call>' }}{%- endfor %}
{{- '<start_function_response>' if message.tool_calls else '<end_of_turn>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{- '<start_of_turn>model\n' }}{%- endif %}"""
"""In the manner of FunctionGemma: tags of its own, and a call ends where the tool's response begins."""
